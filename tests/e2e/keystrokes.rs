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
    roaming::Laptop,
};

/// As fast as somebody types.
const INTERVAL: Duration = Duration::from_millis(50);

/// Types into a TCP connection to an echo on the server until `done`; how long each echo took.
fn type_until(laptop: &Laptop, done: &AtomicBool) -> Vec<Duration> {
    let address = "10.66.0.1:7007";
    let listener = laptop.server.namespace.run(|| TcpListener::bind(address).unwrap()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut key = [0; 36];
            while stream.read_exact(&mut key).is_ok() {
                stream.write_all(&key).unwrap();
            }
        });
        let mut stream =
            laptop.client.namespace.run(|| TcpStream::connect(address).unwrap()).unwrap();
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
            let typing = scope.spawn(|| type_until(&laptop, &done));
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
