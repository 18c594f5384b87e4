//! The real binary, as scripts and people call it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// RFC 8032 §7.1, test 1.
const SEED: &str = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A=\n";
const PUBLIC: &str = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n";

struct Ended {
    status: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            status: output.status.code().expect("roamd is not killed by a signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roamd"));
    command.current_dir(directory).env_clear().stdin(Stdio::null());
    command
}

fn roamd(directory: &TempDir, arguments: &[&str]) -> Ended {
    command(directory.path()).args(arguments).output().unwrap().into()
}

fn roamd_with_input(arguments: &[&str], input: &str) -> Ended {
    let mut child = command(Path::new("/"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    write(&directory, "host.key", SEED, 0o600);
    directory
}

fn write(directory: &TempDir, name: &str, content: &str, mode: u32) {
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

fn copy(directory: &TempDir, fixture: &str) {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(fixture);
    let name = data.file_name().unwrap().to_str().unwrap();
    write(directory, name, &fs::read_to_string(&data).unwrap(), 0o644);
}

#[test]
fn genkey_prints_one_line_that_pubkey_takes() {
    let key = roamd(&directory(), &["genkey"]);
    assert_eq!((key.status, key.stderr.as_str(), key.stdout.len()), (0, "", 45));
    let public = roamd_with_input(&["pubkey"], &key.stdout);
    assert_eq!((public.status, public.stderr.as_str(), public.stdout.len()), (0, "", 45));
    assert_ne!(key.stdout, public.stdout);
}

#[test]
fn genkey_creates_a_private_file_and_prints_nothing() {
    let directory = directory();
    let ended = roamd(&directory, &["genkey", "--output", "new.key"]);
    assert_eq!((ended.status, ended.stdout.as_str(), ended.stderr.as_str()), (0, "", ""));
    let mode = fs::metadata(directory.path().join("new.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert_eq!(roamd(&directory, &["pubkey", "new.key"]).status, 0);
}

#[test]
fn genkey_never_overwrites() {
    let directory = directory();
    let ended = roamd(&directory, &["genkey", "--output", "host.key"]);
    assert_eq!(ended.status, 73);
    assert_eq!(
        ended.stderr,
        "roamd: host.key exists, and a key is never overwritten: choose another file, or remove \
         this one\n"
    );
    assert_eq!(fs::read_to_string(directory.path().join("host.key")).unwrap(), SEED);
}

#[test]
fn genkey_never_follows_a_symbolic_link() {
    let directory = directory();
    std::os::unix::fs::symlink("elsewhere", directory.path().join("new.key")).unwrap();
    assert_eq!(roamd(&directory, &["genkey", "-o", "new.key"]).status, 73);
    assert!(!directory.path().join("elsewhere").exists());
}

#[test]
fn genkey_names_what_it_cannot_create() {
    let ended = roamd(&directory(), &["genkey", "-o", "absent/new.key"]);
    assert_eq!(ended.status, 73);
    assert_eq!(
        ended.stderr,
        "roamd: cannot create absent/new.key: No such file or directory (os error 2)\n"
    );
}

#[test]
fn genkey_is_denied_permission_with_a_status_of_its_own() {
    // /proc lets not even root create a file.
    let denied = roamd(&directory(), &["genkey", "-o", "/proc/sys/kernel/roamd.key"]);
    assert!(matches!(denied.status, 73 | 77), "{}", denied.stderr);
    assert!(denied.stderr.starts_with("roamd: cannot create /proc/sys/kernel/roamd.key: "));
}

#[test]
fn genkey_warns_of_a_redirection_that_others_can_read() {
    let directory = directory();
    write(&directory, "out.key", "", 0o644);
    let out = fs::File::create(directory.path().join("out.key")).unwrap();
    let ended: Ended = command(directory.path()).arg("genkey").stdout(out).output().unwrap().into();
    assert_eq!(ended.status, 0);
    assert!(ended.stderr.starts_with("roamd: warning: the file on standard output has mode 0644"));
}

#[test]
fn pubkey_reads_a_file_or_standard_input() {
    assert_eq!(roamd(&directory(), &["pubkey", "host.key"]).stdout, PUBLIC);
    assert_eq!(roamd_with_input(&["pubkey"], SEED).stdout, PUBLIC);
}

#[test]
fn pubkey_says_what_is_wrong_with_its_input() {
    let directory = directory();
    write(&directory, "exposed.key", SEED, 0o604);
    write(&directory, "garbled.key", "secret", 0o600);
    for (file, status, message) in [
        ("absent.key", 66, "cannot read absent.key: No such file or directory (os error 2)"),
        (
            "exposed.key",
            77,
            "exposed.key has mode 0604, so others can use the key: run chmod 600 exposed.key",
        ),
        (
            "garbled.key",
            65,
            "garbled.key does not hold a private key: a key is 44 characters of base64, not 6",
        ),
    ] {
        let ended = roamd(&directory, &["pubkey", file]);
        assert_eq!((ended.status, ended.stderr), (status, format!("roamd: {message}\n")));
    }
    // Their modes are right for what they are: a chmod would break the system.
    for (file, status) in [("/dev/null", 65), ("/bin/ls", 65), ("/tmp", 66)] {
        let ended = roamd(&directory, &["pubkey", file]);
        assert_eq!(ended.status, status, "{}", ended.stderr);
        assert!(!ended.stderr.contains("chmod"), "{}", ended.stderr);
    }
    let ended = roamd_with_input(&["pubkey"], "secret\n");
    assert_eq!(ended.status, 65);
    assert_eq!(
        ended.stderr,
        "roamd: standard input is not a private key: a key is 44 characters of base64, not 6\n"
    );
}

#[test]
fn check_prints_the_effective_configuration_and_the_public_key() {
    let directory = directory();
    copy(&directory, "valid/client-least.toml");
    let ended = roamd(&directory, &["check", "client-least.toml"]);
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
    assert!(ended.stdout.contains(&format!("# this host's public key: {PUBLIC}")));
    assert!(ended.stdout.contains("idle-timeout = \"30s\""));
    assert!(!ended.stdout.contains(SEED.trim()));

    write(&directory, "effective.toml", &ended.stdout, 0o644);
    let again = roamd(&directory, &["check", "effective.toml"]);
    assert_eq!(again.stdout.replace("effective", "client-least"), ended.stdout);
}

#[test]
fn check_tells_of_a_proxy_in_the_environment_that_cannot_be_used() {
    let directory = directory();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/valid/client-least.toml");
    let text = fs::read_to_string(data).unwrap();
    let text = text.replace("[server]\n", "[server]\ntcp-port = 443\n");
    write(&directory, "home.toml", &text, 0o644);
    let checked = |proxy: &str| {
        let mut command = command(directory.path());
        Ended::from(
            command.args(["check", "home.toml"]).env("HTTPS_PROXY", proxy).output().unwrap(),
        )
    };
    let ended = checked("socks5://laptop:secret@192.0.2.8:1080");
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
    assert!(
        ended.stdout.contains("\n# HTTPS_PROXY of the environment is not used: "),
        "{}",
        ended.stdout
    );
    assert!(!ended.stdout.contains("secret"), "{}", ended.stdout);
    let ended = checked("http://192.0.2.8:3128");
    assert!(!ended.stdout.contains("# HTTPS_PROXY"), "{}", ended.stdout);
    assert!(ended.stdout.contains("proxy = \"http://192.0.2.8:3128\""), "{}", ended.stdout);
}

#[test]
fn check_lists_every_problem_on_a_line_of_its_own() {
    let directory = directory();
    copy(&directory, "invalid/duplicate-peers.toml");
    let ended = roamd(&directory, &["check", "duplicate-peers.toml"]);
    assert_eq!((ended.status, ended.stdout.as_str()), (78, ""));
    assert_eq!(ended.stderr.lines().count(), 4);
    assert!(ended.stderr.lines().all(|line| line.starts_with("duplicate-peers.toml:1")));
}

#[test]
fn check_distinguishes_a_missing_file_from_a_wrong_one() {
    let directory = directory();
    write(&directory, "syntax.toml", "role = \n", 0o644);
    assert_eq!(roamd(&directory, &["check", "absent.toml"]).status, 66);
    assert_eq!(roamd(&directory, &["check", "syntax.toml"]).status, 78);
}

#[test]
fn a_configuration_with_a_key_must_be_private_to_its_owner() {
    let directory = directory();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/valid/client-least.toml");
    let text = fs::read_to_string(data).unwrap();
    let inline =
        text.replace("private-key-file = \"host.key\"", &format!("private-key = {SEED:?}"));
    assert_ne!(inline, text);
    for mode in [0o640, 0o620, 0o604] {
        write(&directory, "home.toml", &inline, mode);
        let ended = roamd(&directory, &["check", "home.toml"]);
        assert_eq!(ended.status, 78, "{mode:o}");
        let file = fs::canonicalize(directory.path()).unwrap().join("home.toml");
        assert_eq!(
            ended.stderr,
            format!(
                "home.toml:2: private-key can be read by others, for this file has mode {mode:04o}: run \
                 chmod 600 {}, and make another key if they are not to be trusted with this one\n",
                file.display()
            )
        );
    }
    write(&directory, "home.toml", &inline, 0o600);
    assert_eq!(roamd(&directory, &["check", "home.toml"]).status, 0);
    // Without a key in it, a file may be for everybody.
    write(&directory, "home.toml", &text, 0o644);
    assert_eq!(roamd(&directory, &["check", "home.toml"]).status, 0);
}

/// A file that another user may not read ends the daemon in the way that `--help` says.
#[test]
fn an_unreadable_configuration_exits_with_permission_denied() {
    let directory = directory();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    copy(&directory, "valid/client-least.toml");
    write(&directory, "home.toml", "", 0o600);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let mut command = command(directory.path());
    command.args(["run", "home.toml"]).uid(nobody.uid.as_raw()).gid(nobody.gid.as_raw());
    let ended = Ended::from(command.output().unwrap());
    assert_eq!(ended.status, 77, "{}", ended.stderr);
    assert_eq!(ended.stderr, "roamd: cannot read home.toml: Permission denied (os error 13)\n");
}

#[test]
fn check_accepts_the_examples_with_a_key_from_here() {
    for name in ["client.toml", "server.toml"] {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
        let directory = directory();
        let mut command = command(directory.path());
        command.env("ROAMD_PRIVATE_KEY_FILE", "host.key").arg("check").arg(example);
        let ended = Ended::from(command.output().unwrap());
        assert_eq!(ended.status, 0, "{}", ended.stderr);
    }
}

#[test]
fn run_refuses_a_wrong_configuration_before_it_does_anything() {
    let directory = directory();
    copy(&directory, "invalid/keep-alive-too-long.toml");
    let ended = roamd(&directory, &["run", "keep-alive-too-long.toml"]);
    assert_eq!(ended.status, 78);
    assert_eq!(
        ended.stderr,
        "keep-alive-too-long.toml:9: quic.keep-alive = 40s must be less than half of \
         quic.idle-timeout (30s)\n"
    );
}

#[cfg(feature = "demo")]
#[test]
fn a_demo_whose_picture_cannot_be_written_does_not_begin() {
    let ended = roamd(&directory(), &["demo", "--svg", "/nonexistent/picture.svg"]);
    assert_eq!((ended.status, ended.stdout.as_str()), (73, ""));
    let said = ended.stderr;
    assert!(said.contains("cannot write /nonexistent/picture.svg: No such file"), "{said}");
}

#[test]
fn wrong_usage_has_a_status_of_its_own() {
    for arguments in [&["frobnicate"][..], &["pubkey", "a", "b"], &["status", "--jsno"], &[]] {
        let ended = roamd(&directory(), arguments);
        assert_eq!((ended.status, ended.stdout.as_str()), (64, ""), "{arguments:?}");
        assert!(ended.stderr.contains("Usage: roamd"), "{}", ended.stderr);
    }
}

#[test]
fn a_word_that_names_no_tunnel_is_wrong_usage() {
    let arguments: [&[&str]; 4] =
        [&["down", ""], &["status", "home/"], &["check", ".."], &["switch", "--auto", "home/"]];
    for arguments in arguments {
        let ended = roamd(&directory(), arguments);
        assert_eq!((ended.status, ended.stdout.as_str()), (64, ""), "{arguments:?}");
        let expected = "a tunnel has a name, such as home, or a file, such as ./home.toml\n";
        assert!(ended.stderr.contains(expected), "{}", ended.stderr);
    }
}

/// `roamd up` or `down` of the tunnels in this folder, from there, where systemd says this of every unit.
fn service(directory: &TempDir, arguments: &[&str], shown: &str) -> Ended {
    let systemctl = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/bin");
    let mut command = command(directory.path());
    command.args(arguments).env("PATH", systemctl).env("SHOWN", shown);
    for folder in ["ROAMD_CONFIG_DIR", "ROAMD_RUNTIME_DIR"] {
        command.env(folder, directory.path());
    }
    command.output().unwrap().into()
}

#[test]
fn down_of_a_tunnel_that_nobody_knows_says_so() {
    const NOTHING: &str = "ActiveState=inactive\nUnitFileState=disabled";
    let directory = directory();
    let folder = directory.path().display();
    let absent = |rest: &str| {
        format!(
            "roamd: cannot read {folder}/hoem.toml: No such file or directory (os error 2){rest}\n"
        )
    };
    let ended = service(&directory, &["down", "hoem"], NOTHING);
    assert_eq!((ended.status, ended.stderr), (66, absent("")));
    write(&directory, "home.toml", "", 0o600);
    let ended = service(&directory, &["down", "hoem"], NOTHING);
    assert_eq!((ended.status, ended.stderr), (66, absent("; there is home")));
    // Its file is gone, and it runs on; it never had one and starts at boot; it is there.
    for (name, shown) in [
        ("hoem", "ActiveState=active\nUnitFileState=disabled"),
        ("hoem", "ActiveState=failed\nUnitFileState=disabled"),
        ("hoem", "ActiveState=inactive\nUnitFileState=enabled"),
        ("home", NOTHING),
        ("./home.toml", NOTHING),
    ] {
        let ended = service(&directory, &["down", name], shown);
        let name = if name == "./home.toml" { "home" } else { name };
        assert_eq!((ended.status, ended.stdout), (0, format!("{name}: stopped\n")), "{shown}");
    }
    // What people call a connection of NetworkManager's.
    write(&directory, "nm+1.label", "hotel", 0o600);
    let ended = service(&directory, &["down", "hotel"], NOTHING);
    let expected = "roamd: NetworkManager has hotel: nmcli connection down hotel\n";
    assert_eq!((ended.status, ended.stderr.as_str()), (1, expected));
}

#[test]
fn up_of_a_file_elsewhere_says_how_to_install_it() {
    let (directory, elsewhere) = (directory(), tempfile::tempdir().unwrap());
    let (folder, file) = (directory.path().display(), elsewhere.path().join("home.toml"));
    fs::write(&file, "").unwrap();
    let file = file.to_str().unwrap();
    let ended = service(&directory, &["up", file], "StatusText=");
    let expected = format!(
        "roamd: systemd starts files of {folder} that end in .toml. Make {file} one of them:\n  \
         sudo install -m 600 -o roamd -g roamd {file} {folder}/home.toml\n\
         or run it in this terminal: sudo roamd run {file}\n"
    );
    assert_eq!((ended.status, ended.stderr), (64, expected));
    let ended = service(&directory, &["down", file], "");
    assert!(ended.status == 64 && ended.stderr.contains("with Ctrl-C"), "{}", ended.stderr);
    let ended = service(&directory, &["up", "home"], "StatusText=");
    assert_eq!(ended.status, 66, "{}", ended.stderr);
    write(&directory, "home.toml", "", 0o600);
    let ended = service(&directory, &["up", "home.toml"], "StatusText=active on wlan0, 12 ms");
    assert_eq!((ended.status, ended.stdout.as_str()), (0, "home: active on wlan0, 12 ms\n"));
    let ended = service(&directory, &["up", file], "StatusText=");
    let is_kept = !ended.stderr.contains("install") && ended.stderr.contains("home.toml already;");
    assert!(ended.status == 64 && is_kept, "{}", ended.stderr);
    let spaced = elsewhere.path().join("my tunnel.toml");
    fs::write(&spaced, "").unwrap();
    let spaced = spaced.to_str().unwrap();
    let ended = service(&directory, &["up", spaced], "StatusText=");
    let quoted = format!("sudo roamd run '{spaced}'");
    assert!(ended.status == 64 && ended.stderr.contains(&quoted), "{}", ended.stderr);
}

#[test]
fn help_and_version_are_no_errors() {
    for arguments in [&["--help"][..], &["genkey", "--help"], &["status", "-h"]] {
        let ended = roamd(&directory(), arguments);
        assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
        assert!(ended.stdout.contains("Examples:\n  roamd "), "{}", ended.stdout);
    }
    let version = roamd(&directory(), &["--version"]);
    assert_eq!(version.stdout, format!("roamd {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_closed_pipe_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let directory = directory();
    let ended: Ended =
        command(directory.path()).arg("genkey").stdout(writer).output().unwrap().into();
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
}

#[test]
fn help_names_the_commands_of_this_build_alone() {
    let help = roamd(&directory(), &["--help"]).stdout;
    let names = |command: &str| {
        help.lines().any(|line| line.trim_start().split(' ').next() == Some(command))
    };
    assert!(names("status"), "{help}");
    assert_eq!(names("demo"), cfg!(feature = "demo"), "{help}");
    assert_eq!(names("watch"), cfg!(feature = "watch"), "{help}");
    assert_eq!(names("notify"), cfg!(feature = "desktop"), "{help}");
    let add = roamd(&directory(), &["peer", "add", "--help"]).stdout;
    assert_eq!(add.contains("--qr"), cfg!(feature = "qr"), "{add}");
    let hidden = roamd(&directory(), &["network-manager", "--help"]);
    assert_eq!(hidden.status == 0, cfg!(feature = "networkmanager"), "{}", hidden.stderr);
}

#[cfg(feature = "networkmanager")]
#[test]
fn an_agent_of_networkmanager_hears_which_secrets_to_ask_for() {
    let arguments =
        "network-manager-dialog -u 1 -n home -s roamd -i -t private-key -t x-vpn-message:Again.";
    let arguments: Vec<_> = arguments.split(' ').collect();
    let connection = "DATA_KEY=private-key-flags\nDATA_VAL=1\n\nSECRET_KEY=private-key\nSECRET_VAL=old\n\nDONE\nQUIT\n";
    let ended = roamd(&directory(), &arguments);
    assert_eq!((ended.status, ended.stdout.as_str()), (64, ""), "{}", ended.stderr);
    let ended = roamd_with_input(&[&arguments[..], &["--external-ui-mode"]].concat(), connection);
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
    assert!(ended.stdout.contains("\nDescription=Again.\n\n[private-key]\n"), "{}", ended.stdout);
    assert!(!ended.stdout.contains("old"), "{}", ended.stdout);
}

#[test]
fn a_drill_finds_out_first_whether_its_picture_can_be_written() {
    let directory = directory();
    let ended = roamd(&directory, &["drill", "--svg", "absent/drill.svg"]);
    assert_eq!(ended.status, 73);
    assert_eq!(
        ended.stderr,
        "roamd: cannot write absent/drill.svg: No such file or directory (os error 2)\n"
    );
    let mut nobody = command(directory.path());
    nobody.env("ROAMD_RUNTIME_DIR", directory.path()).args(["drill", "--svg", "drill.svg"]);
    let ended = Ended::from(nobody.output().unwrap());
    assert_eq!(ended.status, 1);
    assert!(ended.stderr.starts_with("roamd: no roamd is running"), "{}", ended.stderr);
    assert!(!directory.path().join("drill.svg").exists());
}

#[test]
fn recorded_events_become_a_report_and_a_picture() {
    let directory = directory();
    let event = |minute: u8, rest: &str| {
        format!("{{\"schema\":1,\"time\":\"2026-11-23T10:{minute:02}:00.000Z\",{rest}}}\n")
    };
    let switched = |from: &str, to: &str| {
        format!(
            "\"event\":\"switched\",\"from\":\"{from}\",\"from-transport\":\"udp\",\"to\":\"{to}\",\
             \"to-transport\":\"udp\",\"reason\":\"the old path is gone\",\"gap\":63.2,\"summary\":\"\""
        )
    };
    let events = event(0, "\"event\":\"listening\",\"summary\":\"listening\"")
        + &event(10, &switched("wlan0", "wwan0"))
        + &event(40, &switched("wwan0", "wlan0"));
    write(&directory, "day.jsonl", &events, 0o644);
    let ended = roamd(&directory, &["report", "day.jsonl", "--svg", "day.svg"]);
    assert_eq!((ended.status, ended.stderr.as_str()), (0, ""));
    for line in ["wwan0                   30 min  75.0 %", "wlan0                   10 min  25.0 %"]
    {
        assert!(ended.stdout.contains(line), "{}", ended.stdout);
    }
    assert!(
        ended.stdout.contains("63 ms  wlan0 -> wwan0: the old path is gone"),
        "{}",
        ended.stdout
    );
    let svg = fs::read_to_string(directory.path().join("day.svg")).unwrap();
    assert!(svg.starts_with("<svg ") && svg.contains("wlan0 -&gt; wwan0"), "{svg}");
    assert_eq!(
        roamd_with_input(&["report"], &events).stdout,
        ended.stdout.split("\nThe time").next().unwrap()
    );

    let empty = roamd(&directory, &["report"]);
    assert_eq!((empty.status, empty.stderr.as_str()), (1, "roamd: there are no events\n"));
    assert_eq!(roamd(&directory, &["report", "absent.jsonl"]).status, 66);
}
