use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The port of a server whose address names none.
pub(crate) const DEFAULT_PORT: u16 = 4433;

/// A server's name or address, and its port: `vpn.example.net:4433`, `[2001:db8::1]:4433`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort {
    /// A name to look up, or an address; an IPv6 address without brackets.
    pub host: String,
    /// The UDP port, never 0.
    pub port: u16,
}

/// A text that is neither a name nor an address with or without a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostPortError {
    /// The host is neither a name that DNS could know nor an address.
    #[error("not a host name or an IP address")]
    Host,
    /// The port is not a number from 1 to 65535.
    #[error("not a port from 1 to 65535")]
    Port,
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or(HostPortError::Host)?;
            let host: Ipv6Addr = host.parse().map_err(|_| HostPortError::Host)?;
            return Ok(Self { host: host.to_string(), port: port(rest)? });
        }
        if let Ok(host) = text.parse::<Ipv6Addr>() {
            return Ok(Self { host: host.to_string(), port: DEFAULT_PORT });
        }
        let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
        if !is_name_or_ipv4(host) {
            return Err(HostPortError::Host);
        }
        Ok(Self { host: host.to_owned(), port: port(rest)? })
    }
}

/// `rest` is empty or starts with a colon.
fn port(rest: &str) -> Result<u16, HostPortError> {
    if rest.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    let digits = rest.strip_prefix(':').ok_or(HostPortError::Host)?;
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(HostPortError::Port);
    }
    digits.parse().ok().filter(|port| *port != 0).ok_or(HostPortError::Port)
}

/// RFC 1123 §2.1, with the underscore that is seen in the wild. A name whose last label is
/// a number is an IPv4 address or a mistake.
fn is_name_or_ipv4(host: &str) -> bool {
    let labels = host.strip_suffix('.').unwrap_or(host);
    let last = labels.rsplit('.').next().unwrap_or(labels);
    if last.bytes().all(|b| b.is_ascii_digit()) {
        return host.parse::<Ipv4Addr>().is_ok();
    }
    labels.len() <= 253 && labels.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        && !label.starts_with('-')
        && !label.ends_with('-')
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl From<SocketAddr> for HostPort {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}

impl TryFrom<String> for HostPort {
    type Error = HostPortError;

    fn try_from(text: String) -> Result<Self, HostPortError> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(address: HostPort) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_addresses_are_read_with_and_without_a_port() {
        for (text, host, port) in [
            ("vpn.example.net:4433", "vpn.example.net", 4433),
            ("vpn.example.net", "vpn.example.net", DEFAULT_PORT),
            ("vpn.example.net.:1", "vpn.example.net.", 1),
            ("localhost:65535", "localhost", 65535),
            ("192.0.2.1:4433", "192.0.2.1", 4433),
            ("192.0.2.1", "192.0.2.1", DEFAULT_PORT),
            ("[2001:db8::1]:4433", "2001:db8::1", 4433),
            ("[2001:DB8:0::1]", "2001:db8::1", DEFAULT_PORT),
            ("2001:db8::1", "2001:db8::1", DEFAULT_PORT),
        ] {
            let expected = HostPort { host: host.to_owned(), port };
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn text_that_is_neither_a_name_nor_an_address_is_refused() {
        use HostPortError::{Host, Port};
        for (text, error) in [
            ("", Host),
            (":4433", Host),
            ("a b:1", Host),
            ("-a.example:1", Host),
            ("a..example:1", Host),
            ("192.0.2.300:1", Host),
            ("192.0.2:1", Host),
            ("https://vpn.example.net", Port),
            ("[vpn.example.net]:1", Host),
            ("[2001:db8::1", Host),
            ("[2001:db8::1]4433", Host),
            ("vpn.example.net:", Port),
            ("vpn.example.net:0", Port),
            ("vpn.example.net:+1", Port),
            ("vpn.example.net:65536", Port),
            ("vpn.example.net:1:2", Port),
        ] {
            assert_eq!(text.parse::<HostPort>(), Err(error), "{text}");
        }
    }

    fn host() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<Ipv4Addr>().prop_map(|address| address.to_string()),
            any::<Ipv6Addr>().prop_map(|address| address.to_string()),
            "([a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?\\.){0,3}[a-z]{1,10}",
        ]
    }

    proptest! {
        #[test]
        fn a_printed_host_and_port_parse_to_the_same_value(host in host(), port in 1..=u16::MAX) {
            let address = HostPort { host, port };
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn no_text_makes_parsing_panic(text in any::<String>()) {
            let _ = text.parse::<HostPort>();
        }
    }
}
