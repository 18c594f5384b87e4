//! The show with a stand-in for the daemons: the session runs directly over the access networks.
//! Needs root: without it every test fails and says so.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use super::{script::Event, *};
use roamd_lab::{Access, scene::SERVER_V4};

/// Does what the command line promises, except for the tunnel.
const STAND_IN: &str = r#"#!/bin/sh
case "$1" in
genkey) echo private > "$3" ;;
pubkey) echo "public-of-$(basename "$2")" ;;
run) cat "$2"; echo "runtime $ROAMD_RUNTIME_DIR"; exec sleep 1000 ;;
esac
"#;

const FAILS: &str = r#"#!/bin/sh
case "$1" in
genkey) echo private > "$3" ;;
pubkey) echo key ;;
run) grep -q 'role = "server"' "$2" || exec sleep 1000; echo "role = \"server\": the sky is falling"; exit 78 ;;
esac
"#;

fn program(folder: &Path, script: &str) -> PathBuf {
    let program = folder.join("roamd");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    program
}

fn perform_with(stand_in: &str, script: Script, interrupt: &Interrupt) -> (String, Option<String>) {
    let folder = tempfile::tempdir().unwrap();
    let program = program(folder.path(), stand_in);
    let plan = Plan { program, server: SERVER_V4, script, svg: None };
    let mut out = Vec::new();
    let outcome = perform(&plan, &mut Screen::plain(&mut out), interrupt);
    let text = String::from_utf8(out).unwrap();
    (text, outcome.err().map(|error| format!("{error:#}")))
}

#[test]
fn a_demo_without_a_stall_succeeds() {
    let script = Script { length: Duration::from_secs(2), events: Vec::new() };
    let (text, error) = perform_with(STAND_IN, script, &Interrupt::default());
    assert_eq!(error, None, "{text}");
    assert!(text.contains("lines typed            20\n   lines echoed           20\n"), "{text}");
    assert!(text.contains("nobody would have noticed"), "{text}");
    assert!(!text.contains('\x1b'));
}

#[test]
fn events_happen_on_time_and_a_stall_is_reported() {
    let close = |scene: &roamd_lab::Scene| {
        scene.air(Access::Wifi).black_hole(true);
        Ok(())
    };
    let open = |scene: &roamd_lab::Scene| {
        scene.air(Access::Wifi).black_hole(false);
        Ok(())
    };
    let at = Duration::from_millis;
    let script = Script {
        length: at(3000),
        events: vec![
            Event { at: at(500), title: "out of range", offline: false, act: close },
            Event { at: at(1100), title: "back again", offline: false, act: open },
        ],
    };
    let (text, error) = perform_with(STAND_IN, script, &Interrupt::default());
    assert_eq!(error, None, "{text}");
    assert!(text.contains("0.5 s ▸ out of range"), "{text}");
    assert!(text.contains("1.1 s ▸ back again"), "{text}");
    assert!(text.contains("there was a short hitch"), "{text}");
}

#[test]
fn a_daemon_that_fails_is_quoted() {
    let (text, error) = perform_with(FAILS, Script::calm(), &Interrupt::default());
    let error = error.unwrap();
    assert!(error.starts_with("the daemon of the server"), "{error}");
    assert!(text.contains("The end of the server's log:\n   role = \"server\": the sky"), "{text}");
}

#[test]
fn an_interrupted_demo_removes_what_it_made() {
    let interrupt = Interrupt::default();
    let later = interrupt.clone();
    let stopper = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1500));
        later.set();
    });
    let started = std::time::Instant::now();
    let (text, error) = perform_with(STAND_IN, Script::calm(), &interrupt);
    stopper.join().unwrap();
    assert_eq!(error.as_deref(), Some("interrupted"));
    assert!(started.elapsed() < Duration::from_secs(4));
    assert!(!text.contains("lines typed"), "no sum of what was not whole: {text}");
    assert!(!text.contains("log:"), "{text}");
}
