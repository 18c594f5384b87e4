//! What a client takes of a welcome. The server proved its key, but it is not the user: it may give inner
//! addresses and offer networks behind it, within these limits. What is beyond them is left out and told of.
//! What the user's own `tun.routes` asks for has no limits.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::{
    config::{ClientTun, Dns, MIN_MTU, is_domain},
    host::{facts::Facts, interface::LeftOut},
    tunnel::inside::UNROUTABLE,
    wire::{
        foreign,
        message::{Net, Welcome},
    },
};

/// Inner addresses.
const MOST_ADDRESSES: usize = 8;
/// Offered routes.
const MOST_ROUTES: usize = 256;
/// Offered resolvers.
const MOST_RESOLVERS: usize = 8;
/// Offered search domains.
const MOST_DOMAINS: usize = 32;
/// Inner addresses of the server that get routes of their own: one of each family is enough.
const MOST_SERVERS: usize = 2;
/// Items that are told of one by one.
const MOST_LEFT_OUT: usize = 64;
/// Characters of foreign text in what is told.
const LONGEST_TEXT: usize = 64;
/// The shortest prefixes of routes that a server may ask for: 10.0.0.0/8 is the largest private network, and
/// providers get nothing larger than a /16 of IPv6.
const SHORTEST: [u8; 2] = [8, 16];
/// As much as so many of these may be routed into the tunnel in sum. Of IPv4 it is 1.6 %: enough for all private
/// networks (RFC 1918, RFC 6598), and far from the internet in pieces.
const MOST_OF_SHORTEST: u128 = 4;

/// What is taken of a welcome.
#[derive(Clone, Debug, Default)]
pub(super) struct Offer {
    /// The TUN device's MTU in bytes.
    pub(super) mtu: u16,
    /// The client's inner addresses.
    pub(super) addresses: Vec<IpAddr>,
    /// The networks of these, and the server's own inner addresses.
    pub(super) networks: Vec<IpNet>,
    /// Networks behind the server; none where the user names some.
    pub(super) routes: Vec<IpNet>,
    /// Resolvers behind the server, and the domains that they know.
    pub(super) dns: Dns,
    /// What is declined.
    pub(super) left_out: Vec<LeftOut>,
}

/// Why no session is possible.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OfferError {
    /// There is no address to send from.
    #[error("the server gives this client no inner address that it could use ({0})")]
    NoAddress(String),
}

/// What the offer is compared with.
struct Check<'a> {
    facts: &'a Facts,
    servers: &'a [IpAddr],
    left_out: Vec<LeftOut>,
    /// What was declined beyond [`MOST_LEFT_OUT`].
    more: usize,
    /// The routes so far.
    routed: Vec<IpNet>,
    /// How many addresses they have, by family.
    sum: [u128; 2],
}

impl Offer {
    /// Checks what the server at the outer addresses `servers` says against what the user wants and the host has.
    pub(super) fn check(
        welcome: &Welcome,
        tun: &ClientTun,
        facts: &Facts,
        servers: &[IpAddr],
    ) -> Result<Self, OfferError> {
        let (left_out, routed) = (Vec::new(), Vec::new());
        let mut check = Check { facts, servers, left_out, more: 0, routed, sum: [0; 2] };
        let mtu = check.mtu(welcome.mtu, tun.mtu);
        let given: Vec<_> = welcome.addresses.iter().map(|Net(net)| *net).collect();
        let taken = check.addresses(&given);
        if taken.is_empty() {
            let why =
                check.left_out.first().map_or_else(|| "it gives none".into(), LeftOut::to_string);
            return Err(OfferError::NoAddress(why));
        }
        let mut networks = check.servers(&welcome.server_addresses, &taken);
        let connected = taken.iter().filter(|net| net.prefix_len() < net.max_prefix_len());
        networks.extend(check.routes(connected.map(IpNet::trunc)));
        let offered = welcome.routes.iter().map(|Net(net)| net.trunc());
        let routes = if tun.routes.is_none() { check.routes(offered) } else { Vec::new() };
        let dns = if tun.dns.is_none() { check.dns(welcome) } else { Dns::default() };
        let addresses = taken.iter().map(IpNet::addr).collect();
        Ok(Self { mtu, addresses, networks, routes, dns, left_out: check.told() })
    }
}

