//! An HTTP proxy in front of the server's TCP port: `server.proxy`, or the environment's.

use std::path::Path;

use hyper::{Uri, header::HeaderValue};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};

use super::{
    HostPort, ServerPeer,
    check::keep_secret,
    keys::{self, PROXY},
    problem::Problems,
    raw::ProxyUrl,
};

/// An HTTP proxy. User and password are shown nowhere, [`Debug`] included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Where it is.
    pub at: HostPort,
    /// Whether it is asked in TLS.
    pub tls: bool,
    /// User and password as the proxy wants them (RFC 7617).
    pub credentials: Option<HeaderValue>,
}

/// What the environment says of proxies to all programs, as curl(1) reads it.
#[derive(Default)]
pub(super) struct Outside {
    /// `HTTPS_PROXY`, by the name that it has.
    proxy: Option<(&'static str, String)>,
    /// `NO_PROXY`.
    no_proxy: String,
    /// Whether the environment replaces the file's proxy.
    overrides: bool,
}

impl Outside {
    pub(super) fn of(environment: &[(String, String)]) -> Self {
        let value = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| {
                let of = |(it, value): &&(String, String)| it == name && !value.is_empty();
                environment.iter().find(of).map(|(_, value)| (name, value.clone()))
            })
        };
        let no_proxy = value(["no_proxy", "NO_PROXY"]).map(|(_, value)| value).unwrap_or_default();
        // curl(1) takes blanks for commas. A dot at the end says that a name is whole.
        let no_proxy = no_proxy
            .split(|at: char| at == ',' || at.is_whitespace())
            .map(|name| name.trim_end_matches('.'))
            .collect::<Vec<_>>();
        Self {
            proxy: value(["https_proxy", "HTTPS_PROXY"]),
            no_proxy: no_proxy.join(","),
            overrides: value(["ROAMD_SERVER__PROXY"; 2]).is_some(),
        }
    }

    /// The environment's proxy for a server with these addresses.
    fn proxy(&self, servers: &[HostPort]) -> Option<&str> {
        let (_, url) = self.proxy.as_ref().filter(|_| !self.excepts(servers))?;
        is_proxy(url).then_some(url)
    }

    /// Whether the server is reached without, by whichever of its addresses.
    fn excepts(&self, servers: &[HostPort]) -> bool {
        const ANY: &str = "http://proxy";
        self.no_proxy.split(',').any(|it| it == "*")
            || servers.iter().any(|server| parse(ANY, &self.no_proxy, server).is_none())
    }
}

/// Whether a URL is one of an HTTP proxy.
fn is_proxy(url: &str) -> bool {
    let anybody = HostPort { host: "localhost".into(), port: 443 };
    parse(url, "", &anybody).is_some()
}

