//! `roamd import wireguard`: what of a wg-quick(8) file has a counterpart here.

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    path::Path,
};

use anyhow::{Context as _, anyhow};
use ipnet::IpNet;
use toml_edit::{Array, Value};

use super::{advice::quoted, exit::Exit};
use crate::{
    config::{DEFAULT_PORT, HostPort, MAX_MTU, MIN_MTU, is_domain},
    wire::foreign::printable,
};

/// One section of the file: its name, and keys with values in their order.
struct Section<'a> {
    name: String,
    line: usize,
    entries: Vec<(usize, String, &'a str)>,
}

/// Prints a client's configuration with what the file says, and what is to be done by hand. Its key is called as the file is.
pub(crate) fn wireguard(file: &Path) -> anyhow::Result<()> {
    let text = fs::read_to_string(file)
        .map_err(|error| Exit::NoInput.because(error))
        .with_context(|| format!("cannot read {}", file.display()))?;
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    let converted = convert(&text, &name).map_err(|(line, reason)| {
        let reason = printable(&reason, usize::MAX);
        Exit::Data.because(anyhow!("{}:{line}: {reason}", file.display()))
    })?;
    Ok(io::stdout().lock().write_all(converted.as_bytes())?)
}

type Wrong = (usize, String);

fn sections(text: &str) -> Result<Vec<Section<'_>>, Wrong> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    for (line, text) in text.lines().enumerate() {
        let (line, text) = (line + 1, text.split('#').next().unwrap_or_default().trim());
        if text.is_empty() {
            continue;
        }
        if let Some(name) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
            let name = name.to_lowercase();
            if !matches!(name.as_str(), "interface" | "peer") {
                return Err((line, format!("[{name}] is neither [Interface] nor [Peer]")));
            }
            sections.push(Section { name, line, entries: Vec::new() });
            continue;
        }
        let (key, value) =
            text.split_once('=').ok_or((line, format!("{text} is no key with a value")))?;
        let section = sections.last_mut().ok_or((line, "a key before any section".to_owned()))?;
        section.entries.push((line, key.trim().to_lowercase(), value.trim()));
    }
    Ok(sections)
}

fn convert(text: &str, name: &str) -> Result<String, Wrong> {
    let sections = sections(text)?;
    let of =
        |name: &str| sections.iter().filter(|section| section.name == name).collect::<Vec<_>>();
    let (interfaces, peers) = (of("interface"), of("peer"));
    let [interface] = interfaces[..] else {
        return Err((1, format!("there must be one [Interface], not {}", interfaces.len())));
    };
    let peer = match peers[..] {
        [peer] => peer,
        [] => {
            return Err((
                interface.line,
                "there is no [Peer], so there is nothing to reach".into(),
            ));
        }
        [_, second, ..] => {
            return Err((
                second.line,
                "a roamd client has one server; servers with many peers are set up with roamd peer add"
                    .into(),
            ));
        }
    };
    let mut out = Converted::default();
    for (line, key, value) in &interface.entries {
        out.interface(*line, key, value)?;
    }
    for (line, key, value) in &peer.entries {
        out.peer(*line, key, value)?;
    }
    out.finish(peer.line, name)
}

#[derive(Default)]
struct Converted {
    addresses: Vec<IpNet>,
    mtu: Option<u16>,
    dns: Vec<String>,
    domains: Vec<String>,
    endpoint: Option<HostPort>,
    routes: Vec<String>,
    left_out: Vec<String>,
}

impl Converted {
    fn interface(&mut self, line: usize, key: &str, value: &str) -> Result<(), Wrong> {
        match key {
            "address" => {
                for address in list(value) {
                    let net =
                        address.parse().or_else(|_| address.parse::<IpAddr>().map(IpNet::from));
                    self.addresses
                        .push(net.map_err(|_| (line, format!("{address} is no address")))?);
                }
            }
            "dns" => {
                for entry in list(value) {
                    if entry.parse::<IpAddr>().is_ok() {
                        self.dns.push(entry.into());
                    } else if is_domain(entry) {
                        self.domains.push(entry.into());
                    } else {
                        // wg-quick hands such as "~corp.example" on to resolvconf.
                        self.left_out.push(format!("DNS = {entry}: no address and no domain"));
                    }
                }
            }
            "mtu" => {
                let mtu = value.parse().map_err(|_| (line, format!("MTU {value} is no number")))?;
                self.mtu = Some(mtu);
            }
            "privatekey" => self.left_out.push(
                "PrivateKey: a WireGuard key is of another kind; roamd genkey makes one".into(),
            ),
            "preup" | "postup" | "predown" | "postdown" => self.left_out.push(format!(
                "{key} = {value}: use ExecStartPost= and the like in a drop-in of roamd@.service"
            )),
            "listenport" | "fwmark" | "table" | "saveconfig" => {
                self.left_out.push(format!("{key} = {value}: has no counterpart"));
            }
            _ => return Err((line, format!("{key} is no key of [Interface] that wg-quick knows"))),
        }
        Ok(())
    }

