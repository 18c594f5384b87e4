//! Somebody else who gives the tunnel's interface its addresses, its routes in the main table and its resolvers in this
//! host's place, such as NetworkManager.

use ipnet::IpNet;
use tokio::sync::watch;

use super::Layout;

/// Hears what is wanted of the interface.
#[derive(Clone, Debug)]
pub(crate) struct Delegate(watch::Sender<Option<Layout>>);

impl Delegate {
    /// One that is told nothing yet, and what it will be told.
    #[cfg(feature = "networkmanager")]
    pub(crate) fn new() -> (Self, watch::Receiver<Option<Layout>>) {
        let (told, hears) = watch::channel(None);
        (Self(told), hears)
    }

    /// Tells it what is wanted, unless it knows.
    pub(super) fn tell(&self, layout: &Layout) {
        self.0.send_if_modified(|known| {
            let is_news = known.as_ref() != Some(layout);
            if is_news {
                *known = Some(layout.clone());
            }
            is_news
        });
    }
}

/// The addresses that stay with the host: a delegate takes one of each family.
pub(super) fn not_taken(addresses: &[IpNet]) -> Vec<IpNet> {
    let mut taken = [false; 2];
    let stays =
        |net: &&IpNet| std::mem::replace(&mut taken[usize::from(net.addr().is_ipv6())], true);
    addresses.iter().filter(stays).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delegate_takes_the_first_address_of_each_family() {
        let nets = ["10.0.0.2/32", "10.0.0.3/32", "fd66::2/128", "fd66::3/128"];
        let nets = nets.map(|net| net.parse().unwrap());
        assert_eq!(not_taken(&nets), [nets[1], nets[3]]);
    }

    #[cfg(feature = "networkmanager")]
    #[test]
    fn a_delegate_is_told_what_it_does_not_know() {
        let (delegate, mut hears) = Delegate::new();
        for (mtu, is_news) in [(1400, true), (1400, false), (1300, true)] {
            delegate.tell(&Layout { mtu, ..Layout::default() });
            assert_eq!(hears.has_changed().unwrap(), is_news, "{mtu}");
            assert_eq!(hears.borrow_and_update().as_ref().unwrap().mtu, mtu);
        }
    }
}
