//! What is told of round trips, gaps and silence on links where nothing is wrong.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    thread::sleep,
    time::{Duration, Instant},
};

use roamd_lab::Access;
use serde_json::Value;

use crate::{
    harness::{PROGRAM, eventually},
    roaming::{Laptop, last_switch, shown},
};

/// The true round trips of wifi and lte in milliseconds; see `roamd_lab::scene`.
const ROUND_TRIPS: [(&str, f64); 2] = [("wifi0", 10.0), ("lte0", 50.0)];

#[test]
fn round_trips_are_correct_from_the_first_second_and_cause_no_switch() {
    let mut laptop = Laptop::with("10.77.9.2:4433\", \"[fd77:9::2]:4433", "", |_| {});
    for _ in 0..3 {
        laptop.client.daemon = None;
        laptop.client.start();
        laptop.client.connected();
        let begun = Instant::now();
        let paths = eventually("all four paths are measured", || {
            let status = laptop.client.try_status()?;
            let paths = status["paths"].as_array()?.clone();
            let measured = paths.iter().filter(|path| path["rtt"].is_f64()).count();
            (measured == 4).then_some(paths)
        });
        let took = shown(begun.elapsed());
        // 200 to 270 ms measured.
        assert!(took < Duration::from_millis(800), "{took:?}");
        for path in paths {
            let (_, expected) = ROUND_TRIPS.into_iter().find(|it| path["link"] == it.0).unwrap();
            let rtt = path["rtt"].as_f64().unwrap();
            assert!((expected..2.0 * expected).contains(&rtt), "{path}");
        }
        sleep(Duration::from_secs(2));
        let status = laptop.client.status();
        assert_eq!(status["switches"], serde_json::json!([]), "{status}");
    }
}

#[test]
fn the_gap_of_an_idle_tunnel_begins_with_the_switch() {
    let laptop = Laptop::connected();
    // The MTU is found meanwhile.
    sleep(Duration::from_secs(1));
    let mut command = laptop.client.namespace.command(PROGRAM);
    command.args(["events", "roamd"]).env("ROAMD_RUNTIME_DIR", laptop.client.folder());
    let mut events = command.stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(events.stdout.take().unwrap()).lines();
    for (turn, access) in [Access::Lte, Access::Wifi].into_iter().cycle().take(8).enumerate() {
        sleep(Duration::from_millis(700));
        assert!(laptop.client.tell(&["switch", access.link()]).status.success());
        let switch = eventually("the switch is over", || {
            let switches = laptop.client.try_status()?["switches"].as_array()?.clone();
            (switches.len() == turn + 1).then_some(())?;
            switches.last().cloned()
        });
        let (_, rtt) = ROUND_TRIPS.into_iter().find(|it| switch["to"] == it.0).unwrap();
        let gap = switch["gap"].as_f64().unwrap();
        assert!(gap >= rtt && gap < rtt + 100.0, "the gap is a round trip: {switch}");
    }
    sleep(Duration::from_secs(2));
    assert_eq!(last_switch(&laptop.client.status())["to"], "wifi0");
    events.kill().unwrap();
    events.wait().unwrap();
    let events = lines.map_while(Result::ok);
    let silent: Vec<Value> = events
        .filter_map(|line| serde_json::from_str::<Value>(&line).ok())
        .filter(|event| event["state"] == "suspect")
        .collect();
    assert!(silent.is_empty(), "{silent:#?}");
}
