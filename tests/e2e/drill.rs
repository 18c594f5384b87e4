//! `roamd drill`: links that are cut as the tunnel alone sees them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Command, Stdio},
    thread::sleep,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use roamd_lab::Access;
use serde_json::Value;

use crate::{
    harness::{Host, PROGRAM, eventually},
    roaming::Laptop,
    ssh::Sshd,
};

fn drill(client: &Host, arguments: &[&str]) -> Command {
    let mut command = client.namespace.command(PROGRAM);
    command.arg("drill").args(arguments).env("ROAMD_RUNTIME_DIR", client.folder());
    command
}

/// All that the host says of links, addresses, routes and rules, but for counters and life times.
fn state(client: &Host) -> String {
    let questions = [
        "ip link",
        "ip address",
        "ip route show table all",
        "ip -6 route show table all",
        "ip rule",
        "tc qdisc",
        "nft list ruleset",
    ];
    let mut state = String::new();
    for question in questions {
        let words: Vec<_> = question.split(' ').collect();
        let output = client.namespace.command(words[0]).args(&words[1..]).output().unwrap();
        assert!(output.status.success(), "{question}");
        state += &String::from_utf8(output.stdout).unwrap();
    }
    state.split_whitespace().filter(|word| !word.ends_with("sec")).collect::<Vec<_>>().join(" ")
}

#[test]
fn each_link_is_cut_and_nothing_else_is_touched() {
    let laptop = Laptop::connected();
    let client = &laptop.client;
    let before = state(client);
    // Whoever uses the same links without the tunnel notices nothing.
    let mut outside = client.namespace.command("ping");
    outside.args(["-n", "-i", "0.1", "-w", "9", "10.77.9.2"]).stdout(Stdio::piped());
    let outside = outside.spawn().unwrap();
    let svg = client.folder().join("drill.svg");
    let output = drill(client, &["--for", "2s", "--json", "--svg", svg.to_str().unwrap()]).output();
    let output = output.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    let told: Value = serde_json::from_str(&text).unwrap();
    let cuts = told["cuts"].as_array().unwrap();
    let links: Vec<_> = cuts.iter().map(|cut| (&cut["link"], &cut["over"])).collect();
    let (wifi, lte) = (Value::from("wifi0"), Value::from("lte0"));
    assert_eq!(links, [(&wifi, &lte), (&lte, &wifi)], "{text}");
    for cut in cuts {
        assert_eq!(cut["alone"], false);
        let stall = cut["stall"].as_f64().unwrap();
        assert!((50.0..1500.0).contains(&stall), "{text}");
        assert!((1.9..4.0).contains(&cut["seconds"].as_f64().unwrap()), "{text}");
        let switches = cut["switches"].as_array().unwrap();
        assert!(switches.iter().any(|it| it["reason"] == "the old path was silent"), "{text}");
        assert!(cut["echoed"].as_u64() <= cut["typed"].as_u64(), "{text}");
    }
    assert_eq!((&told["interrupted"], &told["left-out"]), (&false.into(), &Value::Array(vec![])));
    let drawn = format!("lte0 is cut for {:.1} s", cuts[1]["seconds"].as_f64().unwrap());
    assert!(fs::read_to_string(svg).unwrap().contains(&drawn), "{drawn}");
    let outside = outside.wait_with_output().unwrap();
    let outside = String::from_utf8(outside.stdout).unwrap();
    assert!(outside.contains(" 0% packet loss"), "{outside}");
    assert_eq!(state(client), before);
    // The choices of the drill are forgotten.
    laptop.until_active(Access::Wifi);
    let status = client.status();
    assert!(status["paths"].as_array().unwrap().iter().all(|path| path["chosen"] == false));
    assert!(laptop.server.log().lines().all(|line| !line.contains("drill")));
}

#[test]
fn a_drill_refuses_while_somebody_is_logged_in_and_ends_with_its_command() {
    let laptop = Laptop::connected();
    let client = &laptop.client;
    let sshd = Sshd::start_at(laptop.scene.server(), "10.66.0.1");
    let mut ssh = sshd.ssh(client, "cat");
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut shell = BufReader::new(ssh.stdout.take().unwrap());
    let mut echo = |line: &str| {
        writeln!(ssh.stdin.as_mut().unwrap(), "{line}").unwrap();
        let mut echoed = String::new();
        shell.read_line(&mut echoed).unwrap();
        assert_eq!(echoed.trim(), line);
    };
    echo("before");
    let refused = drill(client, &[]).output().unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), refused.stdout.is_empty()), (Some(75), true), "{error}");
    assert!(error.contains("the tunnel is in use: ssh to 10.66.0.1;"), "{error}");

    let cuts = || client.log().matches("cutting a link for a drill").count();
    let ended = || client.log().matches("the link is not cut any more").count();
    let cutting = || {
        let before = cuts();
        let mut command = drill(client, &["--yes", "--for", "10s"]);
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("a link is cut", || (cuts() > before).then_some(()));
        sleep(Duration::from_millis(300));
        (command, before)
    };
    for (signal, status) in [(Signal::SIGINT, Some(130)), (Signal::SIGKILL, None)] {
        let (command, before) = cutting();
        assert_eq!(ended(), before, "it is cut for longer");
        kill(Pid::from_raw(command.id() as i32), signal).unwrap();
        eventually("the cut is over", || (ended() > before).then_some(()));
        let output = command.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), status, "{text}");
        assert_eq!(text.contains("Interrupted."), signal == Signal::SIGINT, "{text}");
        echo("after");
    }
    // A daemon that does not answer keeps nobody who insists, and lifts the cut when it can.
    let (mut command, before) = cutting();
    let daemon = client.daemon.as_ref().unwrap();
    daemon.signal(Signal::SIGSTOP).unwrap();
    let interrupt = || kill(Pid::from_raw(command.id() as i32), Signal::SIGINT).unwrap();
    interrupt();
    sleep(Duration::from_millis(500));
    interrupt();
    let status = eventually("the drill left", || command.try_wait().unwrap());
    daemon.signal(Signal::SIGCONT).unwrap();
    assert_eq!(status.code(), Some(130));
    let mut said = String::new();
    command.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("roamd: left at once."), "{said}");
    eventually("the cut is over", || (ended() > before).then_some(()));
    echo("at last");
    drop(ssh.stdin.take());
    assert!(ssh.wait().unwrap().success());
}