impl Check<'_> {
    fn decline(&mut self, what: String, why: impl Into<String>) {
        if self.left_out.len() < MOST_LEFT_OUT {
            self.left_out.push(LeftOut::new(what, why));
        } else {
            self.more += 1;
        }
    }

    fn told(mut self) -> Vec<LeftOut> {
        if self.more > 0 {
            let what = format!("{} more offers", self.more);
            self.left_out.push(LeftOut::new(what, "the server says too much"));
        }
        self.left_out
    }

    fn mtu(&mut self, offered: u16, own: u16) -> u16 {
        if offered < MIN_MTU {
            self.decline(format!("MTU {offered}"), format!("less than {MIN_MTU}; it is {own}"));
            return own;
        }
        own.min(offered)
    }

    fn addresses(&mut self, given: &[IpNet]) -> Vec<IpNet> {
        let mut taken: Vec<IpNet> = Vec::new();
        for net in given {
            let address = net.addr();
            if let Some(why) = self.unusable(address) {
                self.decline(what_address(address), why);
            } else if taken.iter().any(|other| other.addr() == address) {
                self.decline(what_address(address), "it is given twice");
            } else if taken.len() == MOST_ADDRESSES {
                self.decline(what_address(address), format!("more than {MOST_ADDRESSES}"));
            } else {
                taken.push(*net);
            }
        }
        taken
    }

    /// Routes to the server's inner addresses: a link whose network is the tunnel's must not capture them.
    fn servers(&mut self, offered: &[String], own: &[IpNet]) -> Vec<IpNet> {
        let mut taken = Vec::new();
        for address in offered.iter().filter_map(|text| text.parse().ok()).take(MOST_SERVERS) {
            let network = own.iter().find(|net| net.contains(&address));
            let why = match network.map(too_much) {
                None => Some("it is in no network of the tunnel".into()),
                Some(Some(why)) => Some(why),
                Some(None) => self.unusable(address),
            };
            match why {
                Some(why) => self.decline(format!("server's {}", what_address(address)), why),
                None => taken.push(IpNet::from(address)),
            }
        }
        taken
    }

    fn routes(&mut self, offered: impl Iterator<Item = IpNet>) -> Vec<IpNet> {
        let mut taken = Vec::new();
        for net in offered {
            if taken.contains(&net) || self.routed.contains(&net) {
                continue;
            }
            if self.routed.len() == MOST_ROUTES {
                self.decline(what_route(net), format!("more than {MOST_ROUTES}"));
            } else if let Some(why) = self.unroutable(net) {
                self.decline(what_route(net), why);
            } else {
                taken.push(net);
                self.routed.push(net);
            }
        }
        taken
    }

    fn dns(&mut self, welcome: &Welcome) -> Dns {
        let mut dns = Dns::default();
        for text in &welcome.dns {
            let what = || format!("resolver {}", short(text));
            match text.parse::<IpAddr>() {
                Err(_) => self.decline(what(), "it is no address"),
                Ok(address) if is_unroutable(address) => self.decline(what(), NO_HOST),
                Ok(address) if dns.servers.contains(&address) => {}
                Ok(_) if dns.servers.len() == MOST_RESOLVERS => {
                    self.decline(what(), format!("more than {MOST_RESOLVERS}"));
                }
                Ok(address) => dns.servers.push(address),
            }
        }
        for domain in &welcome.search_domains {
            let what = || format!("search domain {}", short(domain));
            if !is_domain(domain) {
                self.decline(what(), "it is no domain name");
            } else if !domain.trim_end_matches('.').contains('.') {
                // A list of all public suffixes would be better, and old before it is shipped.
                self.decline(what(), "it has no dot: it could be all of a country's names");
            } else if dns.domains.len() == MOST_DOMAINS {
                self.decline(what(), format!("more than {MOST_DOMAINS}"));
            } else {
                dns.domains.push(domain.clone());
            }
        }
        dns
    }

    /// Why an inner address cannot be this one, if it cannot. One that merely lies in a network of the host's is
    /// none: where a café has the prefix of the tunnel, the tunnel should still work.
    fn unusable(&self, address: IpAddr) -> Option<String> {
        let Facts { addresses, gateways, resolvers, .. } = self.facts;
        if is_unroutable(address) {
            return Some(NO_HOST.into());
        }
        if let Some((link, _)) = addresses.iter().find(|(_, own)| *own == address) {
            return Some(format!("{link} has it"));
        }
        if let Some((link, _)) = gateways.iter().find(|(_, gateway)| *gateway == address) {
            return Some(format!("it is the router of {link}"));
        }
        if resolvers.contains(&address) {
            return Some("this host asks it about names".into());
        }
        self.servers.contains(&address).then(|| "it is the server's own outer address".into())
    }

    /// Why a network cannot be routed into the tunnel, if it cannot.
    fn unroutable(&mut self, net: IpNet) -> Option<String> {
        if let Some(why) = too_much(&net) {
            return Some(why);
        }
        if UNROUTABLE.iter().any(|other| other.contains(&net) || net.contains(other)) {
            return Some(NO_HOST.into());
        }
        let networks = &self.facts.networks;
        let is_default = |other: &IpNet| other.prefix_len() == 0;
        if let Some((link, other)) =
            networks.iter().find(|(_, other)| other.contains(&net) && !is_default(other))
        {
            return Some(format!("{link} has {other}"));
        }
        // What is on a link has a longer prefix, and stays there.
        let is_captured = |address: &IpAddr| {
            let stays = |other: &IpNet| other.contains(address) && net.contains(other);
            net.contains(address) && !networks.iter().any(|(_, other)| stays(other))
        };
        let Facts { gateways, resolvers, .. } = self.facts;
        let vital = gateways.iter().map(|(_, gateway)| gateway).chain(resolvers);
        if let Some(address) = vital.into_iter().find(|address| is_captured(address)) {
            return Some(format!("this host's router or resolver {address} is in it"));
        }
        if self.servers.iter().any(|server| IpNet::from(*server) == net) {
            return Some("it is the server's own outer address".into());
        }
        let family = usize::from(net.addr().is_ipv6());
        let most = MOST_OF_SHORTEST * (size(net.max_prefix_len() - SHORTEST[family]));
        let is_routed = self.routed.iter().any(|other| other.contains(&net));
        let more = if is_routed { 0 } else { size(net.max_prefix_len() - net.prefix_len()) };
        if self.sum[family] + more > most {
            let shortest = SHORTEST[family];
            return Some(format!(
                "all in all it is more than {MOST_OF_SHORTEST} times a /{shortest}; only tun.routes can ask for it"
            ));
        }
        self.sum[family] += more;
        None
    }
}

