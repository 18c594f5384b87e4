//! Paths that die beside one that works: nothing is lost, nothing comes twice, and small packets wait for a moment only.

use super::{ends::Ends, *};
use crate::{config::Preference, daemon::events::Event, path::Condition};

const PACE: Duration = Duration::from_millis(10);
/// Without an arrival. The first packets are late after some 50 ms, and take 25 ms over lte.
const STALL: Duration = Duration::from_millis(100);

/// Sends small packets of both kinds until `end`.
async fn chat(ends: &Ends, number: &mut u32, duration: Duration) {
    let end = clock::now() + duration;
    while clock::now() < end {
        ends.send(TCP, *number, 120).await;
        ends.send(UDP, *number, 200).await;
        *number += 1;
        sleep(PACE).await;
    }
}

/// Whether all of `count` packets arrived, those of TCP in order; the longest stall.
fn checked(ends: &Ends, count: u32) -> Duration {
    let mut longest = Duration::ZERO;
    for protocol in [TCP, UDP] {
        for (way, arrivals) in ends.arrived(protocol) {
            let traffic = ends.client.status().traffic;
            let came: std::collections::BTreeSet<_> = arrivals.iter().map(|it| it.0).collect();
            let lost: Vec<u32> = (0..count).filter(|number| !came.contains(number)).collect();
            assert!(lost.is_empty(), "{way} {lost:?}, protocol {protocol}: {traffic:?}");
            let in_order = arrivals.is_sorted_by_key(|(number, _)| *number);
            assert!(in_order || protocol == UDP, "{way}");
            let gaps = arrivals.windows(2).map(|pair| pair[1].1 - pair[0].1);
            longest = longest.max(gaps.max().unwrap_or_default());
        }
    }
    longest
}

#[test]
fn a_silent_death_costs_small_packets_less_than_a_tenth_of_a_second() {
    for hole in [Hole::Everything, Hole::Uplink, Hole::Downlink] {
        virtual_time().block_on(async {
            let (ends, mut number) = (Ends::connected(1).await, 0);
            chat(&ends, &mut number, Duration::from_secs(2)).await;
            let before = ends.client.status().traffic;
            assert_eq!((before.copied_packets, before.rescued_packets), (0, 0), "on a good path");
            ends.day.world.change(0, |wifi| wifi.hole = hole);
            chat(&ends, &mut number, Duration::from_secs(3)).await;
            let traffic = ends.client.status().traffic;
            sleep(Duration::from_secs(1)).await;
            let stall = checked(&ends, number);
            assert!(stall <= STALL, "{hole:?}: {stall:?}, {traffic:?}");
            assert!(traffic.copied_packets + traffic.rescued_packets > 0, "{hole:?}: {traffic:?}");
            chat(&ends, &mut number, Duration::from_secs(2)).await;
            let after = ends.client.status().traffic;
            assert_eq!(after.copied_packets, traffic.copied_packets, "{hole:?}: after the switch");
        });
    }
}

/// Lte carried the tunnel until a moment ago, and had no probe connection.
#[test]
fn a_path_that_was_left_for_a_better_one_takes_copies_soon() {
    virtual_time().block_on(async {
        let (ends, mut number) = (Ends::connected(1).await, 0);
        let uses_wifi = || {
            let paths = ends.client.status().paths;
            paths.iter().any(|path| path.link == "wifi0" && path.state == Condition::Active)
        };
        ends.day.world.change(0, |wifi| wifi.up = false);
        chat(&ends, &mut number, Duration::from_secs(1)).await;
        ends.day.world.change(0, |wifi| wifi.up = true);
        while !uses_wifi() {
            chat(&ends, &mut number, INTERVAL).await;
        }
        chat(&ends, &mut number, Duration::from_secs(1)).await;
        ends.day.world.change(0, |wifi| wifi.hole = Hole::Everything);
        chat(&ends, &mut number, Duration::from_secs(2)).await;
        sleep(Duration::from_secs(1)).await;
        let stall = checked(&ends, number);
        assert!(stall <= STALL, "{stall:?}");
    });
}

/// Connected over wifi, with a metered lte of a small MTU that may take so many bytes of copies a minute, to a server with
/// this idle timeout.
async fn metered(metered_copies: u32, idle_timeout: Duration) -> Ends {
    let prefer = [("wifi*", false), ("lte*", true)].map(|(link, metered)| Preference {
        link: link.into(),
        metered,
        ..Preference::default()
    });
    let day = Day::new(1);
    day.world.change(1, |lte| lte.mtu = 1300);
    day.world.forbid_fragments();
    Ends::connected_with(day, |client, server| {
        client.paths.prefer = prefer.into();
        client.paths.metered_copies = metered_copies;
        server.quic.idle_timeout = idle_timeout;
        server.quic.keep_alive = idle_timeout / 3;
    })
    .await
}

/// The default of `quic.idle-timeout`.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Nobody said anything for minutes.
#[test]
fn a_metered_standby_takes_copies_after_a_long_silence() {
    for idle_timeout in [IDLE_TIMEOUT, IDLE_TIMEOUT * 2 / 3, IDLE_TIMEOUT / 3] {
        virtual_time().block_on(async {
            let (ends, mut number) = (metered(64 << 10, idle_timeout).await, 0);
            sleep(Duration::from_secs(250)).await;
            chat(&ends, &mut number, Duration::from_secs(1)).await;
            ends.day.world.change(0, |wifi| wifi.hole = Hole::Everything);
            chat(&ends, &mut number, Duration::from_secs(2)).await;
            sleep(Duration::from_secs(1)).await;
            let stall = checked(&ends, number);
            assert!(stall <= STALL, "{stall:?}, {idle_timeout:?}");
        });
    }
}

