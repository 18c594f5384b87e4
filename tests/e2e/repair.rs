//! What a network loses, the tunnel repairs: programs notice nothing.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use roamd_lab::{Access, LinkShape, Namespace, emulator::Direction};

use crate::{
    harness::{eventually, transfer},
    roaming::{Laptop, path, shown},
};

const SERVER: &str = "10.66.0.1:7008";
/// Segments of a program that sends 1 Mbit/s for fifteen seconds: too little for any queue.
const SEGMENTS: usize = 1500;
const SEGMENT: usize = 1200;
const INTERVAL: Duration = Duration::from_millis(10);

/// Segments that TCP in this namespace has sent once more (RFC 4022, `tcpRetransSegs`).
fn retransmitted(namespace: &Namespace) -> u64 {
    let text = namespace.run(|| fs::read_to_string("/proc/thread-self/net/snmp").unwrap()).unwrap();
    let mut tcp = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
    let at = names.split(' ').position(|name| name == "RetransSegs").unwrap();
    values.split(' ').nth(at).unwrap().parse().unwrap()
}

/// Sends the segments, and takes the answer to each of them.
fn converse(laptop: &Laptop) {
    let listener = laptop.server.namespace.run(|| TcpListener::bind(SERVER).unwrap()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut segment = [0; SEGMENT];
            while stream.read_exact(&mut segment).is_ok() {
                stream.write_all(&segment).unwrap();
            }
        });
        let mut stream =
            laptop.client.namespace.run(|| TcpStream::connect(SERVER).unwrap()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut answers = stream.try_clone().unwrap();
        let reader = scope.spawn(move || {
            for number in 0..SEGMENTS {
                let mut segment = [0; SEGMENT];
                answers.read_exact(&mut segment).unwrap();
                assert_eq!(segment, [number as u8; SEGMENT]);
            }
        });
        for number in 0..SEGMENTS {
            stream.write_all(&[number as u8; SEGMENT]).unwrap();
            std::thread::sleep(INTERVAL);
        }
        reader.join().unwrap();
    });
}

#[test]
fn tcp_inside_sees_next_to_nothing_of_the_loss_outside() {
    let laptop = Laptop::connected();
    let air = laptop.scene.air(Access::Wifi);
    air.set(LinkShape { loss: 0.02, ..LinkShape::delayed(Duration::from_millis(20)) });
    let ends = [&laptop.client, &laptop.server];
    let before = ends.map(|end| retransmitted(&end.namespace));
    converse(&laptop);
    let after = ends.map(|end| retransmitted(&end.namespace));
    let lost = Direction::BOTH.map(|direction| air.counters(direction).lost);
    let noticed = after[0] - before[0] + after[1] - before[1];
    let status = laptop.client.status();
    let traffic = &status["traffic"];
    // 60 to 80 lost; 0 to 2 noticed. Acknowledgements, outer and inner ones, are lost as well.
    shown((lost, noticed, traffic));
    assert!(lost[0] + lost[1] >= 30, "{lost:?}");
    assert!(noticed * 5 <= lost[0] + lost[1], "{noticed} of {lost:?}: {traffic}");
    assert!(traffic["repaired-packets"].as_u64().unwrap() >= 5, "{traffic}");
    assert!(traffic["repeated-packets"].as_u64().unwrap() >= 5, "{traffic}");
}

/// quinn takes them for a link that drops large packets, and by default splits those of the tunnel for a minute.
#[test]
fn after_bursts_of_losses_packets_are_soon_whole_again() {
    const AFTER: Duration = Duration::from_secs(6);
    let laptop = Laptop::connected();
    laptop.scene.disconnect(Access::Lte).unwrap();
    let air = laptop.scene.air(Access::Wifi);
    let shape = LinkShape::delayed(Duration::from_millis(20));
    air.set(LinkShape { rate: Some(20_000_000), ..shape });
    let mtu = || path(&laptop.client.status(), Access::Wifi).unwrap()["mtu"].as_u64().unwrap();
    let before = eventually("the largest packet", || Some(mtu()).filter(|mtu| *mtu > 1400));
    let (smallest, after) = std::thread::scope(|scope| {
        scope.spawn(|| transfer(&laptop.client, &laptop.server, "10.66.0.1", 25_000_000));
        std::thread::sleep(Duration::from_secs(1));
        air.set(LinkShape { rate: Some(20_000_000), loss: 0.3, ..shape });
        let smallest = eventually("bursts of losses", || Some(mtu()).filter(|mtu| *mtu < 1400));
        air.set(LinkShape { rate: Some(20_000_000), ..shape });
        std::thread::sleep(AFTER);
        (smallest, mtu())
    });
    shown((before, smallest, after));
    assert_eq!(after, before);
}
