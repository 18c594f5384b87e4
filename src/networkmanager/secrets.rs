//! Who keeps a connection's secrets (`NMSettingSecretFlags` of nm-setting.h), and which of them are not there.

use crate::config::Items;

/// A user's agent keeps it; nobody does; NetworkManager does not need it of an agent.
const AGENT_OWNED: u32 = 1;
const NOT_SAVED: u32 = 2;
const NOT_REQUIRED: u32 = 4;

/// The names of all that may be secrets.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    Items::SECRETS.into_iter().map(|(name, _)| name)
}

/// Whether it comes from a person, or from where an agent keeps it: NetworkManager does not store it.
pub(super) fn is_personal(items: &Items, name: &str) -> bool {
    flags(items, name) & (AGENT_OWNED | NOT_SAVED) != 0
}

/// Whether an agent is told to leave it: NetworkManager has it, or the connection goes without.
pub(super) fn is_left_out(items: &Items, name: &str) -> bool {
    flags(items, name) & NOT_REQUIRED != 0
}

/// Whether it is not there and has to be: the key, which no tunnel can do without, or what NetworkManager does not store.
pub(super) fn is_lacking(items: &Items, name: &str) -> bool {
    let is_there = items.secrets.get(name).is_some_and(|text| !text.is_empty());
    !is_there && (name == Items::KEY || is_personal(items, name) && !is_left_out(items, name))
}

fn flags(items: &Items, name: &str) -> u32 {
    items.data.get(&format!("{name}-flags")).and_then(|flags| flags.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_networkmanager_does_not_store_is_wanted_and_the_key_always() {
        let mut items = Items::default();
        assert_eq!(
            names().filter(|name| is_lacking(&items, name)).collect::<Vec<_>>(),
            [Items::KEY]
        );
        for (flags, lacks) in [
            ("0", false),
            ("1", true),
            ("2", true),
            ("3", true),
            ("4", false),
            ("5", false),
            ("x", false),
        ] {
            items.secrets.clear();
            items.data.insert("server.proxy-flags".into(), flags.into());
            assert_eq!(is_lacking(&items, "server.proxy"), lacks, "{flags}");
            items.secrets.insert("server.proxy".into(), String::new().into());
            assert_eq!(is_lacking(&items, "server.proxy"), lacks, "{flags}");
            items.secrets.insert("server.proxy".into(), "http://u:pw@p:3128".to_owned().into());
            assert!(!is_lacking(&items, "server.proxy"), "{flags}");
            items.data.insert("private-key-flags".into(), flags.into());
            assert!(is_lacking(&items, Items::KEY), "{flags}");
        }
    }
}
