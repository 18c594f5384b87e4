//! A client's configuration as single items, a name and a text each, as NetworkManager keeps it.
//!
//! ```text
//!  [tun]
//!  routes = ["10.0.0.0/8", "fd66::/64"]   ◀─▶   tun.routes = 10.0.0.0/8 fd66::/64
//!  [server]
//!  address = "vpn.example.net"            ◀─▶   server.address = vpn.example.net
//!  [[server]] ... [[server]] ...          ◀─▶   server = [{ ... }, { ... }]
//! ```
//!
//! The elements of a list are separated by spaces or commas. What is a table or a list of tables stands as TOML.

use std::{collections::BTreeMap, path::Path};

use toml::{Table, Value};
use zeroize::Zeroizing;

use super::{
    ClientConfig, Config, ConfigErrors, Loaded, Origin,
    keys::{self, Key, Kind},
    lines::join,
    problem::Problems,
    proxy::Outside,
    read, source,
};

/// What belongs to a machine, or would let a user of NetworkManager have root read or write a file: not for items, be they
/// shown or secret.
const REFUSED: [&str; 3] = ["private-key-file", "metrics", "role"];
const NO_KEY: &str = "# The private key stays with NetworkManager: name a file that has it, or another key.\n\
                      # private-key-file = \"home.key\"\n\n";
const IS_REFUSED: &str = "has no place in a connection of NetworkManager; leave it out";
/// An item has no line.
const IN_ITEMS: Origin = Origin::File { line: None };

/// The items of one client.
#[derive(Clone, Default)]
pub(crate) struct Items {
    /// What everybody may see.
    pub data: BTreeMap<String, String>,
    /// What nobody may see.
    pub secrets: BTreeMap<String, Zeroizing<String>>,
}

impl Items {
    /// The item that every client needs and nobody may see.
    pub(crate) const KEY: &str = keys::PRIVATE_KEY;
    /// What may be a secret, and what people call it: the key, and what a proxy's password may be in.
    pub(crate) const SECRETS: [(&str, &str); 3] = [
        (Self::KEY, "Private key"),
        (keys::PROXY, "Proxy, a URL with its password"),
        ("server", "Servers, as TOML"),
    ];

    /// The items that are the same as the file at `path`, with its key.
    pub(crate) fn of_file(path: &Path) -> Result<Self, ConfigErrors> {
        let unreadable = |error| ConfigErrors::Unreadable { path: path.into(), error };
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let loaded = Loaded::of_text(path, &text, [])?;
        let mut table: Table = toml::from_str(&text).unwrap_or_default();
        for own in ["role", keys::PRIVATE_KEY, "private-key-file"] {
            table.remove(own);
        }
        let mut items = Self::default();
        items.add_table("", table);
        let key = loaded.config.private_key().to_base64();
        items.secrets.insert(Self::KEY.into(), key);
        match loaded.config {
            Config::Client(_) => items.config(path).map(drop).map(|()| items),
            Config::Server(_) => {
                let mut problems = Problems::default();
                problems.add("role", Some("server".into()), "must be \"client\" here");
                problems.judge(path, None, |_| (IN_ITEMS, true))
            }
        }
    }

    /// The configuration that they make; `name` stands for them in messages.
    pub(crate) fn config(&self, name: &Path) -> Result<ClientConfig, ConfigErrors> {
        let mut problems = Problems::default();
        let is_refused = |key: &str| REFUSED.iter().any(|refused| keys::is_within(key, refused));
        for key in self.data.keys().chain(self.secrets.keys()) {
            if is_refused(key) {
                problems.add(key, None, IS_REFUSED);
            }
        }
        if self.data.contains_key(Self::KEY) {
            problems.add(Self::KEY, None, "is a secret: set it in vpn.secrets");
        }
        let is_one = |key: &&String| Self::SECRETS.iter().any(|(secret, _)| secret == key);
        let others = self.secrets.keys().filter(|key| !is_one(key));
        for key in others.filter(|key| !is_refused(key)) {
            problems.add(key, None, "is no secret: set it in vpn.data");
        }
        let mut table = self.table(&mut problems);
        // Whatever name they came by.
        REFUSED.iter().for_each(|refused| _ = table.remove(*refused));
        let mut tree = source::tree(name, table, [])?;
        let origin = |key: &str| (IN_ITEMS, self.has(key));
        if !problems.is_empty() {
            return problems.judge(name, None, origin);
        }
        let read = read::read_client(&mut tree, name, &Outside::default(), &mut problems);
        let (config, _) = problems.judge(name, read, origin)?;
        Ok(ClientConfig { metrics: None, ..config })
    }

