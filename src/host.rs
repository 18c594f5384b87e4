//! What a tunnel changes on its host: addresses and routes of its interface, routing rules, firewall,
//! resolver. All of it is undone when the tunnel stops.
//!
//! ```text
//!  session ─▶ Layout ─▶ Host ─┬─▶ tunnel::interface   addresses, routes
//!  netlink ─▶ hint ──────────▶├─▶ rules               who else goes into the tunnel; put back when deleted
//!                             ├─▶ aside               at home: the link there comes before the tunnel
//!                             ├─▶ firewall            kill switch
//!                             ├─▶ reverse_path        strict filters let the server's packets through
//!                             └─▶ resolver            systemd-resolved
//! ```
//!
//! Where another program manages networks, addresses, routes of the main table and resolvers are its to set: the host
//! tells its [`delegate`] what is wanted.
//!
//! What would outlive a daemon that is killed is written down in its [`record`].

pub(crate) mod aside;
pub(crate) mod delegate;
pub(crate) mod device;
pub(crate) mod facts;
pub(crate) mod file;
pub(crate) mod firewall;
pub(crate) mod instance;
pub(crate) mod interface;
pub(crate) mod label;
#[cfg(feature = "dbus")]
pub(crate) mod metered;
pub(crate) mod nat;
pub(crate) mod nft;
pub(crate) mod peer_routes;
pub(crate) mod record;
#[cfg(feature = "dbus")]
pub(crate) mod resolver;
pub(crate) mod reverse_path;
mod rule_set;
pub(crate) mod rules;
pub(crate) mod sysctl;
#[cfg(not(feature = "dbus"))]
mod without_dbus;

#[cfg(not(feature = "dbus"))]
pub(crate) use without_dbus::{metered, resolver};

use std::{
    collections::HashSet, convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration,
};

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use self::{
    aside::Aside,
    delegate::Delegate,
    facts::Facts,
    firewall::{Firewall, FirewallError},
    interface::{Destination, Interface, InterfaceError, LeftOut},
    nft::NftError,
    record::{Record, RecordError},
    resolver::Resolver,
    reverse_path::ReversePaths,
    rules::Rules,
    sysctl::Sysctls,
};
use crate::{
    clock,
    config::{Dns, Exclude},
    link::{MARK, monitor::Hints, netlink::Netlink},
};

/// The table with the routes of a tunnel that takes everything.
pub(crate) const TABLE: u32 = MARK;
/// Wait before restoring: rules are usually deleted several at a time.
const SETTLE: Duration = Duration::from_millis(100);
/// How long a delegate has to give the interface an address, and from one look for it to the next.
const DELEGATED: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(5);

/// What a tunnel wants of its host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Layout {
    /// The interface's MTU in bytes.
    pub mtu: u16,
    /// The interface's addresses.
    pub addresses: Vec<IpNet>,
    /// The tunnel's own networks: they go into the tunnel whatever else does.
    pub networks: Vec<IpNet>,
    /// What goes into the tunnel.
    pub routes: Vec<IpNet>,
    /// What is meant for the tunnel, but the server gave no address of its family: it goes nowhere.
    pub blocked: Vec<IpNet>,
    /// What stays outside.
    pub exclude: Exclude,
    /// What may go into the tunnel only, whether there is one or not.
    pub sealed: Vec<IpNet>,
    /// Who is asked about names.
    pub dns: Dns,
    /// Whether the configuration leads all traffic into the tunnel; only one tunnel can.
    pub everything: bool,
    /// Whether the tunnel leads nothing into itself for a while, but its own networks.
    pub is_open: bool,
    /// Networks of home: what comes from the tunnel's own addresses goes there through it, although a link may lead there.
    pub home: Vec<IpNet>,
    /// The link over which everything goes while the tunnel stands aside at home, but what comes from its own addresses.
    pub aside: Option<String>,
    /// The servers' addresses: only there may go what carries the tunnel.
    pub servers: Vec<SocketAddr>,
    /// The servers' TCP ports: there it may go as well.
    pub tcp_ports: Vec<u16>,
    /// TCP ports of those who lead to the server: there it may go, too.
    pub detours: Vec<SocketAddr>,
    /// Links that never carry it, as the configuration names them.
    pub ignored: Vec<String>,
}

impl Layout {
    /// Whether all other traffic goes into the tunnel.
    #[must_use]
    pub(crate) fn is_full(&self) -> bool {
        self.routes.iter().any(|route| route.prefix_len() == 0)
    }

    /// Whether rules lead into the tunnel: for a family that is there as a whole, or should be and goes nowhere.
    pub(crate) fn has_rules(&self) -> bool {
        self.routes.iter().chain(&self.blocked).any(|net| net.prefix_len() == 0)
    }

