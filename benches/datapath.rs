//! What one batch costs in each step of the datapath: `cargo bench`.

use std::{hint::black_box, iter};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use roamd::internals::{
    config,
    identity::PublicKey,
    server::peers::Peers,
    tunnel::{
        counters::Counters,
        merge::Merger,
        queue::Queue,
        split::Splitter,
        vnet::{Checksum, Header, Kind, Offload, Segments},
    },
    wire::{
        datagram::Datagram,
        fragment::{Fragmenter, Joiner},
        packet::Packet,
    },
};

/// Payload of a TCP segment in a tunnel with an MTU of 1400.
const SEGMENT: usize = 1348;
const SEGMENTS: usize = 46;

/// TCP over IPv4 with `payload` bytes, from port `port`.
fn tcp(port: u16, payload: usize) -> Vec<u8> {
    let mut ip = vec![7; 52 + payload];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((52 + payload) as u16).to_be_bytes());
    ip[6..10].copy_from_slice(&[0x40, 0, 64, 6]);
    ip[12..20].copy_from_slice(&[10, 66, 0, 2, 10, 66, 0, 1]);
    ip[20..22].copy_from_slice(&port.to_be_bytes());
    ip[32..34].copy_from_slice(&[0x80, 0x10]);
    ip
}

fn super_packet(port: u16) -> (Header, Vec<u8>) {
    let segments = Segments { kind: Kind::Tcp4, size: SEGMENT as u16, headers: 52 };
    let checksum = Checksum { start: 20, field: 16 };
    let header = Header { checksum: Some(checksum), segments: Some(segments) };
    (header, tcp(port, SEGMENTS * SEGMENT))
}

/// The segments of a super-packet of each of `flows` flows, taking turns.
fn batch(flows: u16) -> Vec<Packet> {
    let mut splitter = Splitter::default();
    let flows: Vec<_> = (0..flows)
        .map(|port| {
            let (header, ip) = super_packet(port);
            let mut batch = Vec::new();
            splitter.split(header, &ip, &mut batch).map(|()| batch).unwrap_or_default()
        })
        .collect();
    (0..SEGMENTS).flat_map(|at| flows.iter().map(move |flow| flow[at].clone())).collect()
}

fn split_and_merge(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("offload");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    let (header, ip) = super_packet(1);
    let (mut splitter, mut packets) = (Splitter::default(), Vec::new());
    group.bench_function("split 64 KB", |bencher| {
        bencher.iter(|| {
            packets.clear();
            splitter.split(header, &ip, &mut packets)
        });
    });
    for flows in [1, 4] {
        let (batch, mut merger) = (batch(flows), Merger::default());
        group.throughput(Throughput::Elements(batch.len() as u64));
        group.bench_function(format!("merge {flows} x 64 KB"), |bencher| {
            bencher.iter(|| {
                merger.merge(&batch, Offload::Udp, |joined| {
                    black_box(joined.last());
                });
            });
        });
    }
    let small: Vec<_> = iter::repeat_with(|| Packet::from(tcp(1, 0))).take(64).collect();
    group.throughput(Throughput::Elements(64));
    let mut merger = Merger::default();
    group.bench_function("merge 64 acknowledgements", |bencher| {
        bencher.iter(|| {
            merger.merge(&small, Offload::Udp, |joined| {
                black_box(joined.last());
            });
        });
    });
    group.finish();
}

fn queue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");
    for flows in [1, 4, 64] {
        let packets = batch(flows);
        let queue = Queue::new(64 << 20);
        queue.hold(false);
        let mut popped = Vec::with_capacity(packets.len());
        group.throughput(Throughput::Elements(packets.len() as u64));
        group.bench_function(format!("push and pop, {flows} flows"), |bencher| {
            bencher.iter_batched_ref(
                || packets.clone(),
                |packets| {
                    let full = queue.push(packets);
                    popped.clear();
                    (full, queue.pop(&mut popped, usize::MAX, usize::MAX))
                },
                BatchSize::SmallInput,
            );
        });
    }
    // What waits behind more than some batches is copied.
    for standing in [0, 2, 20] {
        let packets = batch(1);
        let queue = Queue::new(64 << 20);
        for _ in 0..standing {
            let _ = queue.push(&mut packets.clone());
        }
        queue.hold(false);
        let mut popped = Vec::with_capacity(packets.len());
        group.throughput(Throughput::Elements(packets.len() as u64));
        let name = format!("push and pop behind {} packets", standing * packets.len());
        group.bench_function(name, |bencher| {
            bencher.iter_batched_ref(
                || packets.clone(),
                |packets| {
                    let full = queue.push(packets);
                    popped.clear();
                    (full, queue.pop(&mut popped, SEGMENTS, usize::MAX))
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn wire(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wire");
    let datagrams: Vec<_> = batch(1).iter().map(|packet| packet.datagram().clone()).collect();
    group.throughput(Throughput::Elements(datagrams.len() as u64));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            datagrams
                .iter()
                .filter_map(|bytes| match Datagram::decode(bytes.clone()) {
                    Ok(Datagram::Packet(packet)) => packet.addresses(),
                    _ => None,
                })
                .count()
        });
    });
    group.throughput(Throughput::Elements(1));
    let (mut fragmenter, mut joiner) = (Fragmenter::default(), Joiner::default());
    group.bench_function("fragment and join", |bencher| {
        bencher.iter(|| {
            for piece in fragmenter.split(&datagrams[0], 1162).into_iter().flatten() {
                if let Ok(Datagram::Fragment(fragment)) = Datagram::decode(piece) {
                    black_box(joiner.join(fragment));
                }
            }
        });
    });
    group.finish();
}

fn forwarding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("forwarding");
    group.throughput(Throughput::Elements(256));
    for count in [1_u32, 100, 1000] {
        let peer = |number: u32| {
            let mut key = [0; 32];
            key[..4].copy_from_slice(&number.to_be_bytes());
            let [_, _, high, low] = (number + 2).to_be_bytes();
            config::Peer {
                name: format!("peer {number}"),
                public_key: PublicKey::from(key),
                addresses: vec![[10, 66, high, low].into()],
            }
        };
        let peers = Peers::new(&(0..count).map(peer).collect::<Vec<_>>());
        let counters = Counters::default();
        let packets: Vec<_> = (0..256)
            .map(|number| {
                let [_, _, high, low] = (number * 37 % count + 2).to_be_bytes();
                let mut ip = tcp(1, 100);
                ip[16..20].copy_from_slice(&[10, 66, high, low]);
                Packet::from(ip)
            })
            .collect();
        group.bench_function(format!("route to {count} peers"), |bencher| {
            bencher.iter_batched_ref(
                || packets.clone(),
                |packets| peers.route(packets, &counters),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, split_and_merge, queue, wire, forwarding);
criterion_main!(benches);