    /// The file that they make.
    pub(crate) fn to_toml(&self) -> Result<Zeroizing<String>, String> {
        let mut problems = Problems::default();
        let mut table = Table::from_iter([("role".to_owned(), "client".into())]);
        table.extend(self.table(&mut problems));
        let key = if self.secrets.contains_key(Self::KEY) { "" } else { NO_KEY };
        match problems.into_vec(|_| (IN_ITEMS, true)).first() {
            Some(problem) => Err(problem.to_string()),
            None => {
                let text = toml::to_string(&table).map_err(|error| error.to_string())?;
                Ok(format!("{key}{text}").into())
            }
        }
    }

    /// Whether an item sets this key, or something in it.
    fn has(&self, key: &str) -> bool {
        let mut names = self.data.keys().chain(self.secrets.keys());
        names.any(|name| keys::is_within(key, name) || keys::is_within(name, key))
    }

    fn add_table(&mut self, path: &str, table: Table) {
        for (name, value) in table {
            let key = join(path, &name);
            if let Value::Table(inner) = value {
                self.add_table(&key, inner);
            } else if is_secret(&key, &value) {
                self.secrets.insert(key, text(value).into());
            } else {
                self.data.insert(key, text(value));
            }
        }
    }

    fn table(&self, problems: &mut Problems) -> Table {
        let mut table = Table::new();
        let shown = self.data.iter().map(|(key, text)| (key, text.as_str()));
        let hidden = self.secrets.iter().map(|(key, text)| (key, text.as_str()));
        // NetworkManager keeps beside each secret how it is to be kept.
        for (key, text) in shown.filter(|(key, _)| !key.ends_with("-flags")).chain(hidden) {
            let (section, name) = keys::split(key);
            let place = match section {
                "" => Some(&mut table),
                section => {
                    table.entry(section).or_insert_with(|| Table::new().into()).as_table_mut()
                }
            };
            match place {
                Some(place) => {
                    place.insert(name.into(), value(key, text));
                }
                None => problems.add(key, None, format!("is set by {section} already")),
            }
        }
        table
    }
}

/// A proxy's URL may hold a password, also in a list of servers.
fn is_secret(key: &str, value: &Value) -> bool {
    let has_proxy = |server: &Value| server.get("proxy").is_some();
    key == keys::PROXY || value.as_array().is_some_and(|list| list.iter().any(has_proxy))
}

fn separates(c: char) -> bool {
    c.is_whitespace() || c == ','
}

/// A value as the text of an item.
fn text(value: Value) -> String {
    if let Value::String(text) = value {
        return text;
    }
    let word = |value: &Value| {
        value.as_str().filter(|it| !it.is_empty() && !it.contains(separates)).map(str::to_owned)
    };
    let list = value.as_array().filter(|list| !list.is_empty());
    let words = list.and_then(|list| list.iter().map(word).collect::<Option<Vec<_>>>());
    words.map_or_else(|| value.to_string(), |words| words.join(" "))
}