    /// The same with nothing led into the tunnel but its own networks, at home either. What is held back stays so.
    #[must_use]
    pub(crate) fn withdrawn(&self) -> Self {
        let (routes, blocked, dns) = (Vec::new(), Vec::new(), Dns::default());
        let (is_open, home, aside) = (true, Vec::new(), None);
        Self { routes, blocked, dns, is_open, home, aside, ..self.clone() }
    }

    /// The same with nothing held back, either.
    #[must_use]
    pub(crate) fn opened(&self) -> Self {
        Self { sealed: Vec::new(), ..self.withdrawn() }
    }

    /// Whether the resolvers are asked about all names: those of a full tunnel, and those without search domains.
    #[cfg(feature = "dbus")]
    #[must_use]
    pub(crate) fn resolves_all(&self) -> bool {
        self.is_full() || self.dns.domains.is_empty()
    }

    /// The interface's routes in the main table.
    #[cfg(feature = "networkmanager")]
    #[must_use]
    pub(crate) fn main_routes(&self) -> Vec<IpNet> {
        // Only those of other tables depend on the interface's index.
        let main = self.destinations(0).into_iter().filter(|it| it.table.is_none());
        main.map(|it| it.net).collect()
    }

    /// The same at home: what the tunnel takes goes over `link` for as long as that is there, but for what comes from the inner
    /// addresses, and what goes to the tunnel's own networks. A resolver for all names is a matter of the network there; one for
    /// some domains knows what that one may not.
    #[must_use]
    pub(crate) fn aside(&self, link: &str) -> Self {
        let dns = if self.dns.domains.is_empty() { Dns::default() } else { self.dns.clone() };
        Self { dns, aside: Some(link.into()), ..self.clone() }
    }

    /// The routes of the interface with this index.
    fn destinations(&self, index: u32) -> Vec<Destination> {
        let table = self.has_rules().then_some(TABLE);
        let routes = self.routes.iter().map(|net| Destination { net: *net, table });
        // In the main table, so that what stays outside of a full tunnel does not hide them.
        let networks = self.networks.iter().map(|net| Destination { net: *net, table: None });
        let mut all: Vec<_> = networks.chain(routes).collect();
        all.extend(aside::destinations(self, index));
        // The user may name a network of the tunnel's.
        let mut seen = HashSet::with_capacity(all.len());
        all.retain(|it| seen.insert(*it));
        all
    }

    /// The same where the kernel does not take all routes: a family that should be in the tunnel as a whole, and
    /// cannot be, is not let around it.
    fn without(mut self, lacks: impl Fn(IpNet) -> bool) -> Self {
        self.blocked.extend(self.routes.extract_if(.., |net| net.prefix_len() == 0 && lacks(*net)));
        self
    }
}

