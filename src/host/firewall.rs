//! A client's firewall: the kill switch, and what strict reverse path filters need.
//!
//! The table outlives a daemon that crashed; the next one replaces it, and a stop removes it.

use std::fmt::Write as _;

use anyhow::Context as _;
use ipnet::IpNet;
use tracing::{info, warn};

use super::{
    Layout, MARK, nft,
    sysctl::{self, Sysctls},
};

/// Networks that no router passes on to the internet, RFC 1918, RFC 3927, RFC 4193 and RFC 4291 §2.5.6, and
/// multicast: what "lan" means while there is no tunnel to compare with.
const LAN_V4: &str =
    "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255";
const LAN_V6: &str = "fc00::/7, fe80::/10, ff00::/8";

/// The client's table.
#[derive(Debug)]
pub struct Firewall {
    interface: String,
    /// What the table has; before the first look nothing is known.
    chains: Option<String>,
    sysctls: Sysctls,
}

impl Firewall {
    /// For the tunnel on `interface`.
    #[must_use]
    pub fn new(interface: &str) -> Self {
        Self { interface: interface.into(), chains: None, sysctls: Sysctls::default() }
    }

    /// Makes the table what the layout needs. An error only where the kill switch can't be set.
    pub async fn set(&mut self, layout: &Layout) -> anyhow::Result<()> {
        let sealed = seal(layout, &self.interface);
        let strict =
            if layout.is_full() && is_strict() { self.unfilter(layout) } else { String::new() };
        let chains = format!("{sealed}{strict}");
        if self.chains.as_ref() == Some(&chains) {
            return Ok(());
        }
        if chains.is_empty() {
            return self.remove().await;
        }
        let table = nft::table(&self.interface);
        match nft::replace(&table, &chains).await {
            Err(error) if sealed.is_empty() => {
                warn!(
                    error = format!("{error:#}"),
                    "this host's reverse path filter is strict (rp_filter = 1) and may drop what the \
                     server sends; roamd doctor tells more"
                );
            }
            result => result.context("can't set the kill switch")?,
        }
        if !sealed.is_empty() && !self.chains.as_ref().is_some_and(|it| it.contains(SEAL)) {
            info!(table, "kill switch set: what belongs into the tunnel goes nowhere else");
        }
        self.chains = Some(chains);
        Ok(())
    }

    /// Lets the server's packets through a strict reverse path filter: it looks their way back up
    /// with their mark, and finds the way around the tunnel.
    fn unfilter(&mut self, layout: &Layout) -> String {
        if let Err(error) = self.sysctls.set("ipv4/conf/all/src_valid_mark", "1") {
            warn!(%error, "the reverse path filter may drop what the server sends");
        }
        let ports: Vec<_> = layout.ports.iter().map(ToString::to_string).collect();
        format!(
            "  chain from-server {{\n    type filter hook prerouting priority mangle; policy accept;\n    \
             iifname != \"{}\" udp sport {{ {} }} meta mark set {MARK:#x}\n  }}\n",
            self.interface,
            ports.join(", ")
        )
    }

    /// Puts the table back if somebody deleted it; whether that was so.
    pub async fn restore(&self) -> anyhow::Result<bool> {
        let Some(chains) = self.chains.as_ref().filter(|chains| !chains.is_empty()) else {
            return Ok(false);
        };
        let table = nft::table(&self.interface);
        if nft::exists(&table).await? {
            return Ok(false);
        }
        nft::replace(&table, chains).await?;
        Ok(true)
    }

    /// Removes the table, if it is there, and resets what belongs to it.
    pub async fn remove(&mut self) -> anyhow::Result<()> {
        self.sysctls.restore();
        let table = nft::table(&self.interface);
        match self.chains.replace(String::new()) {
            Some(chains) if chains.is_empty() => Ok(()),
            Some(_) => nft::delete(&table).await,
            // An earlier run that crashed may have left one.
            None if nft::exists(&table).await.unwrap_or(false) => nft::delete(&table).await,
            None => Ok(()),
        }
    }
}

const SEAL: &str = "chain seal";

/// The chains that hold back what is sealed; empty where nothing is.
fn seal(layout: &Layout, interface: &str) -> String {
    if layout.sealed.is_empty() {
        return String::new();
    }
    let mut chains = String::new();
    for hook in ["output", "forward"] {
        let _ = writeln!(
            chains,
            "  chain {hook} {{\n    type filter hook {hook} priority filter; policy accept;\n    \
             jump seal\n  }}"
        );
    }
    let _ = writeln!(
        chains,
        "  {SEAL} {{\n    oifname {{ \"lo\", \"{interface}\" }} accept\n    meta mark {MARK:#x} accept\n    \
         udp sport 68 udp dport 67 accept\n    udp sport 546 udp dport 547 accept\n    \
         icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept"
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

/// Whether some link drops packets whose way back would be another link (rp_filter = 1; the larger of
/// the link's value and that of `all` counts).
fn is_strict() -> bool {
    let links = sysctl::links().unwrap_or_default();
    let all = sysctl::read("ipv4/conf/all/rp_filter").unwrap_or_default();
    let value =
        |link: &str| sysctl::read(&format!("ipv4/conf/{link}/rp_filter")).unwrap_or_default();
    links.iter().filter(|link| *link != "all").any(|link| value(link).max(all.clone()) == "1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Exclude;

    #[test]
    fn nothing_is_sealed_unless_it_is_asked_for() {
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
    fn sealed_prefixes_leave_everything_else_open() {
        let layout = Layout { sealed: vec!["10.1.0.0/16".parse().unwrap()], ..Layout::default() };
        let chains = seal(&layout, "roam0");
        assert!(chains.contains("ip daddr { 10.1.0.0/16 } reject"), "{chains}");
        assert!(!chains.contains("nfproto"), "{chains}");
    }
}
