//! Bursts over a probe's connection: each one that is awaited has a result.

use super::*;
use crate::path::{
    PathKey,
    manager::Event,
    probe::{Probe, Prober, Probes, Report},
    quality::{Burst, Sample},
};

/// A probe over wifi that asks the server with this key, and what it tells.
async fn probe(day: &Day, server: crate::identity::PublicKey) -> (Probe, mpsc::Receiver<Report>) {
    let servers = SERVERS.map(|server| server.parse().unwrap());
    let paths = day.hosts.client_config().paths;
    let (candidate, _) = day.world.candidates(&servers, &paths).await.unwrap().remove(0);
    let handshake =
        Handshake::new(&day.hosts.client, server, tls::PROBE, quic::probe_transport()).unwrap();
    let (sender, told) = mpsc::channel(4);
    let prober = Prober::new(Probes { handshake, process: 1 }, sender, drop);
    let key = PathKey::from(&candidate);
    (Probe::start(day.world.clone(), prober, candidate, key, BOUND), told)
}

async fn sampled(told: &mut mpsc::Receiver<Report>) -> Option<Sample> {
    let report = timeout(BOUND, told.recv()).await.expect("it is told in time");
    match report.and_then(Report::event) {
        Some(Event::Sampled(_, sample)) => sample,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_burst_that_is_asked_for_during_another_one_is_made_and_its_result_alone_is_told() {
    virtual_time().block_on(async {
        let mut day = Day::new(0);
        day.start_server();
        let (probe, mut told) = probe(&day, day.hosts.server.public_key()).await;
        probe.sample(Burst::Small, false);
        let small = sampled(&mut told).await.expect("it is answered");
        assert!(small.answered > 0 && small.rate.is_none(), "{small:?}");
        probe.sample(Burst::Small, false);
        sleep(Duration::from_millis(200)).await;
        probe.sample(Burst::Large, false);
        let large = sampled(&mut told).await.expect("it is answered");
        assert!(large.rate.is_some(), "{large:?}");
        sleep(BOUND).await;
        assert!(told.try_recv().is_err(), "the other one is over");
    });
}

#[test]
fn a_burst_over_a_path_whose_handshakes_fail_shows_that_nothing_came_back() {
    virtual_time().block_on(async {
        let mut day = Day::new(0);
        day.start_server();
        let (probe, mut told) = probe(&day, day.hosts.client.public_key()).await;
        let asked = clock::now();
        probe.sample(Burst::Small, false);
        assert_eq!(sampled(&mut told).await, None);
        assert!(clock::now() - asked < Duration::from_secs(1), "it is another server that answers");
    });
}

/// It may wait to be read while the network of the path becomes another one.
#[test]
fn what_a_probe_found_out_does_not_count_any_more_once_it_is_dropped() {
    virtual_time().block_on(async {
        let mut day = Day::new(0);
        day.start_server();
        for is_dropped in [false, true] {
            let (probe, mut told) = probe(&day, day.hosts.server.public_key()).await;
            probe.ask();
            sleep(BOUND).await;
            let probe = Some(probe).filter(|_| !is_dropped);
            let (mut reports, mut answers) = (0, 0);
            while let Ok(report) = told.try_recv() {
                reports += 1;
                answers += u32::from(matches!(report.event(), Some(Event::Answered(..))));
            }
            assert!(reports > 1, "{reports}");
            assert_eq!(answers, if probe.is_some() { 2 } else { 0 });
        }
    });
}

/// A round trip takes longer than the pause between two handshakes.
#[test]
fn handshakes_that_are_hurried_do_not_keep_a_slow_path_from_being_measured() {
    virtual_time().block_on(async {
        let mut day = Day::new(0);
        day.start_server();
        day.world.change(0, |wifi| wifi.delay = Duration::from_millis(300));
        let (probe, mut told) = probe(&day, day.hosts.server.public_key()).await;
        probe.ask();
        let answered = async {
            while let Some(report) = told.recv().await {
                if let Some(Event::Answered(_, Some(rtt))) = report.event() {
                    return rtt;
                }
            }
            panic!("the probe ended");
        };
        let hurrying = async {
            loop {
                sleep(Duration::from_millis(250)).await;
                probe.hurry();
            }
        };
        tokio::select! {
            rtt = timeout(BOUND, answered) => {
                let rtt = rtt.expect("it is measured in time");
                assert!(rtt.abs_diff(Duration::from_millis(600)) < Duration::from_millis(20), "{rtt:?}");
            }
            () = hurrying => {}
        }
    });
}