/// Why the host is not as a layout says.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("{0}")]
    Record(#[from] RecordError),
    #[error("{0}")]
    Firewall(#[from] FirewallError),
    #[error("cannot remove firewall rules of an earlier run: {0}")]
    Tables(NftError),
    #[error("cannot change routing rules: {0}")]
    Rules(rtnetlink::Error),
    #[error("{0}")]
    Interface(#[from] InterfaceError),
    #[error("the task that sets up the host has ended")]
    Gone,
}

/// What becomes of the kill switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    /// It stays when the daemon is gone.
    Kept,
    /// It goes, too.
    Lifted,
}

/// Sets up what a session needs of its host.
pub(crate) trait Setup: Send {
    /// Makes the host as the layout says; what stays is not touched.
    fn set(&mut self, layout: Layout) -> impl Future<Output = Result<(), HostError>> + Send;
}

/// Tells the [`Host`] what is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wish(mpsc::Sender<Order>);

type Order = (Layout, oneshot::Sender<Result<(), HostError>>);

impl Setup for Wish {
    async fn set(&mut self, layout: Layout) -> Result<(), HostError> {
        let (done, outcome) = oneshot::channel();
        self.0.send((layout, done)).await.map_err(|_gone| HostError::Gone)?;
        outcome.await.map_err(|_gone| HostError::Gone)?
    }
}

/// Waits for a change to firewall tables, where the kernel has such.
async fn next(tables: &mut Option<nft::Changes>) {
    match tables {
        Some(tables) => tables.next().await,
        None => std::future::pending().await,
    }
}

/// What a host tells, as it changes.
#[derive(Clone, Debug)]
pub(crate) struct Reports {
    /// What it has without the tunnel.
    pub facts: watch::Receiver<Facts>,
    /// What the tunnel wants and the kernel refuses.
    pub left_out: watch::Receiver<Vec<LeftOut>>,
}

impl Default for Reports {
    /// A host that has nothing and refuses nothing.
    fn default() -> Self {
        Self {
            facts: watch::Sender::default().subscribe(),
            left_out: watch::Sender::default().subscribe(),
        }
    }
}

impl Reports {
    /// Returns when the host has something else than before. Cancel safe.
    pub(crate) async fn changed(&mut self) {
        if self.facts.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// A client's host.
#[derive(Debug)]
pub(crate) struct Host {
    netlink: Netlink,
    interface: Interface,
    facts: watch::Sender<Facts>,
    /// What was wished last.
    layout: Option<Layout>,
    rules: Rules,
    /// They wait for the routes of the interface.
    rules_due: bool,
    aside: Aside,
    firewall: Firewall,
    reverse_paths: Arc<ReversePaths>,
    resolver: Resolver,
    /// Who sets addresses, routes of the main table and resolvers, if that is not us.
    delegate: Option<Delegate>,
    orders: mpsc::Receiver<Order>,
    hints: Hints,
    record: Record,
    /// Whether rules and resolver are an earlier run's, which handed its interface over.
    inherited: bool,
}

/// Before the task runs that obeys a [`Wish`].
impl Setup for Host {
    async fn set(&mut self, layout: Layout) -> Result<(), HostError> {
        self.lay_out(layout).await
    }
}

impl Host {
    /// The host with the tunnel's interface; whether that one is `inherited`, with rules and resolvers, from
    /// an earlier run.
    pub(crate) fn new(
        interface: Interface,
        inherited: bool,
        record: Record,
        hints: Hints,
    ) -> io::Result<(Self, Wish)> {
        let (wish, orders) = mpsc::channel(1);
        let host = Self {
            reverse_paths: Arc::new(ReversePaths::new(interface.index(), record.clone())?),
            rules: Rules::new(Netlink::open()?, record.clone()),
            rules_due: false,
            aside: Aside::new(Netlink::open()?, interface.index()),
            firewall: Firewall::new(interface.name(), record.clone()),
            resolver: Resolver::new(interface.index(), inherited),
            netlink: Netlink::open()?,
            interface,
            facts: watch::Sender::default(),
            layout: None,
            delegate: None,
            orders,
            hints,
            record,
            inherited,
        };
        Ok((host, Wish(wish)))
    }

    /// The same host, of which `delegate` sets addresses, routes of the main table and resolvers.
    #[must_use]
    pub(crate) fn delegated(self, delegate: Option<Delegate>) -> Self {
        Self { delegate, ..self }
    }

    /// What it tells from here on.
    #[must_use]
    pub(crate) fn reports(&self) -> Reports {
        Reports { facts: self.facts.subscribe(), left_out: self.interface.left_out() }
    }

    /// Looks at what the host has without the tunnel.
    pub(crate) async fn survey(&self) {
        match facts::survey(&self.netlink, self.interface.index()).await {
            Ok(found) => {
                self.facts.send_if_modified(|known| {
                    let is_new = *known != found;
                    *known = found;
                    is_new
                });
            }
            Err(error) => warn!(%error, "cannot look at this host's addresses and routes"),
        }
    }

    /// Does what is wished, and what others undid again, for as long as it is polled.
    pub(crate) async fn run(&mut self) -> Infallible {
        let (reverse_paths, hints) = (self.reverse_paths.clone(), self.hints.again());
        tokio::select! {
            never = reverse_paths.keep(hints) => never,
            never = self.look_after() => never,
        }
    }

    async fn look_after(&mut self) -> Infallible {
        let mut tables = nft::Changes::open()
            .inspect_err(|error| warn!(%error, "cannot hear of changes to firewall rules"))
            .ok();
        // Meanwhile orders are obeyed: where a link is gone, the routes of a tunnel that stood aside are one.
        let (mut tables_at, mut routes_at) = (None, None);
        loop {
            tokio::select! {
                biased;
                Some((layout, done)) = self.orders.recv() => {
                    // The caller may not wait any more.
                    let _ = done.send(self.lay_out(layout).await);
                }
                () = clock::sleep_until(tables_at) => {
                    tables_at = None;
                    match self.firewall.restore().await {
                        Ok(true) => info!("put back the firewall rules that somebody changed"),
                        Ok(false) => {}
                        Err(error) => warn!(%error, "cannot look after firewall rules"),
                    }
                }
                () = clock::sleep_until(routes_at) => {
                    routes_at = None;
                    if let Err(error) = self.restore().await {
                        warn!(%error, "cannot look after routes and rules");
                    }
                }
                () = next(&mut tables) => {
                    tables_at.get_or_insert_with(|| clock::now() + SETTLE);
                }
                () = self.hints.changed() => {
                    routes_at.get_or_insert_with(|| clock::now() + SETTLE);
                }
            }
        }
    }

    /// Makes the host as the layout says; an error only where the kill switch or routing rules cannot be set.
    async fn lay_out(&mut self, layout: Layout) -> Result<(), HostError> {
        let takes = layout.everything;
        if takes {
            self.record.take_everything(true)?;
        }
        self.change(&layout).await?;
        if !takes {
            self.record.take_everything(false)?;
        }
        Ok(())
    }

    async fn change(&mut self, layout: &Layout) -> Result<(), HostError> {
        // The tunnel takes all again before anything else can fail.
        if layout.aside.is_none() {
            self.aside.set(layout).await.map_err(HostError::Rules)?;
        }
        // What may not leave is held back before anything else changes.
        self.firewall.set(layout).await?;
        self.record.remove_tables(Some(self.interface.name())).await.map_err(HostError::Tables)?;
        // What an earlier run set, perhaps as a server.
        Sysctls::new(self.record.clone()).restore();
        self.reverse_paths.set(layout).await;
        if layout.addresses.is_empty() {
            // No server has said yet what belongs to the tunnel. What the last run handed over carries on.
            if self.inherited && layout.everything && !layout.is_open {
                return Ok(());
            }
            (self.layout, self.rules_due) = (None, false);
            return self.remove_rules().await;
        }
        self.rules.hold_back(layout).await.map_err(HostError::Rules)?;
        let Layout { mtu, addresses, .. } = layout;
        let mut routes = layout.destinations(self.interface.index());
        let own = match &self.delegate {
            None => addresses.clone(),
            Some(delegate) => {
                delegate.tell(layout);
                // One that was ours may be the delegate's from here on.
                self.interface.leave(addresses);
                // Packets that are led into the tunnel before it has an address would have another sender.
                self.await_an_address(addresses).await;
                routes.retain(|it| it.table.is_some());
                delegate::not_taken(addresses)
            }
        };
        let is_set = self.interface.set(*mtu, &own, &routes).await.inspect_err(|error| {
            warn!(%error, "cannot set the interface up, trying again");
        });
        // Without the routes of a family, what holds it back must stay.
        self.rules_due = is_set.is_err() && layout.has_rules();
        let before = self.layout.replace(layout.clone());
        let left = layout.aside.is_none() && before.is_some_and(|before| before.aside.is_some());
        let ruled = match self.effective() {
            Some(layout) if !self.rules_due => {
                self.rules.set(&layout).await.map_err(HostError::Rules)
            }
            Some(_) | None => Ok(()),
        };
        if layout.aside.is_some() {
            self.aside.set(layout).await.map_err(HostError::Rules)?;
        }
        if self.delegate.is_none() {
            self.resolver.set(layout).await;
        }
        if left {
            // Its network may be gone, which is inside now.
            self.survey().await;
        }
        ruled
    }

    /// Waits until the delegate has given the interface one of these addresses; not for long.
    async fn await_an_address(&self, addresses: &[IpNet]) {
        let given = async {
            while !self.interface.has_any(addresses).await {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(DELEGATED, given).await.is_err() {
            let interface = self.interface.name();
            warn!(interface, ?addresses, "nobody gave the interface its addresses yet");
        }
    }

    /// What the kernel took of the layout.
    fn effective(&self) -> Option<Layout> {
        Some(self.layout.clone()?.without(|net| self.interface.lacks(net)))
    }

    async fn remove_rules(&mut self) -> Result<(), HostError> {
        self.rules.remove().await.map_err(HostError::Rules)
    }

    async fn restore(&mut self) -> Result<(), HostError> {
        self.survey().await;
        let before = self.effective();
        let interface = self.interface.mend().await?;
        let now = self.effective();
        if let Some(layout) = now.filter(|now| self.rules_due || before.as_ref() != Some(now)) {
            self.rules.set(&layout).await.map_err(HostError::Rules)?;
            self.rules_due = false;
        }
        let mut rules = self.rules.restore().await.map_err(HostError::Rules)?;
        rules += self.aside.restore().await.map_err(HostError::Rules)?;
        if interface + rules > 0 {
            info!(interface, rules, "put back what was missing");
        }
        Ok(())
    }

    /// Undoes everything but the interface, which vanishes with its device.
    pub(crate) async fn undo(&mut self, seal: Seal) {
        self.resolver.revert().await;
        if let Err(error) = self.aside.set(&Layout::default()).await {
            warn!(%error, "cannot remove routing rules");
        }
        if let Err(error) = self.remove_rules().await {
            warn!(%error, "cannot undo everything");
        }
        if let Err(error) = self.reverse_paths.remove().await {
            warn!(%error, "cannot remove routing rules");
        }
        if seal == Seal::Lifted
            && let Err(error) = nft::within(nft::STOP, self.firewall.remove()).await
        {
            warn!(%error, "cannot remove firewall rules");
        }
    }
}
