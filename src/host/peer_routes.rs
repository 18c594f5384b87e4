//! Routes to the peers whose session is here: through the TUN device to each of their inner addresses, a /32 or /128.
//! A routing daemon (BIRD, FRR) reads them in the kernel's table and tells other routers; see docs/fleet.md.
//!
//! ```text
//!  session ─▶ Held ─ changes ─▶ PeerRoutes::run ─▶ the kernel's main table
//!  netlink ─▶ hint ─▶ look ─────────┘    puts back what somebody deleted, removes what nobody holds
//! ```
//! A session only writes down what changed; nothing waits for the kernel. Changes of one address take effect in their
//! order, since what counts is who holds it when the kernel is told.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    convert::Infallible,
    net::IpAddr,
    sync::{Arc, MutexGuard},
    time::Duration,
};

use ipnet::IpNet;
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use nix::errno::Errno;
use rtnetlink::Error;
use tokio::{sync::Notify, time};
use tracing::{info, warn};

use super::interface::{Destination, through};
use crate::{
    clock,
    link::{
        monitor::Hints,
        netlink::{Netlink, os_error, unless},
    },
    mutex::Mutex,
};

/// Who has set a route, `rtm_protocol` of rtnetlink(7): "R" for a peer of roamd. /usr/share/iproute2/rt_protos has none
/// of this value.
pub(crate) const PROTOCOL: RouteProtocol = RouteProtocol::Other(b'R');
/// The wait from a hint to a look at the routes: our own changes are hints as well.
const SETTLE: Duration = Duration::from_millis(500);
/// The pauses before the kernel is asked again for what it was too busy for.
const PAUSES: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(20)..=Duration::from_secs(1);

/// The inner addresses whose peers have their session here.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    addresses: Mutex<Addresses>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Addresses {
    /// The session that holds each.
    held: HashMap<IpAddr, usize>,
    /// Those that came or went since the kernel was told.
    changed: BTreeSet<IpAddr>,
}

impl Held {
    /// From here on `session` holds these addresses, whoever held them before.
    pub(crate) fn add(&self, addresses: &[IpAddr], session: usize) {
        let mut all = self.lock();
        for address in addresses {
            if all.held.insert(*address, session).is_none() {
                all.changed.insert(*address);
            }
        }
        drop(all);
        self.0.changed.notify_one();
    }

    /// `session` gives these addresses up; those that another session holds by now stay. Returns whether it held any.
    pub(crate) fn remove(&self, addresses: &[IpAddr], session: usize) -> bool {
        let (mut all, mut held_any) = (self.lock(), false);
        for address in addresses {
            if all.held.get(address) == Some(&session) {
                all.held.remove(address);
                all.changed.insert(*address);
                held_any = true;
            }
        }
        drop(all);
        self.0.changed.notify_one();
        held_any
    }

    /// Whether `session` holds one of these addresses.
    pub(crate) fn is_of(&self, addresses: &[IpAddr], session: usize) -> bool {
        let all = self.lock();
        addresses.iter().any(|address| all.held.get(address) == Some(&session))
    }

    #[cfg(test)]
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.lock().held.contains_key(&address)
    }

    fn lock(&self) -> MutexGuard<'_, Addresses> {
        self.0.addresses.lock()
    }

    /// Waits for changes. Cancel safe.
    async fn changed(&self) {
        while self.lock().changed.is_empty() {
            self.0.changed.notified().await;
        }
    }

    /// The addresses that came or went since the last call, and whether each is held now.
    fn take_changes(&self) -> Vec<(IpAddr, bool)> {
        let mut all = self.lock();
        let changed = std::mem::take(&mut all.changed);
        changed.into_iter().map(|it| (it, all.held.contains_key(&it))).collect()
    }

    /// Tells the kernel of these addresses once more.
    fn repeat(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        self.lock().changed.extend(addresses);
    }

    /// Has the kernel told of every difference between what is held and what it has.
    fn compare(&self, installed: &HashSet<IpAddr>) {
        let all = &mut *self.lock();
        let missing = all.held.keys().filter(|it| !installed.contains(*it));
        let left = installed.iter().filter(|it| !all.held.contains_key(*it));
        all.changed.extend(missing.chain(left));
    }
}

