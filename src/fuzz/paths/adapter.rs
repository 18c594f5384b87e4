//! The manager's types, made of small numbers: eight paths, two over each of four links, one of them over UDP and one
//! over TCP.

use std::time::{Duration, Instant};

use crate::{
    link::candidate::{Candidate, Transport},
    path::{
        PathKey,
        manager::{Choice, Event, Manager, Settings},
        rank::LinkFacts,
    },
};

pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
const STANDBY_CHECK: Duration = Duration::from_secs(15);
const METERED_CHECK: Duration = Duration::from_secs(300);

pub(super) fn settings(checks_standbys: bool) -> Settings {
    Settings {
        probe_timeout: PROBE_TIMEOUT,
        standby_check: checks_standbys.then_some(STANDBY_CHECK),
        metered_check: checks_standbys.then_some(METERED_CHECK),
        metered_bursts: 64 << 10,
    }
}

pub(super) fn link(path: u8) -> u8 {
    path / 2
}

pub(super) fn is_over_tcp(path: u8) -> bool {
    path % 2 == 1
}

fn name(link: u8) -> String {
    format!("link{link}")
}

fn candidate(path: u8) -> Candidate {
    let (source, server) = ([10, 0, path, 2].into(), ([192, 0, 2, 1], 4433).into());
    let udp = Candidate {
        link: name(link(path)),
        index: link(path).into(),
        source,
        router: None,
        metric: 0,
        server,
        transport: Transport::Udp,
    };
    if is_over_tcp(path) { udp.over_tcp(443) } else { udp }
}

pub(super) fn key(path: u8) -> PathKey {
    PathKey::from(&candidate(path))
}

/// Paths, each with its rank below 16; a smaller one is better. One whose rank becomes odd or even is in another network.
fn found(paths: impl IntoIterator<Item = (u8, u8)>) -> Vec<(Candidate, LinkFacts)> {
    let facts = |path: u8, rank: u8| LinkFacts {
        transport: candidate(path).transport,
        preference: (rank >> 3).into(),
        metered: rank & 0x04 != 0,
        metric: (rank & 0x03).into(),
        ..LinkFacts::default()
    };
    let routed = |path: u8, rank: u8| {
        let router = Some([10, 0, path, rank & 0x01].into());
        (Candidate { router, ..candidate(path) }, facts(path, rank))
    };
    paths.into_iter().map(|(path, rank)| routed(path, rank)).collect()
}

pub(super) fn candidates(paths: impl IntoIterator<Item = (u8, u8)>) -> Event {
    Event::Candidates(found(paths))
}

pub(super) fn choose(choice: Option<(u8, bool)>) -> Event {
    Event::Choose(choice.map(|(link, pinned)| Choice { link: name(link), pinned }))
}

pub(super) fn check(link: Option<u8>) -> Event {
    Event::Check(link.map(name))
}

pub(super) fn dial_order(
    manager: &Manager,
    paths: impl IntoIterator<Item = (u8, u8)>,
    now: Instant,
) -> Vec<PathKey> {
    manager.dialing().order(found(paths), now).iter().map(PathKey::from).collect()
}
