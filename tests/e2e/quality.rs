//! Networks that work, but badly, beside a good one.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread::sleep,
    time::{Duration, Instant},
};

use roamd_lab::{Access, LinkShape, scene::SERVER_V4};
use serde_json::Value;

use crate::{
    harness::eventually,
    roaming::{Laptop, last_switch, shown},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SERVER: &str = "10.66.0.1:7009";
/// As fast as somebody types.
const INTERVAL: Duration = Duration::from_millis(150);
/// A round trip over lte, and what a busy machine adds.
const TYPICAL: Duration = Duration::from_millis(80);

/// Types for `duration` into an echo on the server; when each key was typed, and how long its echo took.
pub(crate) fn keystrokes(laptop: &Laptop, duration: Duration) -> Vec<(Instant, Duration)> {
    let listener = laptop.server.namespace.run(|| TcpListener::bind(SERVER).unwrap()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_nodelay(true).unwrap();
            let mut key = [0; 36];
            while stream.read_exact(&mut key).is_ok() {
                stream.write_all(&key).unwrap();
            }
        });
        let mut stream =
            laptop.client.namespace.run(|| TcpStream::connect(SERVER).unwrap()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(20 * SECOND)).unwrap();
        let end = Instant::now() + duration;
        let mut took = Vec::new();
        while Instant::now() < end {
            let (mut key, typed) = ([7; 36], Instant::now());
            stream.write_all(&key).unwrap();
            stream.read_exact(&mut key).unwrap();
            took.push((typed, typed.elapsed()));
            sleep(INTERVAL.saturating_sub(typed.elapsed()));
        }
        took
    })
}

/// Waits until lte is in use; how long that took.
fn until_on_lte(laptop: &Laptop) -> Duration {
    let begun = Instant::now();
    laptop.until_active(Access::Lte);
    begun.elapsed()
}

#[test]
fn a_wifi_that_loses_packets_is_left_within_seconds_and_keystrokes_recover() {
    // 0.9 to 1.9 s measured.
    for loss in [0.1, 0.3] {
        let laptop = Laptop::connected();
        std::thread::scope(|scope| {
            let typing = scope.spawn(|| keystrokes(&laptop, 12 * SECOND));
            sleep(SECOND);
            let shape = LinkShape { loss, ..LinkShape::delayed(5 * MS) };
            laptop.scene.air(Access::Wifi).set(shape);
            let took = shown(until_on_lte(&laptop));
            assert!(took < 5 * SECOND, "{loss}: {took:?}");
            let recovered = Instant::now() + SECOND;
            let typed = typing.join().unwrap();
            let late = typed.iter().filter(|(at, _)| *at > recovered);
            let mut late: Vec<_> = late.map(|(_, took)| *took).collect();
            late.sort_unstable();
            let (typical, worst) = shown((late[late.len() / 2], late[late.len() - 1]));
            assert!(typical < TYPICAL && worst < SECOND, "{loss}: {late:?}");
        });
        let switch = last_switch(&laptop.client.status());
        let reason = switch["reason"].as_str().unwrap().to_owned();
        assert!(reason.starts_with("the old path loses "), "{switch}");
        shown(reason);
    }
}

#[test]
fn a_wifi_whose_round_trip_grows_is_left_before_300_ms_without_a_loss() {
    let laptop = Laptop::connected();
    let stream = laptop.stream(14 * SECOND, || {
        let mut delay = 5 * MS;
        while laptop.client.status()["switches"].as_array().unwrap().is_empty() {
            assert!(delay < 150 * MS, "{}", laptop.client.status());
            delay += 2 * MS;
            laptop.scene.air(Access::Wifi).set(LinkShape::delayed(delay));
            sleep(100 * MS);
        }
        shown(2 * delay);
    });
    assert!(stream.lost <= 2, "{stream:?}");
    let switch = last_switch(&laptop.client.status());
    let reason = switch["reason"].as_str().unwrap();
    assert!(reason.starts_with("the old path takes "), "{switch}");
}