const NO_HOST: &str = "no host can have it";

/// Why a server may not ask for so much, if it does.
fn too_much(net: &IpNet) -> Option<String> {
    let shortest = SHORTEST[usize::from(net.addr().is_ipv6())];
    (net.prefix_len() < shortest)
        .then(|| format!("shorter than /{shortest}; only tun.routes can ask for it"))
}

fn is_unroutable(address: IpAddr) -> bool {
    UNROUTABLE.iter().any(|net| net.contains(&address))
}

/// Addresses of a network with so many free bits, at most 112 here.
fn size(bits: u8) -> u128 {
    1 << bits
}

fn what_address(address: IpAddr) -> String {
    format!("address {address}")
}

fn what_route(net: IpNet) -> String {
    format!("route {net}")
}

/// Foreign text, printable and short.
fn short(text: &str) -> String {
    foreign::printable(text, LONGEST_TEXT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::client::plan::tests::{nets, tun, welcome};
    use crate::config::Exclude;

    fn facts() -> Facts {
        let link = |name: &str| name.to_owned();
        Facts {
            addresses: vec![(link("wlan0"), "192.168.1.2".parse().unwrap())],
            networks: vec![(link("wlan0"), "192.168.1.0/24".parse().unwrap())],
            gateways: vec![(link("wlan0"), "192.168.1.1".parse().unwrap())],
            resolvers: vec!["192.168.1.1".parse().unwrap(), "192.0.2.53".parse().unwrap()],
            ..Facts::default()
        }
    }

    fn check(welcome: &Welcome) -> Result<Offer, OfferError> {
        Offer::check(welcome, &tun(None), &facts(), &["203.0.113.1".parse().unwrap()])
    }

    /// Why something was declined.
    fn why(offer: &Offer, what: &str) -> String {
        let found = offer.left_out.iter().find(|item| item.what == what);
        found.unwrap_or_else(|| panic!("{what}: {:?}", offer.left_out)).why.clone()
    }

    #[test]
    fn the_quick_starts_offer_is_accepted_whole() {
        let mut welcome = welcome(&["10.66.0.2/24", "fd66::2/64"], &["10.1.0.0/16"]);
        welcome.server_addresses = vec!["10.66.0.1".into(), "fd66::1".into()];
        let offer = check(&welcome).unwrap();
        assert_eq!(offer.left_out, []);
        let own = ["10.66.0.2", "fd66::2"].map(|it| it.parse::<IpAddr>().unwrap());
        assert_eq!(offer.addresses, own);
        let expected = nets(&["10.66.0.1/32", "fd66::1/128", "10.66.0.0/24", "fd66::/64"]);
        assert_eq!(offer.networks, expected);
        assert_eq!(offer.routes, nets(&["10.1.0.0/16"]));
    }

    #[test]
    fn routes_that_together_cover_the_internet_are_refused() {
        let pieces: Vec<_> = (1..=223).map(|first| format!("{first}.0.0.0/8")).collect();
        let pieces: Vec<_> = pieces.iter().map(String::as_str).collect();
        let offer = check(&welcome(&["100.64.0.2/10"], &pieces)).unwrap();
        let sum: u64 = offer.routes.iter().map(|net| 1 << (32 - net.prefix_len())).sum();
        assert!(sum <= 4 << 24, "{:?}", offer.routes);
        let private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
        let offer = check(&welcome(&["100.64.0.2/10"], &private)).unwrap();
        assert_eq!((offer.routes, offer.left_out), (nets(&private), Vec::new()));
    }

    #[test]
    fn routes_that_a_server_must_not_ask_for_are_left_out() {
        let refused = [
            ("0.0.0.0/1", "shorter than /8"),
            ("64.0.0.0/2", "shorter than /8"),
            ("2000::/3", "shorter than /16"),
            ("::/0", "shorter than /16"),
            ("127.0.0.0/8", NO_HOST),
            ("169.254.169.254/32", NO_HOST),
            ("224.0.0.0/8", NO_HOST),
            ("fe80::/64", NO_HOST),
            ("192.168.1.0/24", "wlan0 has 192.168.1.0/24"),
            ("192.168.1.1/32", "wlan0 has 192.168.1.0/24"),
            ("192.0.2.0/24", "resolver 192.0.2.53 is in it"),
            ("203.0.113.1/32", "the server's own outer address"),
        ];
        let routes: Vec<_> = refused.iter().map(|(net, _)| *net).collect();
        let offer = check(&welcome(&["10.66.0.2/24"], &routes)).unwrap();
        assert_eq!(offer.routes, []);
        for (net, reason) in refused {
            let why = why(&offer, &format!("route {net}"));
            assert!(why.contains(reason), "{net}: {why}");
        }
        // What is wider than the neighbourhood leaves the neighbourhood where it is.
        let wide = ["192.168.0.0/16", "203.0.113.0/24"];
        assert_eq!(check(&welcome(&["10.66.0.2/24"], &wide)).unwrap().routes, nets(&wide));
    }

    #[test]
    fn addresses_that_belong_to_others_are_left_out() {
        let given = [
            "192.168.1.2/24",
            "192.168.1.1/24",
            "192.0.2.53/24",
            "203.0.113.1/24",
            "224.0.0.1/4",
            "::1/64",
            "0.0.0.0/8",
            "10.66.0.2/24",
            "10.66.0.2/16",
        ];
        let offer = check(&welcome(&given, &[])).unwrap();
        assert_eq!(offer.addresses, ["10.66.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(offer.left_out.len(), 8, "{:?}", offer.left_out);
        assert!(why(&offer, "address 192.168.1.1").contains("router of wlan0"));
        // Where the café has the tunnel's prefix, only the server and the client itself are in the tunnel.
        let mut cafe = welcome(&["192.168.1.77/24"], &[]);
        cafe.server_addresses = vec!["192.168.1.66".into(), "192.168.1.1".into()];
        let offer = check(&cafe).unwrap();
        assert_eq!(offer.networks, nets(&["192.168.1.66/32"]));
        assert!(why(&offer, "route 192.168.1.0/24").contains("wlan0 has"));
        assert!(why(&offer, "server's address 192.168.1.1").contains("router of wlan0"));
    }

    #[test]
    fn a_route_to_the_server_is_within_the_tunnels_network() {
        let mut welcome = welcome(&["10.66.0.2/24", "200.0.0.2/1"], &[]);
        welcome.server_addresses = vec!["8.8.8.8".into(), "200.1.1.1".into(), "10.66.0.1".into()];
        let offer = check(&welcome).unwrap();
        assert_eq!(offer.networks, nets(&["10.66.0.0/24"]));
        assert!(why(&offer, "server's address 8.8.8.8").contains("no network of the tunnel"));
        assert!(why(&offer, "server's address 200.1.1.1").contains("shorter than /8"));
    }

    #[test]
    fn a_client_without_an_address_has_no_session() {
        for given in [&[][..], &["224.0.0.1/4", "127.0.0.1/8"]] {
            assert!(check(&welcome(given, &[])).is_err());
        }
    }

    #[test]
    fn only_valid_resolvers_and_search_domains_are_accepted() {
        let mut welcome = welcome(&["10.66.0.2/24"], &[]);
        welcome.dns = ["10.66.0.1", "10.66.0.1", "127.0.0.1", "a\u{1b}[2J"].map(Into::into).into();
        welcome.search_domains =
            ["com", "corp.example", ".", "x y", "net.", "a\nREADY=1"].map(Into::into).into();
        let offer = check(&welcome).unwrap();
        assert_eq!(offer.dns.servers, ["10.66.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(offer.dns.domains, ["corp.example"]);
        assert!(why(&offer, "search domain com").contains("no dot"));
        assert!(offer.left_out.iter().all(|item| !item.to_string().contains(char::is_control)));
    }

    #[test]
    fn an_mtu_below_the_ipv6_minimum_is_ignored() {
        for mtu in [0, 68, 1279] {
            let offer = check(&Welcome { mtu, ..welcome(&["10.66.0.2/24"], &[]) }).unwrap();
            assert_eq!((offer.mtu, offer.left_out.len()), (1500, 1));
        }
        for (offered, taken) in [(1280, 1280), (9000, 1500), (u16::MAX, 1500)] {
            let welcome = Welcome { mtu: offered, ..welcome(&["10.66.0.2/24"], &[]) };
            assert_eq!(check(&welcome).unwrap().mtu, taken);
        }
    }

    fn net() -> impl Strategy<Value = String> {
        let v4 = (any::<u32>(), 0u8..=32)
            .prop_map(|(bits, prefix)| format!("{}/{prefix}", std::net::Ipv4Addr::from(bits)));
        let v6 = (any::<u128>(), 0u8..=128)
            .prop_map(|(bits, prefix)| format!("{}/{prefix}", std::net::Ipv6Addr::from(bits)));
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn no_server_gets_more_than_its_limits(
            addresses in proptest::collection::vec(net(), 1..20),
            routes in proptest::collection::vec(net(), 0..600),
            domains in proptest::collection::vec(".{0,20}", 0..100),
        ) {
            let refs = |texts: &[String]| -> Vec<Net> {
                texts.iter().map(|text| Net(text.parse().unwrap())).collect()
            };
            let mut welcome = welcome(&[], &[]);
            (welcome.addresses, welcome.routes) = (refs(&addresses), refs(&routes));
            welcome.search_domains = domains;
            let Ok(offer) = check(&welcome) else { return Ok(()) };
            prop_assert!(offer.addresses.len() <= MOST_ADDRESSES);
            prop_assert!(offer.networks.len() + offer.routes.len() <= MOST_ROUTES + MOST_SERVERS);
            prop_assert!(offer.dns.domains.len() <= MOST_DOMAINS);
            prop_assert!(offer.left_out.len() <= MOST_LEFT_OUT + 1);
            for net in offer.routes.iter().chain(&offer.networks) {
                prop_assert!(net.prefix_len() >= SHORTEST[usize::from(net.addr().is_ipv6())]);
                prop_assert!(!UNROUTABLE.iter().any(|other| net.contains(other)));
            }
            let sum = |v4: bool| -> f64 {
                let all = offer.routes.iter().chain(&offer.networks);
                let all: Vec<_> = all.filter(|it| it.addr().is_ipv4() == v4).copied().collect();
                let size = |it: IpNet| f64::from(it.max_prefix_len() - it.prefix_len()).exp2();
                IpNet::aggregate(&all).into_iter().map(size).sum()
            };
            prop_assert!(sum(true) <= 26f64.exp2() && sum(false) <= 114f64.exp2());
        }
    }

    #[test]
    fn the_users_own_routes_have_no_limits() {
        let mut tun = tun(Some(&["0.0.0.0/1", "192.168.1.0/24"]));
        tun.exclude = Exclude::default();
        let welcome = welcome(&["10.66.0.2/24"], &["192.168.1.0/24"]);
        let offer = Offer::check(&welcome, &tun, &facts(), &[]).unwrap();
        assert_eq!((offer.routes, offer.left_out), (Vec::new(), Vec::new()));
    }
}