/// What an hour costs, as the network counts it.
#[test]
fn a_metered_standby_is_kept_for_some_twenty_kilobytes_an_hour() {
    virtual_time().block_on(async {
        let ends = metered(64 << 10, IDLE_TIMEOUT).await;
        let sent = || ends.day.world.links()[1].sent;
        sleep(Duration::from_secs(60)).await;
        let before = sent();
        sleep(Duration::from_secs(3600)).await;
        let bytes = sent() - before;
        assert!((15_000..=25_000).contains(&bytes), "{bytes}");
    });
}

/// The server knows at once how many it may send.
#[test]
fn copies_over_a_metered_standby_are_allowed_by_a_reload() {
    virtual_time().block_on(async {
        let (ends, mut number) = (metered(0, IDLE_TIMEOUT).await, 0);
        ends.reload(|config| config.paths.metered_copies = 64 << 10).await;
        chat(&ends, &mut number, Duration::from_secs(1)).await;
        ends.day.world.change(0, |wifi| wifi.hole = Hole::Downlink);
        chat(&ends, &mut number, Duration::from_secs(2)).await;
        sleep(Duration::from_secs(1)).await;
        let stall = checked(&ends, number);
        assert!(stall <= STALL, "{stall:?}");
    });
}

/// Copies are told of with the path for whose sake they were sent, also where it was left before anybody looked.
#[test]
fn copies_are_told_of_with_the_path_that_was_late() {
    // While nothing is sent, nobody looks often.
    for before in [20_000, 20_200, 20_400, 20_600, 20_800].map(Duration::from_millis) {
        virtual_time().block_on(async {
            let (ends, mut number) = (Ends::connected(1).await, 0);
            let mut events = ends.client.events.listen();
            sleep(before).await;
            ends.day.world.change(0, |wifi| wifi.hole = Hole::Everything);
            chat(&ends, &mut number, Duration::from_secs(2)).await;
            sleep(Duration::from_secs(4)).await;
            let told = std::iter::from_fn(|| events.try_recv().ok());
            let links: Vec<_> = told
                .filter_map(|event| match event {
                    Event::Copies { link, .. } => Some(link),
                    _ => None,
                })
                .collect();
            assert_eq!(links, ["wifi0"], "{before:?}");
        });
    }
}

/// All networks are silent for seconds. What copies go over is as dead as the path in use, so packets wait.
#[test]
fn an_outage_of_all_networks_takes_only_what_was_sent_in_its_first_moments() {
    virtual_time().block_on(async {
        let (ends, mut number) = (Ends::connected(1).await, 0);
        chat(&ends, &mut number, Duration::from_secs(2)).await;
        let all = |hole| [0, 1].map(|at| ends.day.world.change(at, |link| link.hole = hole));
        all(Hole::Everything);
        let first = number;
        chat(&ends, &mut number, Duration::from_secs(8)).await;
        all(Hole::None);
        let back = clock::now();
        chat(&ends, &mut number, Duration::from_secs(3)).await;
        sleep(Duration::from_secs(1)).await;
        for (way, arrivals) in ends.arrived(TCP) {
            let came: std::collections::BTreeSet<_> = arrivals.iter().map(|it| it.0).collect();
            let lost: Vec<_> = (0..number).filter(|number| !came.contains(number)).collect();
            // 1.04 s until packets wait.
            assert!(lost.iter().all(|it| (first..first + 130).contains(it)), "{way}: {lost:?}");
            let after = arrivals.iter().map(|it| it.1).find(|at| *at > back).unwrap() - back;
            assert!(after < Duration::from_millis(1600), "{way}: {after:?}");
        }
    });
}

/// Wifi comes and goes in all ways for some minutes; lte works.
#[test]
fn nothing_is_lost_and_nothing_comes_twice_while_a_clean_standby_is_there() {
    for seed in 0..3 {
        virtual_time().block_on(async {
            let (mut ends, mut number) = (Ends::connected(seed).await, 0);
            for _ in 0..10 {
                let event = ends.day.random.u8(..5);
                ends.day.world.change(0, |wifi| match event {
                    0 => wifi.up = !wifi.up,
                    1 => wifi.rebind(),
                    2 => wifi.hole = Hole::Uplink,
                    3 => wifi.hole = Hole::Downlink,
                    _ => wifi.hole = Hole::Everything,
                });
                let duration = Duration::from_millis(ends.day.random.u64(50..4000));
                chat(&ends, &mut number, duration).await;
                ends.day.world.change(0, |wifi| (wifi.up, wifi.hole) = (true, Hole::None));
                let duration = Duration::from_millis(ends.day.random.u64(50..6000));
                chat(&ends, &mut number, duration).await;
            }
            sleep(Duration::from_secs(5)).await;
            let stall = checked(&ends, number);
            assert!(stall < Duration::from_secs(1), "seed {seed}: {stall:?}");
        });
    }
}