/// As the routers of most homes and cafés, both have one address.
#[test]
fn a_good_wifi_is_not_taken_for_a_bad_one_whose_router_had_the_same_address() {
    let laptop = Laptop::connected();
    let (scene, air) = (&laptop.scene, laptop.scene.air(Access::Wifi));
    std::thread::scope(|scope| {
        scope.spawn(|| keystrokes(&laptop, 6 * SECOND));
        air.set(LinkShape { loss: 0.3, ..LinkShape::delayed(5 * MS) });
        laptop.until_active(Access::Lte);
    });
    scene.disconnect(Access::Wifi).unwrap();
    let mut other = scene.router(Access::Wifi).command("ip");
    other.args(["link", "set", "client", "address", "02:00:00:00:00:09"]);
    assert!(other.status().unwrap().success());
    air.set(LinkShape::delayed(5 * MS));
    scene.connect(Access::Wifi).unwrap();
    // One that is taken for the other "loses" packets.
    eventually("wifi is told from the one before", || {
        let status = laptop.client.try_status()?;
        let mut paths = status["paths"].as_array()?.iter();
        let is_told_apart = |path: &Value| {
            let why = path["why"].as_str().is_some_and(|it| it.starts_with("failed lately"));
            path["link"] == Access::Wifi.link() && why
        };
        paths.any(is_told_apart).then_some(())
    });
    laptop.until_active(Access::Wifi);
}

/// Uploads past the tunnel, as another laptop on the same wifi would, until `done`.
fn upload_past_the_tunnel(laptop: &Laptop, done: &AtomicBool) {
    // What every kernel has; BBR would keep the queue short.
    laptop.client.namespace.sysctl("net/ipv4/tcp_congestion_control", "reno").unwrap();
    let outside = SocketAddr::new(SERVER_V4, 7010);
    let listener = laptop.server.namespace.run(|| TcpListener::bind(outside).unwrap()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 1 << 16];
            while stream.read(&mut buffer).unwrap() > 0 {}
        });
        let mut stream =
            laptop.client.namespace.run(|| TcpStream::connect(outside).unwrap()).unwrap();
        stream.set_write_timeout(Some(20 * SECOND)).unwrap();
        while !done.load(Relaxed) {
            stream.write_all(&[0; 1 << 14]).unwrap();
        }
    });
}

#[test]
fn a_wifi_whose_queue_somebody_else_fills_is_left_if_there_is_another_network() {
    for has_lte in [true, false] {
        let laptop = Laptop::connected();
        if !has_lte {
            laptop.scene.disconnect(Access::Lte).unwrap();
        }
        let shape =
            LinkShape { rate: Some(10_000_000), queue: 250 * MS, ..LinkShape::delayed(5 * MS) };
        laptop.scene.air(Access::Wifi).set(shape);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let typing = scope.spawn(|| keystrokes(&laptop, 12 * SECOND));
            scope.spawn(|| upload_past_the_tunnel(&laptop, &done));
            let begun = Instant::now();
            let typed = typing.join().unwrap();
            done.store(true, Relaxed);
            let settled = begun + 5 * SECOND;
            let late = typed.iter().filter(|(at, _)| *at > settled);
            let mut late: Vec<_> = late.map(|(_, took)| *took).collect();
            late.sort_unstable();
            let (typical, worst) = shown((late[late.len() / 2], late[late.len() - 1]));
            if has_lte {
                assert!(typical < TYPICAL && worst < SECOND, "{late:?}");
            } else {
                // The queue, which no tunnel could avoid, and what is lost where it overflows.
                assert!(typical < 350 * MS && worst < 2 * SECOND, "{late:?}");
            }
        });
        let status = laptop.client.status();
        assert_eq!(status["sessions"], 1, "{status}");
        if has_lte {
            let switch = last_switch(&status);
            let reason = shown(switch["reason"].as_str().unwrap().to_owned());
            assert!(reason.starts_with("the old path "), "{switch}");
        } else {
            assert_eq!(status["switches"], serde_json::json!([]), "{status}");
        }
    }
}

#[test]
fn a_wifi_with_jitter_and_few_losses_is_kept() {
    let laptop = Laptop::connected();
    let shape = LinkShape { loss: 0.01, jitter: 40 * MS, ..LinkShape::delayed(5 * MS) };
    laptop.scene.air(Access::Wifi).set(shape);
    laptop.stream(20 * SECOND, || ());
    let status = laptop.client.status();
    assert_eq!(status["switches"], serde_json::json!([]), "{status}");
}
