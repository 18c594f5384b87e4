//! A server's way to other networks for its peers: forwarding, and this host's addresses in place of theirs.

use std::{fmt::Write as _, io};

use ipnet::IpNet;
use tracing::{info, warn};

use super::{
    nft::{self, NftError},
    record::Record,
    sysctl::{self, Sysctls},
};

/// Why peers cannot reach other networks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NatError {
    #[error("tun.nat: cannot turn forwarding on: {0}")]
    Forwarding(io::Error),
    #[error("tun.nat: cannot set firewall rules: {0}")]
    Rules(NftError),
    #[error("cannot remove the firewall rules of an earlier run: {0}")]
    Tables(NftError),
}

impl NatError {
    /// The system's error, if it is one.
    pub(crate) fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Forwarding(error) => Some(error),
            Self::Rules(error) | Self::Tables(error) => error.io_error(),
        }
    }
}

/// Masquerading for the peers, until [`Nat::remove`].
#[derive(Debug)]
pub(crate) struct Nat {
    record: Record,
    sysctls: Sysctls,
}

impl Nat {
    /// Takes over what an earlier run may have left.
    #[must_use]
    pub(crate) fn new(record: Record) -> Self {
        Self { sysctls: Sysctls::new(record.clone()), record }
    }

    /// Sets it up for the networks of `interface`. On failure nothing is left of it.
    pub(crate) async fn set(&self, interface: &str, networks: &[IpNet]) -> Result<(), NatError> {
        let set = self.try_set(interface, networks).await;
        if set.is_err() {
            self.remove().await;
        }
        set
    }

    async fn try_set(&self, interface: &str, networks: &[IpNet]) -> Result<(), NatError> {
        self.record.remove_tables(Some(interface)).await.map_err(NatError::Tables)?;
        self.forward(networks).map_err(NatError::Forwarding)?;
        self.record.update(|changes| _ = changes.tables.insert(interface.into()));
        let (table, chains) = (nft::table(interface), chains(interface, networks));
        nft::replace(&table, &chains).await.map_err(NatError::Rules)?;
        info!(table, "peers reach other networks with this host's addresses");
        Ok(())
    }

    fn forward(&self, networks: &[IpNet]) -> io::Result<()> {
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

    /// Takes everything back, also what an earlier run has left.
    pub(crate) async fn remove(&self) {
        self.sysctls.restore();
        if let Err(error) = nft::within(nft::STOP, self.record.remove_tables(None)).await {
            warn!(%error, "cannot remove firewall rules");
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