/// What to say of the environment's proxy if that would be used for this server and cannot be; never its URL, which may
/// hold a password.
pub(crate) fn unusable(
    server: &ServerPeer,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Option<String> {
    let outside = Outside::of(&environment.into_iter().collect::<Vec<_>>());
    let is_wanted = server.tcp_port.is_some() && server.proxy.is_none();
    let (name, url) = outside.proxy.as_ref().filter(|_| is_wanted)?;
    let is_unusable = !outside.excepts(&server.addresses) && !is_proxy(url);
    is_unusable.then(|| {
        format!("{name} of the environment is not used: it must be {}", keys::accepted(PROXY))
    })
}

/// The proxy that leads to the server's TCP port. Without that port there is nothing that it could lead to. `section` is
/// where the server is in the file.
pub(super) fn of(
    section: &str,
    written: &mut Option<ProxyUrl>,
    servers: &[HostPort],
    tcp_port: Option<u16>,
    file: &Path,
    outside: &Outside,
    problems: &mut Problems,
) -> Option<Proxy> {
    let server = servers.first()?;
    let Some(url) = written else {
        let url = outside.proxy(servers).filter(|_| tcp_port.is_some())?;
        *written = Some(ProxyUrl(url.to_owned().into()));
        return parse(url, "", server);
    };
    let key = format!("{section}.proxy");
    let Some(proxy) = parse(&url.0, "", server) else {
        problems.add(&key, None, format!("must be {}", keys::accepted(&key)));
        return None;
    };
    if tcp_port.is_none() {
        let reason = format!("needs {section}.tcp-port, the port that the proxy is asked for");
        problems.add(&key, None, reason);
    }
    if proxy.credentials.is_some() && !outside.overrides {
        keep_secret(&key, file, "change the password if they are not to have it", problems);
    }
    Some(proxy)
}

/// The proxy at `url`, unless the `server` is among those that are reached without.
fn parse(url: &str, no_proxy: &str, server: &HostPort) -> Option<Proxy> {
    // What follows a slash in a password would silently be no part of the authority.
    let whole = url.parse::<Uri>().ok().filter(|_| !url.contains('#'))?;
    if whole.path_and_query().is_some_and(|rest| rest.as_str() != "/") {
        return None;
    }
    let matcher = Matcher::builder().https(url.to_owned()).no(no_proxy.to_owned()).build();
    let HostPort { host, port } = server;
    let server = HostPort { host: host.trim_end_matches('.').to_owned(), port: *port };
    let server = format!("https://{server}/").parse::<Uri>().ok()?;
    let found = matcher.intercept(&server)?;
    let uri = found.uri();
    let tls = match uri.scheme_str()? {
        "http" => false,
        "https" => true,
        _ => return None,
    };
    let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let host = uri.authority()?.as_str();
    // With a port, which decides what HostPort reads.
    let host = if uri.port().is_some() { host.to_owned() } else { format!("{host}:{port}") };
    let at = host.parse().ok()?;
    Some(Proxy { at, tls, credentials: Intercept::basic_auth(&found).cloned() })
}

/// A URL for people: without its user and password.
pub(super) fn without_credentials(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
    match rest.rsplit_once('@') {
        Some((_, rest)) => format!("{scheme}://[redacted]@{rest}"),
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(url: &str) -> Option<Proxy> {
        parse(url, "", &"vpn.example.net:4433".parse().unwrap())
    }

    #[test]
    fn urls_of_proxies_are_read_with_user_and_password() {
        for (url, at, tls) in [
            ("http://proxy.example.net:3128", "proxy.example.net:3128", false),
            ("http://192.0.2.8", "192.0.2.8:80", false),
            ("https://[2001:db8::8]", "[2001:db8::8]:443", true),
            ("https://[2001:db8::8]:8443/", "[2001:db8::8]:8443", true),
            ("proxy:3128", "proxy:3128", false),
        ] {
            let expected = Proxy { at: at.parse().unwrap(), tls, credentials: None };
            assert_eq!(proxy(url), Some(expected), "{url}");
        }
        // RFC 7617 §2.
        let credentials = "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
        let found = proxy("http://Aladdin:open%20sesame@proxy:3128").unwrap();
        assert_eq!(found.credentials.as_ref().unwrap(), credentials);
        assert!(!format!("{found:?}").contains("QWxh"), "{found:?}");
    }

    #[test]
    fn what_is_no_url_of_an_http_proxy_is_refused() {
        for url in [
            "",
            "socks5://proxy:1080",
            "http://",
            "http://a b",
            "http://u:p@w@proxy",
            "http://proxy:0",
            "http://user:12/34@proxy:3128",
            "http://u:1#2@proxy",
            "http://u:1?2@proxy",
            "http://proxy/x",
        ] {
            assert_eq!(proxy(url), None, "{url}");
        }
    }

    #[test]
    fn the_environment_names_a_proxy_and_who_is_reached_without() {
        let server = ["vpn.example.net:4433".parse().unwrap()];
        let outside = |variables: &[(&str, &str)]| {
            let own = |(name, value): &(&str, &str)| (String::from(*name), String::from(*value));
            Outside::of(&variables.iter().map(own).collect::<Vec<_>>())
        };
        let url = "http://proxy:3128";
        for variable in ["HTTPS_PROXY", "https_proxy"] {
            assert_eq!(outside(&[(variable, url)]).proxy(&server), Some(url));
        }
        assert_eq!(outside(&[("HTTP_PROXY", url)]).proxy(&server), None);
        for none in [
            "*",
            "example.net",
            "example.net.",
            "localhost, .example.net",
            "localhost example.net",
            "localhost .example.net.",
        ] {
            let outside = outside(&[("HTTPS_PROXY", url), ("NO_PROXY", none)]);
            assert_eq!(outside.proxy(&server), None, "{none}");
        }
        let address = ["192.0.2.1:4433".parse().unwrap()];
        for (none, is_used) in [("192.0.2.0/24", false), ("*", false), ("example.net", true)] {
            let outside = outside(&[("https_proxy", url), ("no_proxy", none)]);
            assert_eq!(outside.proxy(&address).is_some(), is_used, "{none}");
        }
        let whole = ["vpn.example.net.:4433".parse().unwrap()];
        let all = [whole.to_vec(), address.to_vec()].concat();
        for none in ["vpn.example.net", "192.0.2.0/24", "other,192.0.2.1"] {
            let outside = outside(&[("https_proxy", url), ("no_proxy", none)]);
            assert_eq!(outside.proxy(&all), None, "{none}: one of its addresses is enough");
        }
    }

    #[test]
    fn a_proxy_of_the_environment_that_cannot_be_used_is_told_by_its_name() {
        let server = |tcp_port| ServerPeer {
            name: "vpn".into(),
            addresses: vec!["vpn.example.net:4433".parse().unwrap()],
            tcp_port,
            relay: None,
            home: Vec::new(),
            proxy: None,
            public_key: crate::identity::PrivateKey::generate().unwrap().public_key(),
        };
        let said = |port, name: &str, url: &str, none: &str| {
            let variables = [(name, url), ("NO_PROXY", none)];
            unusable(&server(port), variables.map(|(name, value)| (name.into(), value.into())))
        };
        let bad = "socks5://laptop:secret@proxy:1080";
        for name in ["HTTPS_PROXY", "https_proxy"] {
            let said = said(Some(443), name, bad, "").unwrap();
            assert!(said.starts_with(&format!("{name} of the environment is not used")), "{said}");
            assert!(!said.contains("secret"), "{said}");
        }
        assert_eq!(said(Some(443), "HTTPS_PROXY", bad, "example.net"), None);
        assert_eq!(said(None, "HTTPS_PROXY", bad, ""), None);
        assert_eq!(said(Some(443), "HTTPS_PROXY", "http://proxy:3128", ""), None);
        assert_eq!(said(Some(443), "HTTP_PROXY", bad, ""), None);
    }

    #[test]
    fn user_and_password_are_not_shown() {
        for (url, shown) in [
            ("http://u:p@proxy:3128", "http://[redacted]@proxy:3128"),
            ("u:p@proxy:3128", "http://[redacted]@proxy:3128"),
            ("http://u:p/@w@proxy", "http://[redacted]@proxy"),
            ("http://proxy:3128", "http://proxy:3128"),
        ] {
            assert_eq!(without_credentials(url), shown);
        }
    }
}
