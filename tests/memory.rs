//! What packets that wait keep in memory, counted by the allocator. Each packet here is a slice of a
//! buffer of its own of 64 KB, as one that comes with 44 others of which nobody keeps anything.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::{Duration, Instant},
};

use bytes::Bytes;
use roamd::internals::{
    config,
    identity::PublicKey,
    server::peers::{Peer, Peers},
    tunnel::{
        device::PacketSink,
        queue::Queue,
        repair::{Moment, Receiver, Sender},
    },
    wire::{
        datagram::Datagram,
        fragment::{Fragmenter, Joiner},
        packet::Packet,
    },
};

const KIB: isize = 1024;
const MIB: isize = 1024 * KIB;
const BUFFER: usize = 64 * 1024;
const CAPACITY: usize = 1024 * 1024;
const PACKETS: u16 = 8000;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends does not count.
    let _ = LIVE.try_with(|live| live.set(live.get() + bytes));
}

// SAFETY: all calls are the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// The server's side, where no packet of these tests goes.
struct Nowhere;

impl PacketSink for Nowhere {
    fn send(&self, batch: &[Packet]) -> u64 {
        batch.len() as u64
    }

    fn completes_checksums(&self) -> bool {
        true
    }
}

fn live() -> isize {
    LIVE.with(Cell::get)
}

/// The slice of a buffer that begins with `bytes`.
fn slice_with(bytes: &[u8]) -> Bytes {
    let mut buffer = Vec::with_capacity(BUFFER);
    buffer.extend_from_slice(bytes);
    buffer.resize(BUFFER, 0);
    Bytes::from(buffer).slice(..bytes.len())
}

/// A packet from 10.66.0.2 to 10.66.0.3, of the flow that `port` makes it.
fn packet(protocol: u8, port: u16, length: usize) -> Packet {
    match Datagram::decode(slice_with(&ip(protocol, port, length))) {
        Ok(Datagram::Packet(packet)) => packet,
        other => panic!("not a packet: {other:?}"),
    }
}

fn ip(protocol: u8, port: u16, length: usize) -> Vec<u8> {
    let mut ip = vec![0; length];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&(length as u16).to_be_bytes());
    ip[9] = protocol;
    ip[12..20].copy_from_slice(&[10, 66, 0, 2, 10, 66, 0, 3]);
    if length > 22 {
        ip[20..22].copy_from_slice(&port.to_be_bytes());
    }
    ip
}

/// Queues packets of many lengths, protocols and flows, each as a batch of its own.
fn fill(queue: &Queue) {
    for number in 0..PACKETS {
        let protocol = [6, 17, 1][usize::from(number % 3)];
        let length = [20, 28, 52, 600, 1400][usize::from(number % 5)];
        let _ = queue.push(&mut vec![packet(protocol, number, length)]);
    }
}

#[test]
fn a_held_queue_takes_twice_its_capacity_at_most() {
    let before = live();
    let queue = Queue::new(CAPACITY);
    fill(&queue);
    let held = live() - before;
    assert!((MIB / 4..2 * MIB).contains(&held), "{held} bytes for {} that wait", queue.bytes());
}

#[test]
fn a_queue_that_flows_takes_some_batches_of_buffers_more() {
    let before = live();
    let queue = Queue::new(CAPACITY);
    queue.hold(false);
    fill(&queue);
    let held = live() - before;
    assert!(held < 2 * MIB + 257 * BUFFER.cast_signed(), "{held} bytes for {}", queue.bytes());
}

#[test]
fn a_queue_that_ran_empty_keeps_little() {
    let before = live();
    let queue = Queue::new(CAPACITY);
    fill(&queue);
    queue.hold(false);
    let mut batch = Vec::new();
    let _ = queue.pop(&mut batch, usize::MAX, usize::MAX);
    drop(batch);
    let kept = live() - before;
    assert!(kept < 256 * KIB, "{kept} bytes, of which 128 packets are remembered");
}

#[test]
fn copies_kept_for_retransmission_use_their_own_size() {
    let before = live();
    let queue = Queue::new(CAPACITY);
    queue.hold(false);
    for number in 0..PACKETS {
        let _ = queue.push(&mut vec![packet(6, number, 52)]);
        let _ = queue.pop(&mut Vec::new(), 9, usize::MAX);
    }
    let kept = live() - before;
    assert!(kept < 64 * KIB, "{kept} bytes");
}

#[test]
fn pieces_of_an_incomplete_packet_use_their_own_size() {
    let before = live();
    let (mut fragmenter, mut joiner) = (Fragmenter::default(), Joiner::default());
    for _ in 0..1000 {
        let pieces: Vec<_> =
            fragmenter.split(&[0x45; 16 * 1400], 1404).into_iter().flatten().collect();
        for piece in &pieces[1..] {
            if let Ok(Datagram::Fragment(fragment)) = Datagram::decode(slice_with(piece)) {
                joiner.join(fragment);
            }
        }
    }
    drop(fragmenter);
    let kept = live() - before;
    assert!((MIB..2 * MIB).contains(&kept), "{kept} bytes for 64 packets of 15 pieces");
}

