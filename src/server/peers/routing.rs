//! Which peer a packet is for: from the device, and from other peers.

use std::net::IpAddr;

use super::{HERE, Peer, Peers, Whereabouts};
use crate::{
    tunnel::{
        counters::{Counters, DropReason},
        device::PacketSink,
        egress::{self, Verdict},
    },
    wire::packet::{DETACH_UP_TO, Packet},
};

impl Peers {
    /// Queues packets from the server's side for their peers. Packets without a peer are counted in
    /// `counters`.
    pub fn route(&self, batch: &mut Vec<Packet>, counters: &Counters) {
        let mut run = Run::from(HERE);
        for packet in batch.drain(..) {
            match packet.addresses() {
                Some(addresses) => match run.find(self, addresses.destination) {
                    // The kernel gave it to us: it knows no other way.
                    Some(peer) if peer.whereabouts() == Whereabouts::Elsewhere => {
                        peer.counters.dropped(DropReason::Elsewhere, 1);
                    }
                    Some(peer) => run.add(peer, packet),
                    None => counters.dropped(DropReason::UnknownDestination, 1),
                },
                None => counters.dropped(DropReason::Malformed, 1),
            }
        }
        run.flush();
    }

    /// Delivers packets that came from `from`: those for other peers are queued for them, those for the server's
    /// side go to `device`, and those that `from` must not send are dropped.
    ///
    /// Those for a peer at another server, or on its way there, go to `device` as well: the kernel sends them there. With [`Self::by_routes`]
    /// so do those for a peer without a session: perhaps the kernel knows where it is. If not it gives them back, and
    /// [`Self::route`] queues them.
    pub fn deliver(&self, from: &Peer, batch: &mut Vec<Packet>, device: &dyn PacketSink) {
        let mut run = Run::from(from.sender);
        egress::deliver(batch, device, &from.counters, |addresses, packet| {
            if !from.addresses.contains(&addresses.source) {
                return Verdict::Refuse(DropReason::ForeignSource);
            }
            match run.find(self, addresses.destination) {
                Some(to) if to.is_reached_by_routes(self.by_routes) => Verdict::Deliver,
                Some(to) => {
                    let small = packet.size() <= DETACH_UP_TO;
                    run.add(to, if small { packet.detached() } else { packet.clone() });
                    Verdict::Taken
                }
                None => Verdict::Deliver,
            }
        });
        run.flush();
    }
}

/// Consecutive packets for one peer, queued together.
struct Run<'a> {
    sender: usize,
    /// The last destination and its peer.
    found: Option<(IpAddr, Option<&'a Peer>)>,
    peer: Option<&'a Peer>,
    packets: Vec<Packet>,
}

impl<'a> Run<'a> {
    fn from(sender: usize) -> Self {
        Self { sender, found: None, peer: None, packets: Vec::new() }
    }

