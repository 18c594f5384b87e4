//! A CONNECT-UDP relay of somebody else: `server.relay`.

use hyper::Uri;

use super::HostPort;

const HOST: &str = "{target_host}";
const PORT: &str = "{target_port}";
/// Both of them as parameters (RFC 6570 §3.2.8).
const QUERY: &str = "{?target_host,target_port}";

/// A CONNECT-UDP relay (RFC 9298), as its URI template says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relay {
    /// Where it is.
    pub at: HostPort,
    template: String,
}

impl Relay {
    /// Reads a template (RFC 9298 §2) in the forms that relays use: `{target_host}` and `{target_port}` anywhere behind
    /// the host, or `{?target_host,target_port}` at the end.
    pub(super) fn parse(template: &str) -> Option<Self> {
        let has_both = template.contains(HOST) && template.contains(PORT);
        let as_query = template.ends_with(QUERY) && !template.contains(['&', '#']);
        let expanded = expand(template, &HostPort { host: "localhost".into(), port: 443 });
        let is_whole = has_both != as_query && !expanded.contains(['{', '}']);
        let uri = expanded.parse::<Uri>().ok().filter(|_| is_whole)?;
        let authority = uri.authority()?.as_str();
        // Variables of the host's name would lead somewhere else each time.
        let is_fixed = template.starts_with(&format!("https://{authority}/"));
        let at = match uri.port() {
            Some(_) => authority.parse().ok()?,
            None => format!("{authority}:443").parse().ok()?,
        };
        is_fixed.then(|| Self { at, template: template.to_owned() })
    }

    /// The URI of a target.
    #[must_use]
    pub(crate) fn uri(&self, target: &HostPort) -> Option<Uri> {
        expand(&self.template, target).parse().ok()
    }
}

/// Names and addresses have no reserved characters but the colons of IPv6.
fn expand(template: &str, HostPort { host, port }: &HostPort) -> String {
    let query = format!("?target_host={HOST}&target_port={PORT}");
    let template = template.replace(QUERY, &query);
    template.replace(HOST, &host.replace(':', "%3A")).replace(PORT, &port.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_expanded_as_rfc_9298_says() {
        let name = "vpn.example.net:4433".parse().unwrap();
        let address = "[2001:db8::42]:443".parse().unwrap();
        for (template, at, target, uri) in [
            (
                "https://example.org/.well-known/masque/udp/{target_host}/{target_port}/",
                "example.org:443",
                &address,
                "https://example.org/.well-known/masque/udp/2001%3Adb8%3A%3A42/443/",
            ),
            (
                "https://proxy.example.org:4443/masque?h={target_host}&p={target_port}",
                "proxy.example.org:4443",
                &name,
                "https://proxy.example.org:4443/masque?h=vpn.example.net&p=4433",
            ),
            (
                "https://[2001:db8::1]:4443/masque{?target_host,target_port}",
                "[2001:db8::1]:4443",
                &name,
                "https://[2001:db8::1]:4443/masque?target_host=vpn.example.net&target_port=4433",
            ),
        ] {
            let relay = Relay::parse(template).unwrap();
            assert_eq!(relay.at, at.parse().unwrap());
            assert_eq!(relay.uri(target).unwrap().to_string(), uri);
        }
    }

    #[test]
    fn what_is_no_template_of_a_relay_is_refused() {
        for template in [
            "",
            "http://example.org/{target_host}/{target_port}/",
            "https://example.org/",
            "https://example.org/{target_host}/",
            "https://{target_host}.example.org/{target_port}/",
            "https://example.org{target_host}/{target_port}/",
            "https://user:password@example.org/{target_host}/{target_port}/",
            "https://example.org/{target_host}/{target_port}/{x}",
            "https://example.org/{target_host}/{target_port}/{?target_host,target_port}",
            "https://example.org/{+target_host}/{target_port}/",
        ] {
            assert_eq!(Relay::parse(template), None, "{template}");
        }
    }
}
