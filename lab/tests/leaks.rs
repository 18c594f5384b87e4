//! What the lab leaves behind: nothing. In a process of its own, because it counts what the process
//! holds. Needs root: without it every test fails and says so.

#![cfg(test)]

use std::{
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use roamd_lab::{Namespace, Scene};

const SECOND: Duration = Duration::from_secs(1);

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

/// Pid of every process that this one started and has not reaped.
fn children() -> String {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok())
        .collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + 5 * SECOND;
    while !holds() {
        assert!(Instant::now() < deadline, "not so after five seconds: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn build_and_drop(folder: &Path) {
    let scene = Scene::new().unwrap();
    let spawn = |name: &str| {
        let mut command = scene.server().command("sleep");
        command.arg("1000");
        scene.server().spawn(name, command, folder).unwrap()
    };
    let (_one, _two) = (spawn("one"), spawn("two"));
    assert_eq!(children().split_whitespace().count(), 2);
    scene.client().run(|| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
}

/// One test, so that nothing else opens a file meanwhile.
#[test]
fn a_scene_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    build_and_drop(folder.path());
    let (files, threads) = (count("/proc/self/fd"), count("/proc/self/task"));
    for _ in 0..3 {
        build_and_drop(folder.path());
    }
    assert_eq!(count("/proc/self/fd"), files);
    eventually("no thread is left", || count("/proc/self/task") == threads);
    assert_eq!(children(), "");

    children_die_with_a_parent_that_is_killed();
}

fn children_die_with_a_parent_that_is_killed() {
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parent_that_is_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(parent.stdout.take().unwrap()).lines();
    let pid = lines.map_while(Result::ok).find_map(|line| {
        line.split_once("child ").and_then(|(_, pid)| pid.trim().parse::<i32>().ok())
    });
    let pid = pid.expect("the parent did not say which child it has");
    parent.kill().unwrap();
    parent.wait().unwrap();
    // Init may take its time to reap the orphan: a zombie is as good as gone.
    eventually("the child has died with its parent", || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
    });
}

#[test]
#[ignore = "the part of the parent in a_scene_leaves_nothing_behind"]
fn parent_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("doomed").unwrap();
    let mut command = namespace.command("sleep");
    command.arg("1000");
    let process = namespace.spawn("sleep", command, folder.path()).unwrap();
    writeln!(std::io::stdout(), "child {}", process.pid()).unwrap();
    std::thread::sleep(30 * SECOND);
}