    fn find(&mut self, peers: &'a Peers, destination: IpAddr) -> Option<&'a Peer> {
        match self.found {
            Some((last, peer)) if last == destination => peer,
            _ => {
                let peer = peers.with_address(destination).map(|peer| &**peer);
                self.found = Some((destination, peer));
                peer
            }
        }
    }

    fn add(&mut self, peer: &'a Peer, packet: Packet) {
        if self.peer.is_none_or(|current| !std::ptr::eq(current, peer)) {
            self.flush();
            self.peer = Some(peer);
        }
        self.packets.push(packet);
    }

    fn flush(&mut self) {
        if let Some(peer) = self.peer.take() {
            peer.enqueue(self.sender, &mut self.packets);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        config, identity::PublicKey, server::peers::Elsewhere, wire::packet::tests::packet,
    };

    fn peers() -> Peers {
        let peer = |name: &str, key: u8, addresses: &[&str]| config::Peer {
            name: name.into(),
            public_key: PublicKey::from([key; 32]),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        };
        let peers = Peers::new(&[
            peer("laptop", 1, &["10.66.0.2", "fd66::2"]),
            peer("phone", 2, &["10.66.0.3"]),
        ]);
        peers.iter().for_each(|peer| peer.queue.hold(false));
        peers
    }

    fn bytes(source: &str, destination: &str) -> Packet {
        packet(source.parse().unwrap(), destination.parse().unwrap(), 8).into()
    }

    fn queued(peer: &Peer) -> usize {
        let mut batch = Vec::new();
        let _ = peer.queue.pop(&mut batch, usize::MAX, usize::MAX);
        batch.len()
    }

    #[test]
    fn packets_find_the_peer_that_has_the_address() {
        let (peers, counters) = (peers(), Counters::default());
        let mut batch = vec![
            bytes("10.66.0.1", "10.66.0.2"),
            bytes("fd66::1", "fd66::2"),
            bytes("10.66.0.1", "10.66.0.3"),
            bytes("10.66.0.1", "10.66.0.4"),
            vec![0x45, 0].into(),
        ];
        peers.route(&mut batch, &counters);
        let counts: Vec<_> = peers.iter().map(|peer| queued(peer)).collect();
        assert_eq!(counts, [2, 1]);
        let dropped = counters.snapshot().dropped;
        assert_eq!(
            dropped,
            [(DropReason::Malformed, 1), (DropReason::UnknownDestination, 1)].into()
        );
    }

    /// A hundred packets of one flow, 140 kB: all of them leave, or those that a flow may take before it is bulk.
    #[tokio::test(start_paused = true)]
    async fn bulk_that_a_process_does_not_want_waits_in_its_next_session_and_not_in_that_of_another_one()
     {
        let peers = peers();
        let laptop = peers.with_key(PublicKey::from([1; 32])).unwrap();
        let is_held = |wanted: fn(&Peer)| {
            wanted(laptop);
            let [source, destination] = ["10.66.0.1", "10.66.0.2"].map(|it| it.parse().unwrap());
            let bulk = || packet(source, destination, 1380).into();
            peers.route(&mut (0..100).map(|_| bulk()).collect(), &Counters::default());
            let left = queued(laptop);
            laptop.queue.clear();
            left < 100
        };
        assert!(!is_held(|_| {}));
        assert!(is_held(|it| it.hold_bulk(7, true)));
        assert!(is_held(|it| it.begin_bulk(7)), "a new session of the same process");
        assert!(!is_held(|it| it.begin_bulk(8)), "another one may not know of it");
        assert!(is_held(|it| it.hold_bulk(7, true)));
        assert!(!is_held(|it| it.hold_bulk(7, false)));
    }

    #[test]
    fn a_forged_inner_source_is_counted_and_dropped() {
        let peers = peers();
        let laptop = peers.with_key(PublicKey::from([1; 32])).unwrap();
        let mut batch = vec![
            bytes("10.66.0.3", "10.66.0.1"),
            bytes("10.66.0.2", "10.66.0.1"),
            bytes("fd66::3", "fd66::1"),
            bytes("10.66.0.2", "10.66.0.3"),
        ];
        let (device, mut delivered) = mpsc::channel(8);
        peers.deliver(laptop, &mut batch, &device);
        assert_eq!(delivered.try_recv().unwrap(), bytes("10.66.0.2", "10.66.0.1"));
        assert!(delivered.try_recv().is_err(), "the others are not for the server");
        assert_eq!(laptop.counters.snapshot().dropped, [(DropReason::ForeignSource, 2)].into());
        let phone = peers.with_key(PublicKey::from([2; 32])).unwrap();
        assert_eq!(queued(phone), 1, "one peer's packet for another goes through");
        assert_eq!(laptop.counters.snapshot().received_packets, 2);
    }

    #[test]
    fn where_routes_say_who_is_where_a_peer_at_another_server_is_reached_through_the_device() {
        let peers = peers().by_routes(true);
        let [laptop, phone] = [1, 2].map(|key| peers.with_key(PublicKey::from([key; 32])).unwrap());
        phone.whereabouts.store(Whereabouts::Here as u8, Relaxed);
        let (device, mut delivered) = mpsc::channel(8);
        peers.deliver(laptop, &mut vec![bytes("10.66.0.2", "10.66.0.3")], &device);
        assert!(delivered.try_recv().is_err(), "the phone is here");
        assert_eq!(queued(phone), 1);
        phone.whereabouts.store(Whereabouts::Away as u8, Relaxed);
        let packet = bytes("10.66.0.2", "10.66.0.3");
        peers.deliver(laptop, &mut vec![packet.clone()], &device);
        assert_eq!(delivered.try_recv().unwrap(), packet);
        assert_eq!(queued(phone), 0);
        // The kernel knows no other server that has it, and gives the packet back.
        peers.route(&mut vec![packet], &Counters::default());
        assert_eq!(queued(phone), 1);
    }

    #[test]
    fn what_comes_for_a_peer_at_another_server_is_sent_there_or_dropped_and_never_waits() {
        let peers = peers();
        let [laptop, phone] = [1, 2].map(|key| peers.with_key(PublicKey::from([key; 32])).unwrap());
        let packet = bytes("10.66.0.2", "10.66.0.3");
        peers.route(&mut vec![packet.clone()], &Counters::default());
        let berlin = Elsewhere { server: "berlin".into(), process: Some(1), client: None };
        phone.set_elsewhere(Some(berlin));
        assert_eq!((queued(phone), phone.elsewhere()), (0, Some("berlin".into())));
        peers.route(&mut vec![packet.clone()], &Counters::default());
        assert_eq!(queued(phone), 0);
        assert_eq!(phone.counters.snapshot().dropped, [(DropReason::Elsewhere, 2)].into());
        let (device, mut delivered) = mpsc::channel(8);
        peers.deliver(laptop, &mut vec![packet.clone()], &device);
        assert_eq!(delivered.try_recv().unwrap(), packet);
        phone.set_elsewhere(None);
        peers.deliver(laptop, &mut vec![packet], &device);
        assert!(delivered.try_recv().is_err());
        assert_eq!(queued(phone), 1, "it waits again");
    }

    #[test]
    fn packets_for_a_peer_that_is_not_connected_wait_for_it() {
        let peers = peers();
        let laptop = peers.with_key(PublicKey::from([1; 32])).unwrap();
        laptop.queue.hold(true);
        peers.route(&mut vec![bytes("10.66.0.1", "10.66.0.2")], &Counters::default());
        assert_eq!(queued(laptop), 0);
        laptop.queue.hold(false);
        assert_eq!(queued(laptop), 1);
    }
}
