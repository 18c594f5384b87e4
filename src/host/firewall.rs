//! A client's firewall: the kill switch.
//!
//! The table outlives a daemon that crashed; the next one replaces it, and a stop or `roamd unseal` removes it.
//! It is always replaced as a whole, in one transaction.

use std::{collections::BTreeSet, fmt::Write as _, iter, net::SocketAddr};

use ipnet::IpNet;
use tracing::{info, warn};

use super::{
    Layout,
    nft::{self, NftError},
    record::Record,
};
use crate::{config::Exclude, link::MARK};

/// Networks that no router passes on to the internet, RFC 1918, RFC 3927, RFC 4193 and RFC 4291 §2.5.6, and
/// multicast: what "lan" means while there is no tunnel to compare with.
const LAN_V4: &str =
    "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255";
const LAN_V6: &str = "fc00::/7, fe80::/10, ff00::/8";

/// Why the kill switch is not as the layout wants it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FirewallError {
    #[error("cannot set the kill switch: {0}")]
    Set(NftError),
    #[error("cannot lift the kill switch: {0}")]
    Lift(NftError),
}

/// The client's table.
#[derive(Debug)]
pub(crate) struct Firewall {
    interface: String,
    record: Record,
    /// What the table was made last; before the first look nothing is known.
    made: Option<Made>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Made {
    chains: String,
    /// What is held back, and what is not.
    sealed: (Vec<IpNet>, Exclude),
    /// The unchanged table as nft prints it.
    listing: Option<String>,
}

impl Firewall {
    /// For the tunnel on `interface`.
    #[must_use]
    pub(crate) fn new(interface: &str, record: Record) -> Self {
        Self { interface: interface.into(), record, made: None }
    }

    /// Makes the table what the layout needs. An error only where the kill switch cannot be set or lifted;
    /// the table is then as it was.
    pub(crate) async fn set(&mut self, layout: &Layout) -> Result<(), FirewallError> {
        let chains = seal(layout, &self.interface);
        if self.made.as_ref().is_some_and(|made| made.chains == chains) {
            return Ok(());
        }
        if chains.is_empty() {
            return self.remove().await.map_err(FirewallError::Lift);
        }
        let sealed = (layout.sealed.clone(), layout.exclude.clone());
        // An earlier run's table may hold.
        let recorded = self.record.changes().sealed;
        self.record.update(|changes| {
            changes.tables.insert(self.interface.clone());
            changes.sealed = true;
        });
        let was_sealed = self.made.as_ref().is_some_and(|made| !made.sealed.0.is_empty());
        match self.replace(&chains).await {
            // All but the server's addresses is as it should be.
            Err(error) if self.made.as_ref().is_some_and(|made| made.sealed == sealed) => {
                warn!(
                    %error,
                    "the kill switch lets packets to earlier addresses of the server out, not to new ones"
                );
                return Ok(());
            }
            Err(error) => {
                self.record.update(|changes| changes.sealed = recorded || was_sealed);
                return Err(FirewallError::Set(error));
            }
            Ok(()) => {}
        }
        if !was_sealed {
            info!("kill switch set: what belongs in the tunnel goes nowhere else");
        }
        let listing = self.listing().await;
        self.made = Some(Made { chains, sealed, listing });
        Ok(())
    }

    async fn replace(&self, chains: &str) -> Result<(), NftError> {
        nft::replace(&nft::table(&self.interface), chains).await
    }

    async fn listing(&self) -> Option<String> {
        nft::listing(&nft::table(&self.interface)).await.ok().flatten()
    }

    /// Restores the table if it was changed or deleted; returns whether it was.
    pub(crate) async fn restore(&mut self) -> Result<bool, NftError> {
        let Some(made) = self.made.as_ref().filter(|made| !made.chains.is_empty()) else {
            return Ok(false);
        };
        let found = nft::listing(&nft::table(&self.interface)).await?;
        if found.is_some() && found == made.listing {
            return Ok(false);
        }
        self.replace(&made.chains).await?;
        let listing = self.listing().await;
        if let Some(made) = &mut self.made {
            made.listing = listing;
        }
        Ok(true)
    }