    fn peer(&mut self, line: usize, key: &str, value: &str) -> Result<(), Wrong> {
        match key {
            "endpoint" => {
                // The colons of an address without brackets are its own.
                let host = value.rsplit_once(':').map(|(host, _)| host);
                if host.is_none_or(|host| host.contains(':') && !host.ends_with(']')) {
                    return Err((line, format!("Endpoint {value} has no port")));
                }
                let endpoint: HostPort =
                    value.parse().map_err(|error| (line, format!("Endpoint {value}: {error}")))?;
                self.left_out.push(format!(
                    "Endpoint's port {}: WireGuard has it; roamd listens on {DEFAULT_PORT}",
                    endpoint.port
                ));
                self.endpoint = Some(HostPort { port: DEFAULT_PORT, ..endpoint });
            }
            "allowedips" => {
                for prefix in list(value) {
                    let net = prefix
                        .parse::<IpNet>()
                        .or_else(|_| prefix.parse::<IpAddr>().map(IpNet::from));
                    let net = net.map_err(|_| (line, format!("{prefix} is no prefix")))?;
                    let net = net.trunc().to_string();
                    if !self.routes.contains(&net) {
                        self.routes.push(net);
                    }
                }
            }
            "publickey" => self.left_out.push(
                "PublicKey: of another kind; roamd pubkey on the server prints the one to use"
                    .into(),
            ),
            "presharedkey" => self.left_out.push(
                "PresharedKey: not needed, the key exchange is safe against quantum computers"
                    .into(),
            ),
            "persistentkeepalive" => {
                self.left_out
                    .push(format!("{key} = {value}: roamd keeps its connection alive itself"));
            }
            _ => return Err((line, format!("{key} is no key of [Peer] that wg-quick knows"))),
        }
        Ok(())
    }

