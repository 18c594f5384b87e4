//! The host's resolver: systemd-resolved, through its D-Bus interface (org.freedesktop.resolve1(5)). What a
//! link was told is forgotten with the link.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use tokio::time::timeout;
use tracing::{debug, info, warn};
use zbus::proxy;

use super::Layout;
use crate::{config::Dns, wire::foreign::Foreign};

#[proxy(
    interface = "org.freedesktop.resolve1.Manager",
    default_service = "org.freedesktop.resolve1",
    default_path = "/org/freedesktop/resolve1"
)]
trait Manager {
    #[zbus(name = "SetLinkDNS")]
    fn set_link_dns(&self, link: i32, addresses: &[(i32, Vec<u8>)]) -> zbus::Result<()>;
    fn set_link_domains(&self, link: i32, domains: &[(&str, bool)]) -> zbus::Result<()>;
    fn set_link_default_route(&self, link: i32, enable: bool) -> zbus::Result<()>;
    fn revert_link(&self, link: i32) -> zbus::Result<()>;
}

/// How long the resolver may take; D-Bus itself waits for ever.
const TELL: Duration = Duration::from_secs(3);
/// The same for a daemon that stops.
const REVERT: Duration = Duration::from_millis(250);

/// The link of the tunnel, as the resolver sees it.
#[derive(Debug)]
pub(crate) struct Resolver {
    link: u32,
    told: Option<(Dns, bool)>,
    /// Whether the resolver knows the link.
    is_known: bool,
}

impl Resolver {
    /// Nothing told yet about the link with this index, unless by an earlier run.
    #[must_use]
    pub(crate) fn new(link: u32, inherited: bool) -> Self {
        Self { link, told: None, is_known: inherited }
    }

    /// Tells the resolver what the layout says. Without it names are looked up as before, and a warning says
    /// so.
    pub(crate) async fn set(&mut self, layout: &Layout) {
        let wanted =
            (!layout.dns.servers.is_empty()).then(|| (layout.dns.clone(), layout.resolves_all()));
        let Some((dns, all)) = wanted.clone() else { return self.revert().await };
        if wanted == self.told {
            return;
        }
        match within(TELL, self.tell(&dns, all)).await {
            Ok(()) => {
                info!(servers = ?dns.servers, domains = ?dns.domains, all, "resolver set");
                (self.told, self.is_known) = (wanted, true);
            }
            Err(error) => warn!(
                reason = reason(&error),
                "tun.dns has no effect: systemd-resolved cannot be told"
            ),
        }
    }

    async fn tell(&self, dns: &Dns, all: bool) -> zbus::Result<()> {
        let resolver = manager().await?;
        let link = self.link as i32;
        let addresses: Vec<_> = dns.servers.iter().copied().map(address).collect();
        let mut domains: Vec<_> =
            dns.domains.iter().map(|domain| (domain.trim_end_matches('.'), false)).collect();
        if all {
            domains.push((".", true));
        }
        resolver.set_link_dns(link, &addresses).await?;
        resolver.set_link_domains(link, &domains).await?;
        resolver.set_link_default_route(link, all).await
    }

    /// Makes the resolver forget the link, if it was told of it.
    pub(crate) async fn revert(&mut self) {
        self.told = None;
        if !std::mem::take(&mut self.is_known) {
            return;
        }
        let reverted = async { manager().await?.revert_link(self.link as i32).await };
        if let Err(error) = within(REVERT, reverted).await {
            debug!(%error, "the resolver cannot be told to forget the link");
        }
    }
}

async fn within<T>(
    limit: Duration,
    asked: impl Future<Output = zbus::Result<T>>,
) -> zbus::Result<T> {
    let late = |_| zbus::Error::InputOutput(Arc::new(io::ErrorKind::TimedOut.into()));
    timeout(limit, asked).await.map_err(late)?
}

/// Whether the resolver answers; if not, why.
pub(crate) async fn is_there() -> Result<(), String> {
    let asked = async { Ok(manager().await?.inner().introspect().await?) };
    within(TELL, asked).await.map(drop).map_err(|error| reason(&error))
}

async fn manager() -> zbus::Result<ManagerProxy<'static>> {
    ManagerProxy::new(&zbus::Connection::system().await?).await
}

/// An address as D-Bus has it: its family (socket(2)) and its bytes.
fn address(address: IpAddr) -> (i32, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (nix::libc::AF_INET, address.octets().into()),
        IpAddr::V6(address) => (nix::libc::AF_INET6, address.octets().into()),
    }
}

fn reason(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(name, ..)
            if matches!(
                name.as_str(),
                "org.freedesktop.DBus.Error.ServiceUnknown"
                    | "org.freedesktop.systemd1.NoSuchUnit"
                    | "org.freedesktop.systemd1.UnitMasked"
            ) =>
        {
            "it is not running (systemctl enable --now systemd-resolved)".into()
        }
        zbus::Error::InputOutput(error) if error.kind() == io::ErrorKind::TimedOut => {
            "it does not answer".into()
        }
        zbus::Error::InputOutput(error) => format!("there is no D-Bus system bus ({error})"),
        error => Foreign::of(error).to_string(),
    }
}
