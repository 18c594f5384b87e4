//! A server's way to other networks for its peers: forwarding, and this host's addresses in place of theirs.

use std::fmt::Write as _;

use anyhow::Context as _;
use ipnet::IpNet;
use tracing::{info, warn};

use super::{
    nft,
    sysctl::{self, Sysctls},
};

/// Masquerading for the peers, until [`Nat::remove`].
#[derive(Debug)]
pub struct Nat {
    table: String,
    sysctls: Sysctls,
}

impl Nat {
    /// Sets it up for the networks of `interface`.
    pub async fn set(interface: &str, networks: &[IpNet]) -> anyhow::Result<Self> {
        let mut nat = Self { table: nft::table(interface), sysctls: Sysctls::default() };
        nat.forward(networks).context("tun.nat: can't turn forwarding on")?;
        let chains = chains(interface, networks);
        nft::replace(&nat.table, &chains).await.context("tun.nat: can't set firewall rules")?;
        info!(table = nat.table, "peers reach other networks with this host's addresses");
        Ok(nat)
    }

    fn forward(&mut self, networks: &[IpNet]) -> std::io::Result<()> {
        if networks.iter().any(|net| net.addr().is_ipv4()) {
            self.sysctls.set("ipv4/ip_forward", "1")?;
        }
        if networks.iter().any(|net| net.addr().is_ipv6()) {
            // A router does not listen to other routers, and would lose its own default route (accept_ra).
            for link in sysctl::links()? {
                let name = format!("ipv6/conf/{link}/accept_ra");
                if sysctl::read(&name).is_ok_and(|value| value == "1") {
                    self.sysctls.set(&name, "2")?;
                }
            }
            self.sysctls.set("ipv6/conf/all/forwarding", "1")?;
        }
        Ok(())
    }

    /// Takes everything back.
    pub async fn remove(mut self) {
        self.sysctls.restore();
        if let Err(error) = nft::delete(&self.table).await {
            warn!(error = format!("{error:#}"), "can't remove firewall rules");
        }
    }
}

fn chains(interface: &str, networks: &[IpNet]) -> String {
    let mut chains = String::from(
        "  chain postrouting {\n    type nat hook postrouting priority srcnat; policy accept;\n",
    );
    for net in networks {
        let word = if net.addr().is_ipv4() { "ip" } else { "ip6" };
        let net = net.trunc();
        let _ = writeln!(
            chains,
            "    oifname != \"{interface}\" {word} saddr {net} {word} daddr != {net} masquerade"
        );
    }
    // The tunnel's MTU is less than most, and many firewalls drop the messages that say so.
    let _ = writeln!(
        chains,
        "  }}\n  chain forward {{\n    type filter hook forward priority mangle; policy accept;\n    \
         oifname \"{interface}\" tcp flags syn / syn,rst tcp option maxseg size set rt mtu\n    \
         iifname \"{interface}\" tcp flags syn / syn,rst tcp option maxseg size set rt mtu\n  }}"
    );
    chains
}
