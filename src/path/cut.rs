//! Cuts of links, for a drill: what is sent over a link that is cut is dropped, and so is what comes over it. Only this
//! process sees it.
//!
//! Every socket on a link, of the tunnel's connection as well as of probes, shares one flag. A cut is a lease:
//! it ends when the [`Lease`] is dropped.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use crate::mutex::Mutex;

/// Whether a link is cut. A clone is about the same link; nobody cuts the default one.
#[derive(Clone, Debug, Default)]
pub struct Cut(Arc<AtomicBool>);

impl Cut {
    pub(super) fn is_on(&self) -> bool {
        self.0.load(Relaxed)
    }

    /// Cuts the link until the lease is dropped; `None` if it is cut already.
    pub(crate) fn begin(&self) -> Option<Lease> {
        (!self.0.swap(true, Relaxed)).then(|| Lease(self.clone()))
    }
}

/// A cut under way.
#[derive(Debug)]
pub(crate) struct Lease(Cut);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.0.store(false, Relaxed);
    }
}

/// The flags of links, by name.
#[derive(Debug, Default)]
pub(crate) struct Cuts(Mutex<BTreeMap<String, Cut>>);

impl Cuts {
    /// The flag of this link. One without a socket or a lease is forgotten.
    pub(crate) fn of(&self, link: &str) -> Cut {
        let mut cuts = self.0.lock();
        cuts.retain(|name, cut| name == link || Arc::strong_count(&cut.0) > 1);
        cuts.entry(link.to_owned()).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_lasts_as_long_as_its_lease_and_there_is_one_at_a_time() {
        let cuts = Cuts::default();
        let socket = cuts.of("wlan0");
        let lease = cuts.of("wlan0").begin().unwrap();
        assert!(socket.is_on() && !cuts.of("wwan0").is_on());
        assert!(cuts.of("wlan0").begin().is_none());
        assert!(socket.is_on(), "the attempt at a second cut did not end the first");
        drop(lease);
        assert!(!socket.is_on());
        assert!(cuts.of("wlan0").begin().is_some());
    }

    #[test]
    fn a_link_without_sockets_is_forgotten_unless_it_is_cut() {
        let cuts = Cuts::default();
        let lease = cuts.of("wlan0").begin().unwrap();
        cuts.of("veth1");
        cuts.of("veth2");
        assert_eq!(cuts.0.lock().len(), 2);
        assert!(cuts.of("wlan0").is_on());
        drop(lease);
    }
}
