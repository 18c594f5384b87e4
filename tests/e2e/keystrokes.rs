//! A keystroke beside a bulk transfer, where the network on the way would let it wait.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use roamd_lab::{Access, LinkShape};

use crate::{
    harness::{Host, transfer},
    roaming::{Laptop, shown},
};

/// As fast as somebody types.
const INTERVAL: Duration = Duration::from_millis(50);

/// Types into a TCP connection to an echo on the server until `done`; how long each echo took.
pub(crate) fn type_until(client: &Host, server: &Host, done: &AtomicBool) -> Vec<Duration> {
    // Not one port for all: a child that another test has forked holds the last one until it runs its program.
    let listener = server.namespace.run(|| TcpListener::bind("10.66.0.1:0").unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut key = [0; 36];
            while stream.read_exact(&mut key).is_ok() {
                stream.write_all(&key).unwrap();
            }
        });
        let mut stream = client.namespace.run(|| TcpStream::connect(address).unwrap()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut took = Vec::new();
        while !done.load(Relaxed) {
            let (mut key, typed) = ([7; 36], Instant::now());
            stream.write_all(&key).unwrap();
            stream.read_exact(&mut key).unwrap();
            took.push(typed.elapsed());
            std::thread::sleep(INTERVAL.saturating_sub(typed.elapsed()));
        }
        took.sort_unstable();
        took
    })
}

#[test]
fn a_keystroke_waits_neither_behind_an_upload_nor_behind_a_download() {
    let laptop = Laptop::connected();
    let home = LinkShape {
        rate: Some(10_000_000),
        queue: Duration::from_millis(200),
        ..LinkShape::delayed(Duration::from_millis(20))
    };
    laptop.scene.air(Access::Wifi).set(home);
    let bulk = |from: &Host, to: &Host, address: &str| {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let typing = scope.spawn(|| type_until(&laptop.client, &laptop.server, &done));
            let begun = Instant::now();
            transfer(from, to, address, 6_000_000);
            let rate = 48.0 / begun.elapsed().as_secs_f64();
            done.store(true, Relaxed);
            (rate, typing.join().unwrap())
        })
    };
    for (from, to, address) in [
        (&laptop.client, &laptop.server, "10.66.0.1"),
        (&laptop.server, &laptop.client, "10.66.0.2"),
    ] {
        let (rate, took) = bulk(from, to, address);
        // Without a limit the queue of 200 ms fills and stays full; the link alone takes 41 ms.
        let typical = took[took.len() / 2];
        assert!(typical < Duration::from_millis(90), "to {address}: {took:?}");
        assert!(rate > 7.0, "to {address}: {rate:.1} of 10 Mbit/s");
    }
}

/// 50 Mbit/s of bulk each way in turn on a path whose delay varies by 20 ms, beside keystrokes.
#[test]
fn nothing_is_copied_over_a_standby_while_a_busy_path_works() {
    let laptop = Laptop::connected();
    let wifi = LinkShape {
        rate: Some(50_000_000),
        jitter: Duration::from_millis(20),
        ..LinkShape::delayed(Duration::from_millis(10))
    };
    laptop.scene.air(Access::Wifi).set(wifi);
    let (up, down) = (&laptop.client, &laptop.server);
    for (from, to, address) in [(up, down, "10.66.0.1"), (down, up, "10.66.0.2")] {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let typing = scope.spawn(|| type_until(&laptop.client, &laptop.server, &done));
            transfer(from, to, address, 15_000_000);
            done.store(true, Relaxed);
            typing.join().unwrap()
        });
    }
    let status = laptop.client.status();
    let traffic = &status["traffic"];
    let count = |key: &str| traffic[key].as_u64().unwrap();
    shown((count("copied-packets"), count("rescued-packets"), count("sent-packets"), traffic));
    let server = laptop.server.status();
    for traffic in [traffic, &server["peers"][0]["traffic"]] {
        let count = |key: &str| traffic[key].as_u64().unwrap();
        shown((count("repeated-packets"), count("split-packets"), count("sent-packets")));
        // None in six transfers.
        assert!(count("repeated-packets") * 200 <= count("sent-packets"), "{traffic}");
        assert!(count("split-packets") * 50 <= count("sent-packets"), "{traffic}");
    }
    // At most 0.5 % of the bytes: a copy has 600 at most.
    assert!(count("copied-packets") * 600 <= count("sent-bytes") / 200, "{traffic}");
    assert!(count("rescued-packets") * 600 <= count("received-bytes") / 200, "{traffic}");
    assert_eq!(status["switches"], serde_json::json!([]), "{status}");
}

#[test]
fn a_keystroke_waits_for_a_moment_when_a_path_dies_under_an_upload() {
    let laptop = Laptop::connected();
    let wifi = LinkShape {
        rate: Some(20_000_000),
        queue: Duration::from_millis(100),
        ..LinkShape::delayed(Duration::from_millis(10))
    };
    laptop.scene.air(Access::Wifi).set(wifi);
    let done = AtomicBool::new(false);
    let took = std::thread::scope(|scope| {
        let typing = scope.spawn(|| type_until(&laptop.client, &laptop.server, &done));
        scope.spawn(|| {
            std::thread::sleep(Duration::from_secs(3));
            laptop.scene.air(Access::Wifi).black_hole(true);
        });
        transfer(&laptop.client, &laptop.server, "10.66.0.1", 15_000_000);
        done.store(true, Relaxed);
        typing.join().unwrap()
    });
    let status = laptop.client.status();
    shown((took.len(), &took[took.len() - 8..], &status["traffic"], &status["switches"]));
    // 137 ms measured; 300 to 330 when what sends little had to wait for its turn.
    assert!(took[took.len() - 1] < Duration::from_millis(280), "{took:?}");
}
