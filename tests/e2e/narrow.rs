//! A wifi whose rate falls under a transfer, beside a good network.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread::sleep,
    time::{Duration, Instant},
};

use roamd_lab::{Access, LinkShape};

use crate::{
    quality::keystrokes,
    roaming::{Laptop, shown},
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SERVER: &str = "10.66.0.1:7010";
/// The transfer goes at full speed for so long.
const BEFORE: Duration = Duration::from_secs(4);
/// A path that is used again too early is used again twice in this time.
const AFTER: Duration = Duration::from_secs(30);
/// Keystrokes over lte beside the transfer: 70 and 430 ms measured on two busy cores.
const TYPICAL: Duration = Duration::from_millis(200);
const LATE: Duration = Duration::from_millis(1300);

/// Transfers up or down until `done`.
fn transfer(laptop: &Laptop, is_up: bool, done: &AtomicBool) {
    let listener = laptop.server.namespace.run(|| TcpListener::bind(SERVER).unwrap()).unwrap();
    let near = laptop.client.namespace.run(|| TcpStream::connect(SERVER).unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    let (mut from, mut to) = if is_up { (near, far) } else { (far, near) };
    from.set_write_timeout(Some(20 * SECOND)).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while to.read(&mut buffer).unwrap() > 0 {}
        });
        while !done.load(Relaxed) {
            from.write_all(&[0; 1 << 14]).unwrap();
        }
        drop(from);
    });
}

fn is_left_for_good(is_up: bool) {
    let laptop = Laptop::connected();
    let lte = LinkShape { rate: Some(20_000_000), ..LinkShape::delayed(25 * MS) };
    laptop.scene.air(Access::Lte).set(lte);
    let done = AtomicBool::new(false);
    let typed = std::thread::scope(|scope| {
        scope.spawn(|| transfer(&laptop, is_up, &done));
        let typing = scope.spawn(|| keystrokes(&laptop, BEFORE + AFTER));
        sleep(BEFORE);
        let (rate, queue) = (Some(200_000), 200 * MS);
        laptop.scene.air(Access::Wifi).set(LinkShape { rate, queue, ..LinkShape::delayed(5 * MS) });
        let settled = Instant::now() + 2 * SECOND;
        let typed = typing.join().unwrap();
        done.store(true, Relaxed);
        let mut late: Vec<_> =
            typed.iter().filter(|(at, _)| *at > settled).map(|(_, took)| *took).collect();
        late.sort_unstable();
        shown([50, 99].map(|percent| late[late.len() * percent / 100]))
    });
    let status = laptop.client.status();
    let switches = status["switches"].as_array().unwrap();
    let reasons: Vec<_> = switches.iter().map(|it| it["reason"].as_str().unwrap()).collect();
    // On a busy machine lte may seem dead for a moment, too.
    assert!(!shown(reasons).contains(&"the new path is preferred"), "{status}");
    laptop.until_active(Access::Lte);
    assert!(typed[0] < TYPICAL && typed[1] < LATE, "{typed:?}");
}

#[test]
fn a_wifi_that_carries_next_to_nothing_of_an_upload_is_left_for_good() {
    is_left_for_good(true);
}

#[test]
fn a_wifi_that_carries_next_to_nothing_of_a_download_is_left_for_good() {
    is_left_for_good(false);
}