/// The routes to peers through one interface.
#[derive(Debug)]
pub(crate) struct PeerRoutes {
    netlink: Netlink,
    index: u32,
    /// What the kernel has of ours, as far as we know.
    installed: HashSet<IpAddr>,
    /// What it refuses, for a reason that does not pass by itself.
    refused: HashSet<IpAddr>,
}

impl PeerRoutes {
    /// Routes through the interface with this index. Those of an earlier run are removed.
    pub(crate) async fn new(netlink: Netlink, index: u32) -> Self {
        let (installed, refused) = (HashSet::new(), HashSet::new());
        let mut routes = Self { netlink, index, installed, refused };
        routes.remove().await;
        routes
    }

    /// Gives the kernel the routes to what is `held`, and takes away the others, for as long as it is polled.
    pub(crate) async fn run(&mut self, held: Option<&Held>, mut hints: Hints) -> Infallible {
        let Some(held) = held else { return std::future::pending().await };
        let mut look_at = None;
        loop {
            tokio::select! {
                () = held.changed() => self.apply(held).await,
                () = hints.changed() => {
                    look_at.get_or_insert_with(|| clock::now() + SETTLE);
                }
                () = clock::sleep_until(look_at) => {
                    look_at = None;
                    self.look(held).await;
                }
            }
        }
    }

    /// Removes all of them. They come back with [`Self::run`] if they are held.
    pub(crate) async fn remove(&mut self) {
        match self.found().await {
            Ok(found) => {
                self.installed.clone_from(&found);
                for address in found {
                    if let Err(error) = self.delete(address).await {
                        warn!(%error, %address, "cannot remove the route to a peer");
                    }
                }
            }
            Err(error) => warn!(%error, "cannot look for routes to peers"),
        }
    }

    /// Makes the changes so far, and those that come while the kernel is too busy for them.
    async fn apply(&mut self, held: &Held) {
        let mut pause = *PAUSES.start();
        loop {
            let (mut busy, mut refused) = (Vec::new(), Vec::new());
            for (address, is_held) in held.take_changes() {
                self.refused.remove(&address);
                let changed = match is_held {
                    true => self.add(address).await,
                    false => self.delete(address).await,
                };
                match changed {
                    Ok(()) => {}
                    Err(error) if is_passing(&error) => busy.push(address),
                    Err(error) => refused.push((address, error)),
                }
            }
            self.note(refused);
            if busy.is_empty() {
                return;
            }
            held.repeat(busy);
            time::sleep(pause).await;
            pause = (2 * pause).min(*PAUSES.end());
        }
    }

    /// Notes what the kernel refuses, and says so once: thousands can be refused for one reason.
    fn note(&mut self, refused: Vec<(IpAddr, Error)>) {
        if let Some((address, error)) = refused.first() {
            let count = refused.len();
            warn!(%error, %address, count, "the kernel refuses routes to peers");
        }
        self.refused.extend(refused.into_iter().map(|(address, _)| address));
    }

    /// Compares what the kernel has with what is held. What it refused is tried again without another word.
    async fn look(&mut self, held: &Held) {
        match self.found().await {
            Ok(found) => {
                let lost = self.installed.iter().filter(|it| !found.contains(*it)).count();
                if lost > 0 {
                    info!(lost, "putting back routes to peers that somebody deleted");
                }
                self.installed = found;
                for address in std::mem::take(&mut self.refused) {
                    if self.add(address).await.is_err() {
                        self.refused.insert(address);
                    }
                }
                let known = self.installed.union(&self.refused).copied().collect();
                held.compare(&known);
            }
            Err(error) => warn!(%error, "cannot look for routes to peers"),
        }
    }

