//! A connection as NetworkManager has it: settings by name, each with properties by name.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
};

use zbus::OwnedVariant;
use zeroize::Zeroizing;

use super::{dialog, secrets};
use crate::{
    config::{ClientConfig, Items},
    host::instance::Instance,
};

pub(super) type Settings = HashMap<String, HashMap<String, OwnedVariant>>;

/// The longest that is taken for a UUID, in bytes.
const LONGEST: usize = 64;

/// What of a connection matters to a tunnel.
pub(super) struct Profile {
    /// What people call it.
    id: String,
    /// What NetworkManager calls it: it stays when people call it otherwise.
    uuid: String,
    items: Items,
    /// Whether the default route of IPv4, and that of IPv6, stays outside.
    never_default: [bool; 2],
}

/// Why there is no tunnel with these settings.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub(super) struct Unusable {
    pub(super) why: String,
    /// The secrets that somebody was asked for and that are all that is wrong, if they are.
    pub(super) secrets: Vec<&'static str>,
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Profile {
    pub(super) fn read(mut settings: Settings) -> Result<Self, String> {
        // First of all: whatever else is wrong, they are wiped.
        let secrets: BTreeMap<_, _> =
            take::<HashMap<String, String>>(&mut settings, "vpn", "secrets")
                .unwrap_or_default()
                .into_iter()
                .map(|(key, text)| (key, Zeroizing::new(text)))
                .collect();
        let mut own =
            |property| take::<String>(&mut settings, "connection", property).unwrap_or_default();
        let (id, uuid) = (own("id"), own("uuid"));
        let is_plain = |it: u8| it.is_ascii_alphanumeric() || it == b'-';
        if uuid.is_empty() || uuid.len() > LONGEST || !uuid.bytes().all(is_plain) {
            return Err("connection.uuid is none".into());
        }
        let data =
            take::<HashMap<String, String>>(&mut settings, "vpn", "data").unwrap_or_default();
        if data.is_empty() {
            return Err("vpn.data is empty: import a roamd.toml, or set server.address and server.public-key".into());
        }
        let of_secrets = secrets.iter().map(|(key, text)| key.len() + text.len());
        let len: usize =
            data.iter().map(|(key, text)| key.len() + text.len()).chain(of_secrets).sum();
        if len > dialog::LONGEST {
            return Err(format!(
                "vpn.data and vpn.secrets have more than {} bytes",
                dialog::LONGEST
            ));
        }
        let items = Items { data: data.into_iter().collect(), secrets };
        let never_default =
            ["ipv4", "ipv6"].map(|it| take(&mut settings, it, "never-default").unwrap_or(false));
        Ok(Self { id, uuid, items, never_default })
    }

    /// Whether a secret is not there that has to be.
    pub(super) fn lacks_a_secret(&self) -> bool {
        secrets::names().any(|name| secrets::is_lacking(&self.items, name))
    }

    /// The secrets that somebody was asked for, and can be asked for again.
    pub(super) fn personal(&self) -> Vec<&'static str> {
        secrets::names().filter(|name| secrets::is_personal(&self.items, name)).collect()
    }

    /// How messages call the configuration.
    pub(super) fn source(&self) -> PathBuf {
        Path::new(&format!("connection {}", self.id)).into()
    }

    /// The daemon's name, which no unit's has: a unit's name has no "+" (systemd.unit(5)). A user who calls a connection
    /// as an admin calls a tunnel gets nothing of it.
    pub(super) fn instance(&self) -> Instance {
        Instance::named(&format!("nm+{}", self.uuid))
    }

    /// What people call it, which may be anything.
    pub(super) fn label(&self) -> &str {
        &self.id
    }

    pub(super) fn config(&self) -> Result<ClientConfig, Unusable> {
        let mut config = self.items.config(&self.source()).map_err(|error| Unusable {
            secrets: error.among(&self.personal()).unwrap_or_default(),
            why: error.to_string(),
        })?;
        let [v4, v6] = self.never_default;
        // All, or one of the halves that all is written as.
        let stays = |net: &ipnet::IpNet| {
            net.prefix_len() <= 1 && if net.addr().is_ipv4() { v4 } else { v6 }
        };
        let routes = config.tun.routes.as_mut();
        let left_out = routes.map_or(0, |routes| routes.extract_if(.., |net| stays(net)).count());
        if left_out > 0 && config.tun.kill_switch {
            let why = "tun.kill-switch cannot hold back what never-default leaves outside: set one of \
                       ipv4.never-default, ipv6.never-default and tun.kill-switch to no";
            return Err(Unusable { why: why.into(), secrets: Vec::new() });
        }
        Ok(config)
    }
}