    fn finish(mut self, peer: usize, name: &str) -> Result<String, Wrong> {
        let endpoint = self.endpoint.ok_or((peer, "this [Peer] has no Endpoint".to_owned()))?;
        let both = ["0.0.0.0/0", "::/0"];
        if both.iter().all(|all| self.routes.iter().any(|route| route == all)) {
            self.routes.retain(|route| !both.contains(&route.as_str()));
            self.routes.insert(0, "default".into());
        }
        let key = format!("/etc/roamd/{name}.key");
        let mut text = format!(
            "role = \"client\"\nprivate-key-file = {}   # roamd genkey --output {}\n\n\
             [server]\naddress = {}\npublic-key = \"\"   # what roamd pubkey prints on the server\n\n[tun]\n",
            Value::from(&key),
            quoted(&key),
            Array::from_iter([endpoint.to_string()])
        );
        if let Some(mtu) = self.mtu {
            // Less than IPv6 works with is not allowed, and not needed: what does not fit is split.
            text += &format!("mtu = {}\n", mtu.clamp(MIN_MTU, MAX_MTU));
        }
        text += &format!("routes = {}\n", Array::from_iter(&self.routes));
        match (&self.dns[..], &self.domains[..]) {
            ([], []) => {}
            ([], domains) => self.left_out.push(format!(
                "DNS = {}: domains need a resolver that is asked about them",
                domains.join(", ")
            )),
            (dns, domains) => {
                text += &format!("dns = {}\n", Array::from_iter(dns));
                if !domains.is_empty() {
                    text += &format!("search-domains = {}\n", Array::from_iter(domains));
                }
            }
        }
        if !self.addresses.is_empty() {
            let addresses = self.addresses.iter().map(|net| net.addr().to_string());
            text += &format!(
                "\n# The server gives a client its addresses. On the server:\n#   [[peer]]\n#   addresses = {}\n",
                Array::from_iter(addresses)
            );
        }
        if !self.left_out.is_empty() {
            text += "\n# Left out:\n";
            for left_out in &self.left_out {
                text += &format!("#   {}\n", printable(left_out, usize::MAX));
            }
        }
        Ok(text)
    }
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
[Interface]
# laptop
Address = 10.8.0.2/24, fd08::2/64
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
DNS = 10.8.0.1, corp.example
MTU = 1420
PostUp = iptables -A FORWARD

[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
AllowedIPs = 0.0.0.0/0, ::/0, 10.9.0.0/16
Endpoint = [2001:db8::1]:51820
PersistentKeepalive = 25
";

    #[test]
    fn import_converts_known_settings_and_names_the_rest() {
        let converted = convert(FILE, "wg0").unwrap();
        for line in [
            "private-key-file = \"/etc/roamd/wg0.key\"   # roamd genkey --output /etc/roamd/wg0.key",
            "address = [\"[2001:db8::1]:4433\"]",
            "mtu = 1420",
            "routes = [\"default\", \"10.9.0.0/16\"]",
            "dns = [\"10.8.0.1\"]",
            "search-domains = [\"corp.example\"]",
            "#   addresses = [\"10.8.0.2\", \"fd08::2\"]",
            "#   postup = iptables -A FORWARD",
            "#   Endpoint's port 51820: WireGuard has it; roamd listens on 4433",
        ] {
            assert!(converted.contains(line), "{converted}");
        }
        assert!(!converted.contains("yAnz5TF"), "a private key is not copied");
    }

    /// A file with this in place of one of its lines.
    fn file_with(key: &str, value: &str) -> String {
        let lines = FILE.lines().map(|line| match line.split_once(" = ") {
            Some((its, _)) if its == key => format!("{key} = {value}\n"),
            _ => format!("{line}\n"),
        });
        lines.collect()
    }

    /// Without D-Bus nobody can be told of a resolver, and the configuration is refused.
    #[cfg(feature = "dbus")]
    #[test]
    fn what_is_imported_is_a_configuration_once_its_blanks_are_filled_in() {
        use crate::{
            config::{Config, Loaded},
            identity::PrivateKey,
        };

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("home.toml");
        let server = PrivateKey::generate().unwrap().public_key();
        let load = |file: &str, name: &str| {
            let mut text = convert(file, name).unwrap().parse::<toml_edit::DocumentMut>().unwrap();
            let key = format!("/etc/roamd/{name}.key");
            assert_eq!(text["private-key-file"].as_str(), Some(&*key));
            let key = PrivateKey::generate().unwrap().to_base64();
            text.remove("private-key-file");
            text["private-key"] = toml_edit::value(key.as_str());
            text["server"]["public-key"] = toml_edit::value(server.to_string());
            let loaded = Loaded::of_text(&path, &text.to_string(), []);
            let Config::Client(client) = loaded.unwrap().config else { panic!("{text}") };
            client
        };
        let client = load(FILE, "my \"tunnel\"\u{1b}[2J\n");
        assert_eq!(client.servers[0].addresses[0].to_string(), "[2001:db8::1]:4433");
        for (key, value) in [
            ("Endpoint", "vpn.example.net:51820"),
            ("Endpoint", "192.0.2.1:1"),
            ("AllowedIPs", "0.0.0.0/0"),
            ("AllowedIPs", "10.0.0.0/8, 10.0.0.0/8, 192.0.2.7, fd00::/8"),
            ("AllowedIPs", ""),
            ("DNS", "corp.example"),
            ("DNS", "10.8.0.1, 10.8.0.1, fd08::1"),
            ("DNS", "10.8.0.1, ~corp.example, corp\"]"),
            ("MTU", "65535"),
            ("MTU", "576"),
            ("PostUp", "echo \"\u{1b}[2J\u{202e}\r\t[server]"),
        ] {
            load(&file_with(key, value), "wg0");
        }
        let routed = convert(&file_with("DNS", "10.8.0.1, ~corp.example"), "wg0").unwrap();
        assert!(routed.contains("#   DNS = ~corp.example: no address and no domain"), "{routed}");
    }

    #[test]
    fn import_refuses_other_files_and_names_the_line() {
        for (text, line, word) in [
            ("[Interface]\nAddress = here\n[Peer]\n", 2, "here is no address"),
            ("[Interface]\n", 1, "no [Peer]"),
            ("[Interface]\n[Peer]\n[Peer]\n", 3, "one server"),
            ("[Interface]\n[Peer]\n", 2, "no Endpoint"),
            ("[Interface]\nColour = red\n[Peer]\n", 2, "colour is no key"),
            ("hello\n", 1, "no key with a value"),
            ("[Wireless]\n", 1, "neither"),
        ] {
            let (at, reason) = convert(text, "wg0").unwrap_err();
            assert_eq!(at, line, "{reason}");
            assert!(reason.contains(word), "{reason}");
        }
    }

    #[test]
    fn import_refuses_endpoints_that_are_none() {
        for (key, value, line, word) in [
            ("Endpoint", "a b:51820", 12, "not a host name"),
            ("Endpoint", "x\"y:1", 12, "not a host name"),
            ("Endpoint", "x\\\u{1b}[2J:1", 12, "not a host name"),
            ("Endpoint", "\"]\\n[tun]:1", 12, "not a host name"),
            ("Endpoint", "vpn.example.net", 12, "no port"),
            ("Endpoint", "2001:db8::1", 12, "no port"),
            ("Endpoint", "[2001:db8::1]", 12, "no port"),
            ("Endpoint", "vpn.example.net:0", 12, "not a port"),
            ("Endpoint", "vpn.example.net:65536", 12, "not a port"),
        ] {
            let (at, reason) = convert(&file_with(key, value), "wg0").unwrap_err();
            assert_eq!(at, line, "{value}: {reason}");
            assert!(reason.contains(word), "{value}: {reason}");
        }
    }
}