    async fn add(&mut self, address: IpAddr) -> Result<(), Error> {
        if !self.installed.contains(&address) {
            self.netlink.handle().route().add(self.message(address)).execute().await?;
            self.installed.insert(address);
        }
        Ok(())
    }

    async fn delete(&mut self, address: IpAddr) -> Result<(), Error> {
        if self.installed.contains(&address) {
            let mut message = self.message(address);
            // Of any scope (fib_table_delete in the kernel's fib_trie.c).
            message.header.scope = RouteScope::NoWhere;
            let request = self.netlink.handle().route().del(message);
            unless(Errno::ESRCH, request.execute().await)?;
            self.installed.remove(&address);
        }
        Ok(())
    }

    fn message(&self, address: IpAddr) -> RouteMessage {
        let mut message = Destination { net: address.into(), table: None }.message(self.index);
        message.header.protocol = PROTOCOL;
        message
    }

    /// What the kernel has of ours.
    async fn found(&self) -> Result<HashSet<IpAddr>, Error> {
        let found = through(&self.netlink, self.index, Some(PROTOCOL)).await?;
        Ok(found.into_iter().filter_map(|it| host(it.net)).collect())
    }
}

/// The address of a route to a single one.
fn host(net: IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// Whether the kernel may take the same a moment later.
fn is_passing(error: &Error) -> bool {
    let passing = [Errno::EBUSY, Errno::ENOBUFS, Errno::ENOMEM, Errno::EAGAIN, Errno::EINTR];
    os_error(error).is_some_and(|error| passing.contains(&Errno::from_raw(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(last: &[u8]) -> Vec<IpAddr> {
        last.iter().map(|last| IpAddr::from([10, 66, 0, *last])).collect()
    }

    fn changes(held: &Held) -> Vec<(u8, bool)> {
        let changes = held.take_changes().into_iter();
        let last = |address| match address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(address) => panic!("{address}"),
        };
        changes.map(|(address, is_held)| (last(address), is_held)).collect()
    }

    #[test]
    fn what_came_and_went_between_two_looks_is_told_as_it_is_now() {
        let held = Held::default();
        held.add(&addresses(&[2, 3]), 1);
        held.remove(&addresses(&[2]), 1);
        assert_eq!(changes(&held), [(2, false), (3, true)]);
        assert_eq!(changes(&held), []);
        held.remove(&addresses(&[3]), 1);
        held.add(&addresses(&[3]), 2);
        assert_eq!(changes(&held), [(3, true)]);
    }

    #[test]
    fn the_end_of_a_session_takes_nothing_from_the_one_that_follows_it() {
        let held = Held::default();
        held.add(&addresses(&[2, 3]), 1);
        held.add(&addresses(&[3, 4]), 2);
        let _ = held.take_changes();
        held.remove(&addresses(&[2, 3]), 1);
        assert_eq!(changes(&held), [(2, false)]);
    }

    #[test]
    fn a_look_tells_of_what_is_missing_and_of_what_is_left_over() {
        let held = Held::default();
        held.add(&addresses(&[2, 3]), 1);
        let _ = held.take_changes();
        held.compare(&addresses(&[3, 4]).into_iter().collect());
        assert_eq!(changes(&held), [(2, true), (4, false)]);
    }

    #[test]
    fn a_busy_kernel_is_asked_again_and_one_that_refuses_is_not() {
        let error = |errno: Errno| {
            let mut message = rtnetlink::packet_core::ErrorMessage::default();
            message.code = std::num::NonZeroI32::new(-(errno as i32));
            Error::NetlinkError(message)
        };
        assert!(is_passing(&error(Errno::EBUSY)) && is_passing(&error(Errno::ENOBUFS)));
        assert!(!is_passing(&error(Errno::EEXIST)) && !is_passing(&error(Errno::ENODEV)));
    }
}
