//! A connection as NetworkManager has it: settings by name, each with properties by name.

use std::{
    collections::HashMap,
    fmt,
    path::{Path, PathBuf},
};

use zbus::OwnedVariant;
use zeroize::Zeroizing;

use crate::{
    config::{ClientConfig, ConfigErrors, Items},
    host::instance::Instance,
};

pub(super) type Settings = HashMap<String, HashMap<String, OwnedVariant>>;

/// What of a connection matters to a tunnel.
pub(super) struct Profile {
    id: String,
    items: Items,
    /// Whether the default route of IPv4, and that of IPv6, stays outside.
    never_default: [bool; 2],
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Profile").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Profile {
    pub(super) fn read(mut settings: Settings) -> Result<Self, String> {
        let id = take::<String>(&mut settings, "connection", "id").unwrap_or_default();
        let mut map = |property: &str| {
            take::<HashMap<String, String>>(&mut settings, "vpn", property).unwrap_or_default()
        };
        let (data, secrets) = (map("data"), map("secrets"));
        if data.is_empty() {
            return Err("vpn.data is empty: import a roamd.toml, or set server.address and server.public-key".into());
        }
        let secrets = secrets.into_iter().map(|(key, text)| (key, Zeroizing::new(text)));
        let items = Items { data: data.into_iter().collect(), secrets: secrets.collect() };
        let never_default =
            ["ipv4", "ipv6"].map(|it| take(&mut settings, it, "never-default").unwrap_or(false));
        Ok(Self { id, items, never_default })
    }

    /// Whether the one secret that a tunnel cannot do without is there.
    pub(super) fn has_key(&self) -> bool {
        self.items.secrets.get(Items::KEY).is_some_and(|key| !key.is_empty())
    }

    /// How messages call the configuration.
    pub(super) fn source(&self) -> PathBuf {
        Path::new(&format!("connection {}", self.id)).into()
    }

    /// The daemon's name: the connection's, with a dash for what a file's name does not have.
    pub(super) fn instance(&self) -> Instance {
        let plain = |c: char| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = self.id.chars().map(plain).collect();
        let name = name.trim_start_matches('.');
        Instance::named(if name.is_empty() { "networkmanager" } else { name })
    }

    pub(super) fn config(&self) -> Result<ClientConfig, ConfigErrors> {
        let mut config = self.items.config(&self.source())?;
        let [v4, v6] = self.never_default;
        let stays = |net: &ipnet::IpNet| {
            net.prefix_len() == 0 && if net.addr().is_ipv4() { v4 } else { v6 }
        };
        config.tun.routes.iter_mut().for_each(|routes| routes.retain(|net| !stays(net)));
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

    fn settings(id: &str, data: &[(&str, &str)], key: Option<&str>) -> Settings {
        let map = |entries: &[(&str, &str)]| {
            let entries = entries.iter().map(|(key, text)| ((*key).into(), (*text).into()));
            OwnedVariant::from(entries.collect::<HashMap<String, String>>())
        };
        let mut vpn = HashMap::from([("data".into(), map(data))]);
        vpn.extend(key.map(|key| ("secrets".into(), map(&[("private-key", key)]))));
        let id = zbus::Variant::from(id.to_owned()).try_into().unwrap();
        let connection = HashMap::from([("id".into(), id)]);
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
        assert!(!profile.has_key() && profile.config().is_err());
        let key = PrivateKey::generate().unwrap();
        let profile = Profile::read(settings("home", &DATA, Some(&key.to_base64()))).unwrap();
        assert!(profile.has_key());
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
    fn any_name_of_a_connection_makes_a_file_name() {
        for (id, name) in
            [("home", "home"), ("Büro 2/1", "Büro-2-1"), ("../x", "-x"), ("", "networkmanager")]
        {
            let profile = Profile::read(settings(id, &DATA, None)).unwrap();
            assert_eq!(profile.instance().name(), name);
        }
    }

    #[test]
    fn an_empty_connection_is_refused_with_what_to_do() {
        let said = Profile::read(settings("home", &[], None)).unwrap_err();
        assert!(said.contains("import"), "{said}");
    }
}