#[expect(clippy::disallowed_methods, reason = "any moment will do")]
fn moment() -> Moment {
    Moment { now: Instant::now(), rtt: Duration::from_secs(1) }
}

#[test]
fn what_was_sent_is_kept_in_its_own_size() {
    let (before, mut sender, moment) = (live(), Sender::default(), moment());
    for number in 0..2 * PACKETS {
        let length = [52, 600, 1400][usize::from(number % 3)];
        let mut ip = ip(6, number, length);
        ip[32] = 0x50;
        let packet = Packet::from(ip);
        sender.number(&[packet], moment, &mut Vec::new());
    }
    let kept = live() - before;
    assert!((7 * MIB..10 * MIB).contains(&kept), "{kept} bytes");
}

#[test]
fn what_waits_for_a_missing_packet_is_its_own_size() {
    for length in [24, 600, 1400] {
        let (before, mut receiver, moment) = (live(), Receiver::default(), moment());
        // All of them wait for packet 0.
        for number in 1..=(12 << 20) / (length as u32 + 160) {
            let [_, number @ ..] = number.to_be_bytes();
            let header = [&[3][..], &number, &[0, 1]].concat();
            let bytes = [header, ip(6, 1, length)].concat();
            // Smallest packets are many.
            let datagram = if length < 100 { bytes.into() } else { slice_with(&bytes) };
            let Ok(Datagram::Numbered(numbered)) = Datagram::decode(datagram) else { panic!() };
            receiver.receive(numbered, moment, &mut Vec::new());
        }
        let held = live() - before;
        assert!(held < 9 * MIB, "{held} bytes of packets of {length}");
    }
}

/// Peers with the addresses 10.66.0.2 and up.
fn peers(count: u8) -> Peers {
    let peer = |number: u8| config::Peer {
        name: format!("peer {number}"),
        public_key: PublicKey::from([number; 32]),
        addresses: vec![[10, 66, 0, number].into()],
    };
    Peers::new(&(2..2 + count).map(peer).collect::<Vec<_>>())
}

/// Has the first peer send to the second one.
fn flood(peers: &Peers, is_connected: bool, length: usize) -> isize {
    let [from, to]: [&Peer; 2] =
        [2, 3].map(|number| &**peers.with_key(PublicKey::from([number; 32])).expect("a peer"));
    to.queue.hold(!is_connected);
    let before = live();
    for number in 0..PACKETS {
        peers.deliver(from, &mut vec![packet(17, number, length)], &Nowhere);
    }
    live() - before
}

#[test]
fn a_peer_cannot_fill_the_memory_through_another_one() {
    for (is_connected, length, bound) in
        [(false, 20, 2 * MIB), (false, 28, 2 * MIB), (false, 1400, 2 * MIB), (true, 28, 2 * MIB)]
    {
        let kept = flood(&peers(2), is_connected, length);
        assert!(kept < bound, "{kept} bytes of {length}-byte packets, connected: {is_connected}");
    }
}

/// A packet of 10.66.0.`from` to 10.66.0.`to`.
fn between(from: u8, to: u8, protocol: u8, port: u16, length: usize) -> Packet {
    let mut ip = ip(protocol, port, length);
    (ip[15], ip[19]) = (from, to);
    Packet::from(ip)
}

#[test]
fn a_peer_cannot_fill_the_memory_through_all_others() {
    for length in [28, 600, 1400] {
        let peers = peers(101);
        let hostile = &**peers.with_key(PublicKey::from([2; 32])).expect("a peer");
        let before = live();
        for number in 0..1000 {
            for to in 3..=102 {
                peers.deliver(hostile, &mut vec![between(2, to, 17, number, length)], &Nowhere);
            }
        }
        let kept = live() - before;
        assert!(kept < 24 * MIB, "{kept} bytes of {length}-byte packets");
    }
}

#[test]
fn packets_for_an_offline_peer_are_not_crowded_out_by_another_sender() {
    let peers = peers(101);
    let [hostile, honest, offline] =
        [2, 3, 4].map(|number| &**peers.with_key(PublicKey::from([number; 32])).expect("a peer"));
    let flood = |protocol| {
        for number in 0..1500 {
            for to in [4].into_iter().chain(5..=102) {
                peers.deliver(hostile, &mut vec![between(2, to, protocol, number, 28)], &Nowhere);
            }
        }
    };
    flood(6);
    for number in 0..20 {
        peers.deliver(honest, &mut vec![between(3, 4, 6, number, 1400)], &Nowhere);
    }
    flood(6);
    offline.queue.hold(false);
    let mut batch = Vec::new();
    let _ = offline.queue.pop(&mut batch, usize::MAX, usize::MAX);
    let arrived = batch.iter().filter(|packet| packet.ip()[15] == 3).count();
    assert_eq!(arrived, 20);
}