    /// Removes the table, if it is there.
    pub(crate) async fn remove(&mut self) -> Result<(), NftError> {
        let was_sealed = self.record.changes().sealed;
        self.record.remove_tables(None).await?;
        self.record.update(|changes| changes.sealed = false);
        if was_sealed {
            info!("kill switch lifted");
        }
        self.made = Some(Made::default());
        Ok(())
    }
}

/// The chains that hold back what is sealed; empty where nothing is.
fn seal(layout: &Layout, interface: &str) -> String {
    if layout.sealed.is_empty() {
        return String::new();
    }
    let mut chains = String::new();
    // Only this host itself carries the tunnel, asks for addresses and looks for neighbours.
    chains.push_str(
        "  chain output {\n    type filter hook output priority filter; policy accept;\n",
    );
    for (family, detours) in by_family(&layout.detours) {
        let detours = detours.iter().map(|at| format!("{} . {}", at.ip(), at.port()));
        let detours = list(detours);
        let _ = writeln!(
            chains,
            "    meta mark {MARK:#x} {family} daddr . tcp dport {{ {detours} }} accept"
        );
    }
    for (family, servers) in by_family(&layout.servers) {
        let _ = writeln!(
            chains,
            "    meta mark {MARK:#x} {family} daddr . udp dport {{ {} }} accept\n    \
             meta mark {MARK:#x} {family} daddr {{ {} }} tcp dport {{ {} }} accept",
            list(servers.iter().map(|server| format!("{} . {}", server.ip(), server.port()))),
            list(servers.iter().map(|server| server.ip().to_string())),
            list(
                iter::once(80).chain(layout.tcp_ports.iter().copied()).map(|port| port.to_string())
            ),
        );
    }
    let _ = writeln!(
        chains,
        "    udp sport 68 udp dport 67 accept\n    udp sport 546 udp dport 547 accept\n    \
         icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept\n    \
         jump seal\n  }}\n  chain forward {{\n    type filter hook forward priority filter; policy accept;\n    \
         jump seal\n  }}\n  chain seal {{\n    oifname {{ \"lo\", \"{interface}\" }} accept"
    );
    let mut open: Vec<(bool, String)> =
        layout.exclude.nets.iter().map(|net| (net.addr().is_ipv4(), net.to_string())).collect();
    if layout.exclude.lan {
        open.extend([(true, LAN_V4.into()), (false, LAN_V6.into())]);
    }
    let shut = layout.sealed.iter().filter(|net| net.prefix_len() > 0);
    let shut: Vec<_> = shut.map(|net| (net.addr().is_ipv4(), net.to_string())).collect();
    let full = |v4: bool| {
        let is_full = |net: &IpNet| net.prefix_len() == 0 && net.addr().is_ipv4() == v4;
        layout.sealed.iter().any(is_full)
    };
    for (word, v4) in [("ip", true), ("ip6", false)] {
        // A prefix of our own within the neighbourhood is still ours.
        rule(&mut chains, word, &shut, v4, "reject with icmpx admin-prohibited");
        rule(&mut chains, word, &open, v4, "accept");
        if full(v4) {
            let family = if v4 { "ipv4" } else { "ipv6" };
            let _ = writeln!(
                chains,
                "    meta nfproto {family} counter reject with icmpx admin-prohibited"
            );
        }
    }
    chains.push_str("  }\n");
    chains
}

fn rule(chains: &mut String, word: &str, nets: &[(bool, String)], v4: bool, verdict: &str) {
    let nets: Vec<_> =
        nets.iter().filter(|(is_v4, _)| *is_v4 == v4).map(|(_, net)| net.as_str()).collect();
    if !nets.is_empty() {
        let _ = writeln!(chains, "    {word} daddr {{ {} }} {verdict}", nets.join(", "));
    }
}

/// Addresses by family, where there are any.
fn by_family(addresses: &[SocketAddr]) -> Vec<(&'static str, Vec<SocketAddr>)> {
    let of = |v4: bool| {
        let servers = addresses.iter().map(|it| SocketAddr::new(it.ip().to_canonical(), it.port()));
        servers.filter(|server| server.is_ipv4() == v4).collect::<BTreeSet<_>>()
    };
    let both = [("ip", of(true)), ("ip6", of(false))];
    both.into_iter()
        .filter(|(_, servers)| !servers.is_empty())
        .map(|(family, servers)| (family, servers.into_iter().collect()))
        .collect()
}

fn list(elements: impl Iterator<Item = String>) -> String {
    elements.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kill_switch_is_off_by_default() {
        assert_eq!(seal(&Layout::default(), "roam0"), "");
    }

    #[test]
    fn a_sealed_default_route_leaves_the_neighbourhood_and_the_tunnel_open() {
        let layout = Layout {
            sealed: vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()],
            exclude: Exclude {
                lan: true,
                portal: false,
                nets: vec!["192.0.2.0/24".parse().unwrap()],
            },
            ..Layout::default()
        };
        let chains = seal(&layout, "roam0");
        for line in [
            "oifname { \"lo\", \"roam0\" } accept",
            "ip daddr { 192.0.2.0/24, 10.0.0.0/8",
            "ip6 daddr { fc00::/7",
            "meta nfproto ipv4 counter reject",
            "meta nfproto ipv6 counter reject",
        ] {
            assert!(chains.contains(line), "{chains}");
        }
    }

    #[test]
    fn only_the_servers_addresses_are_open_to_what_carries_the_tunnel() {
        let layout = Layout {
            sealed: vec!["0.0.0.0/0".parse().unwrap()],
            servers: vec![
                "192.0.2.1:4433".parse().unwrap(),
                "[::ffff:192.0.2.1]:4433".parse().unwrap(),
                "[2001:db8::1]:443".parse().unwrap(),
            ],
            tcp_ports: vec![8443],
            detours: vec!["192.0.2.8:3128".parse().unwrap()],
            ..Layout::default()
        };
        let chains = seal(&layout, "roam0");
        let (output, forward) = chains.split_once("chain forward").unwrap();
        for line in [
            "meta mark 0x726f616d ip daddr . udp dport { 192.0.2.1 . 4433 } accept",
            "meta mark 0x726f616d ip6 daddr . udp dport { 2001:db8::1 . 443 } accept",
            "meta mark 0x726f616d ip daddr . tcp dport { 192.0.2.8 . 3128 } accept",
            "meta mark 0x726f616d ip daddr { 192.0.2.1 } tcp dport { 80, 8443 } accept",
        ] {
            assert!(output.contains(line), "{chains}");
        }
        assert!(!forward.contains("mark"), "{chains}");
    }

    #[test]
    fn sealed_prefixes_leave_everything_else_open() {
        let layout = Layout { sealed: vec!["10.1.0.0/16".parse().unwrap()], ..Layout::default() };
        let chains = seal(&layout, "roam0");
        assert!(chains.contains("ip daddr { 10.1.0.0/16 } reject"), "{chains}");
        assert!(!chains.contains("nfproto"), "{chains}");
    }
}