/// A property, which is taken out: a secret is not to be copied.
fn take<T: TryFrom<OwnedVariant>>(
    settings: &mut Settings,
    setting: &str,
    property: &str,
) -> Option<T> {
    settings.get_mut(setting)?.remove(property)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    const UUID: &str = "f7a43c2d-63e2-4b96-a34f-11a9a1c42be6";

    fn settings(id: &str, data: &[(&str, &str)], key: Option<&str>) -> Settings {
        let map = |entries: &[(&str, &str)]| {
            let entries = entries.iter().map(|(key, text)| ((*key).into(), (*text).into()));
            OwnedVariant::from(entries.collect::<HashMap<String, String>>())
        };
        let mut vpn = HashMap::from([("data".into(), map(data))]);
        vpn.extend(key.map(|key| ("secrets".into(), map(&[("private-key", key)]))));
        let id = zbus::Variant::from(id.to_owned()).try_into().unwrap();
        let uuid = zbus::Variant::from(UUID.to_owned()).try_into().unwrap();
        let connection = HashMap::from([("id".into(), id), ("uuid".into(), uuid)]);
        HashMap::from([("connection".into(), connection), ("vpn".into(), vpn)])
    }

    const DATA: [(&str, &str); 3] = [
        ("server.address", "192.0.2.1"),
        ("server.public-key", "4u+4U1cFgxgLMrJudxC7b4L9w13hgFC5JtMtzsV0VEQ="),
        ("tun.routes", "default 10.0.0.0/8"),
    ];

    #[test]
    fn a_connection_without_a_key_needs_a_secret() {
        let profile = Profile::read(settings("home", &DATA, None)).unwrap();
        assert!(profile.lacks_a_secret() && profile.config().is_err());
        let key = PrivateKey::generate().unwrap();
        let profile = Profile::read(settings("home", &DATA, Some(&key.to_base64()))).unwrap();
        assert!(!profile.lacks_a_secret());
        assert_eq!(profile.config().unwrap().private_key.public_key(), key.public_key());
        assert!(!format!("{profile:?}").contains(key.to_base64().as_str()));
    }

    #[test]
    fn a_default_route_that_a_person_does_not_want_in_the_tunnel_stays_outside() {
        let key = PrivateKey::generate().unwrap().to_base64();
        let mut settings = settings("home", &DATA, Some(&key));
        settings.insert("ipv4".into(), HashMap::from([("never-default".into(), true.into())]));
        let config = Profile::read(settings).unwrap().config().unwrap();
        let routes = config.tun.routes.unwrap();
        assert_eq!(routes, ["::/0".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
    }

    #[test]
    fn no_kill_switch_goes_with_a_default_route_that_stays_outside() {
        let key = PrivateKey::generate().unwrap().to_base64();
        for (routes, never, is_refused) in [
            ("default", "ipv4", true),
            ("0.0.0.0/0", "ipv6", false),
            ("0.0.0.0/1 128.0.0.0/1", "ipv4", true),
            ("10.0.0.0/8", "ipv4", false),
        ] {
            let data = [&DATA[..2], &[("tun.routes", routes), ("tun.kill-switch", "true")]];
            let mut settings = settings("home", &data.concat(), Some(&key));
            settings.insert(never.into(), HashMap::from([("never-default".into(), true.into())]));
            let said = Profile::read(settings).unwrap().config().map(drop);
            assert_eq!(said.is_err(), is_refused, "{routes}: {said:?}");
            assert!(said.err().is_none_or(|said| said.why.contains("ipv4.never-default")));
        }
    }

    #[test]
    fn a_secret_that_is_wrong_is_asked_for_again_if_a_person_gave_it() {
        let personal = [&DATA[..], &[("private-key-flags", "2")]].concat();
        for (data, key, secrets) in [
            (&personal, "no key", &["private-key"][..]),
            (&personal, DATA[1].1, &[][..]),
            (&[&personal[..], &[("tun.rotues", "default")]].concat(), "no key", &[][..]),
            (&DATA.to_vec(), "no key", &[][..]),
        ] {
            let profile = Profile::read(settings("home", data, Some(key))).unwrap();
            match profile.config() {
                Ok(_) => assert_eq!(key, DATA[1].1),
                Err(wrong) => {
                    assert_eq!(wrong.secrets, secrets);
                    assert!(wrong.why.contains("private-key is none"), "{}", wrong.why);
                    assert!(!wrong.why.contains("no key"), "{}", wrong.why);
                }
            }
        }
    }

    #[test]
    fn no_unit_can_have_the_name_of_a_connection() {
        for id in ["home", "Büro 2/1", "../x", ""] {
            let profile = Profile::read(settings(id, &DATA, None)).unwrap();
            assert_eq!(profile.instance().name(), format!("nm+{UUID}"));
        }
        for wrong in ["", "../../home", "a.b", &"a".repeat(65)] {
            let mut settings = settings("home", &DATA, None);
            let uuid = zbus::Variant::from(wrong.to_owned()).try_into().unwrap();
            settings.get_mut("connection").unwrap().insert("uuid".into(), uuid);
            assert!(Profile::read(settings).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_connection_of_any_length_is_not_taken() {
        let long = "x".repeat(dialog::LONGEST);
        let said = Profile::read(settings("home", &DATA, Some(&long))).unwrap_err();
        assert_eq!(said, "vpn.data and vpn.secrets have more than 262144 bytes");
    }

    #[test]
    fn an_empty_connection_is_refused_with_what_to_do() {
        let said = Profile::read(settings("home", &[], None)).unwrap_err();
        assert!(said.contains("import"), "{said}");
    }
}