/// What the item's text means.
fn value(key: &str, text: &str) -> Value {
    let as_written = || text.to_owned().into();
    let kind = keys::find(key).map(|Key { kind, .. }| *kind);
    let is_toml = match kind {
        Some(Kind::Text) | None => false,
        Some(Kind::List) => text.trim_start().starts_with('['),
        Some(Kind::Number | Kind::Flag | Kind::Table | Kind::Tables | Kind::OneOrMore) => true,
    };
    if is_toml {
        let parsed = toml::from_str::<Table>(&format!("value = {text}"));
        return parsed.ok().and_then(|mut it| it.remove("value")).unwrap_or_else(as_written);
    }
    match kind {
        Some(Kind::List) => {
            let words = text.split(separates).filter(|word| !word.is_empty());
            words.map(|word| Value::from(word.to_owned())).collect::<Vec<_>>().into()
        }
        _ => as_written(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::PrivateKey;

    const SERVER: &str = "4u+4U1cFgxgLMrJudxC7b4L9w13hgFC5JtMtzsV0VEQ=";

    fn items(data: &[(&str, &str)]) -> Items {
        let data = data.iter().map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
        let key = PrivateKey::generate().unwrap().to_base64();
        Items { data: data.collect(), secrets: [(Items::KEY.to_owned(), key)].into() }
    }

    fn client(items: &Items) -> ClientConfig {
        items.config(Path::new("connection home")).unwrap()
    }

    fn problems(items: &Items) -> String {
        items.config(Path::new("connection home")).unwrap_err().to_string()
    }

    #[test]
    fn every_valid_file_of_a_client_and_its_items_mean_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let mut tried = 0;
        for entry in std::fs::read_dir("tests/data/valid").unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            if !text.contains("role = \"client\"") || text.contains("[metrics]") {
                continue;
            }
            let key = PrivateKey::generate().unwrap().to_base64();
            let rest = text.lines().filter(|it| !it.starts_with("private-key"));
            let rest = rest.collect::<Vec<_>>().join("\n");
            let copy = folder.path().join(path.file_name().unwrap());
            std::fs::write(&copy, format!("private-key = \"{}\"\n{rest}\n", *key)).unwrap();
            std::process::Command::new("chmod").arg("600").arg(&copy).status().unwrap();
            let Config::Client(of_file) = Loaded::new(&copy, []).unwrap().config else { panic!() };
            let items = Items::of_file(&copy).unwrap();
            assert_eq!(format!("{:?}", client(&items)), format!("{of_file:?}"), "{path:?}");
            assert!(!items.data.values().any(|text| text.contains(key.as_str())), "{path:?}");
            // And back.
            std::fs::write(&copy, items.to_toml().unwrap().as_str()).unwrap();
            let Config::Client(again) = Loaded::new(&copy, []).unwrap().config else { panic!() };
            assert_eq!(format!("{again:?}"), format!("{of_file:?}"), "{path:?}");
            tried += 1;
        }
        assert!(tried > 3, "{tried}");
    }

    #[test]
    fn an_admin_types_lists_as_words() {
        let typed = items(&[
            ("server.address", "vpn.example.net, 192.0.2.1"),
            ("server.public-key", SERVER),
            ("tun.routes", "10.0.0.0/8 fd66::/64"),
            ("tun.kill-switch", "true"),
            ("paths.prefer", r#"[{ link = "en*" }, { link = "ww*", metered = true }]"#),
            ("private-key-flags", "0"),
        ]);
        let client = client(&typed);
        assert_eq!(client.servers[0].addresses.len(), 2);
        assert_eq!(client.tun.routes.unwrap().len(), 2);
        assert!(client.tun.kill_switch && client.paths.prefer[1].metered);
    }

    #[test]
    fn what_cannot_be_used_is_named_with_the_item() {
        let server = [("server.address", "192.0.2.1"), ("server.public-key", SERVER)];
        for (wrong, expected) in [
            (
                ("tun.rotues", "default"),
                "connection home: tun.rotues is not a known key (did you mean tun.routes?)",
            ),
            (
                ("tun.kill-switch", "perhaps"),
                "connection home: tun.kill-switch = perhaps must be true or false",
            ),
            (
                ("private-key", "abc"),
                "connection home: private-key is a secret: set it in vpn.secrets",
            ),
            (("server", "[{}]"), "connection home: server.address is set by server already"),
        ] {
            let said = problems(&items(&[&server[..], &[wrong]].concat()));
            assert!(said.starts_with(expected), "{said}");
        }
        let mut keyless = items(&server);
        keyless.secrets.clear();
        let said = problems(&keyless);
        assert!(said.contains("private-key"), "{said}");
    }

    #[test]
    fn neither_what_is_shown_nor_what_is_secret_names_a_file_for_root() {
        let server = [("server.address", "192.0.2.1"), ("server.public-key", SERVER)];
        let said_of = |name: &str, is_secret: bool| {
            let mut items = items(&server);
            match is_secret {
                true => drop(items.secrets.insert(name.into(), "/etc/shadow".to_owned().into())),
                false => drop(items.data.insert(name.into(), "/etc/shadow".into())),
            }
            problems(&items)
        };
        for name in ["private-key-file", "metrics", "metrics.listen", "metrics.x.y", "role"] {
            for is_secret in [false, true] {
                let expected = format!("connection home: {name} has no place in a connection");
                let said = said_of(name, is_secret);
                assert!(said.starts_with(&expected), "{is_secret}: {said}");
            }
        }
        for name in ["tun.name", "server.relay", "private-key-file-x", "Metrics.listen", "a..b", ""]
        {
            let said = said_of(name, true);
            let expected = format!("connection home: {name} is no secret: set it in vpn.data");
            assert!(said.starts_with(&expected), "{said}");
        }
    }

    #[test]
    fn a_proxy_with_a_password_is_not_shown() {
        let mut table = Table::new();
        let server = |proxy: &str| format!("address = \"a\"\nproxy = \"{proxy}\"");
        let one: Table = toml::from_str(&server("http://u:pw@p:3128")).unwrap();
        table.insert("server".into(), one.clone().into());
        let mut items = Items::default();
        items.add_table("", table.clone());
        assert_eq!(items.secrets.keys().collect::<Vec<_>>(), ["server.proxy"]);
        table.insert("server".into(), vec![Value::Table(one)].into());
        let mut items = Items::default();
        items.add_table("", table);
        assert_eq!(items.secrets.keys().collect::<Vec<_>>(), ["server"]);
    }
}
