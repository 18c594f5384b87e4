//! `roamd peer`: a server's file as a person wrote it, and what becomes of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

const SERVER: &str = "\
# The server at home.
role = \"server\"
private-key-file = \"host.key\"
listen = \"[::]:443\"   # often open

[tun]
addresses = [\"10.66.0.1/29\", \"fd66::1/64\"]

# Anna's
[[peer]]
name = \"phone\"
public-key = \"ZlmK8YW1XZUsfdNDTUGuiHejX9tfnBnMg/U5g9+B0ZM=\"   # new in May
addresses = [\"10.66.0.2\", \"fd66::2\"]
";

fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    assert!(roamd(&directory, &["genkey", "--output", "host.key"]).status.success());
    write(&directory, "home.toml", SERVER, 0o640);
    directory
}

fn write(directory: &TempDir, name: &str, content: &str, mode: u32) {
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

fn read(directory: &TempDir, name: &str) -> String {
    fs::read_to_string(directory.path().join(name)).unwrap()
}

fn roamd(directory: &TempDir, arguments: &[&str]) -> Output {
    command(directory, arguments).output().unwrap()
}

fn command(directory: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roamd"));
    let runtime = directory.path().join("run");
    command.current_dir(directory.path()).env_clear().env("ROAMD_RUNTIME_DIR", runtime);
    command.args(arguments);
    command
}

fn peer(directory: &TempDir, arguments: &[&str]) -> Output {
    roamd(directory, &[&["peer"], arguments].concat())
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_new_peer_gets_free_addresses_and_a_configuration_that_works() {
    let directory = directory();
    let add = ["add", "laptop", "home.toml", "--endpoint", "vpn.example.net"];
    let output = peer(&directory, &[&add[..], &["--output", "laptop.toml"]].concat());
    assert!(output.status.success(), "{}", error(&output));
    assert_eq!(error(&output), "laptop has 10.66.0.3, fd66::3 in home.toml\n");
    assert!(output.stdout.is_empty());
    let server = read(&directory, "home.toml");
    assert!(server.starts_with(SERVER), "what was there stays: {server}");
    let file = directory.path().join("laptop.toml");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let mode = fs::metadata(directory.path().join("home.toml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640, "the server's file keeps its mode");
    // Both fit each other.
    let checked = roamd(&directory, &["check", "laptop.toml"]);
    let checked = String::from_utf8(checked.stdout).unwrap();
    assert!(checked.contains("address = [\"vpn.example.net:443\"]"), "{checked}");
    let key = checked.lines().find_map(|line| line.strip_prefix("# this host's public key: "));
    assert!(server.contains(key.unwrap()), "{server}");
    assert!(!checked.contains(read(&directory, "laptop.toml").split('"').nth(3).unwrap()));
    assert!(roamd(&directory, &["check", "home.toml"]).status.success());
    let list = String::from_utf8(peer(&directory, &["list", "home.toml"]).stdout).unwrap();
    assert_eq!(list.lines().count(), 2);
    assert!(list.starts_with("phone   ZlmK8YW1XZUsfdNDTUGuiHejX9tfnBnMg/U5g9+B0ZM=  10.66.0.2"));
}

#[test]
fn an_endpoint_without_a_port_is_at_all_ports_of_the_server() {
    let directory = directory();
    let listen = "listen = [\"[::]:4433\", \"[::]:443\", \"192.0.2.1:443\"]";
    write(&directory, "home.toml", &SERVER.replace("listen = \"[::]:443\"", listen), 0o640);
    let address = |endpoint| {
        let add = ["add", endpoint, "home.toml", "-e", endpoint];
        let text = String::from_utf8(peer(&directory, &add).stdout).unwrap();
        text.lines().find_map(|line| line.strip_prefix("address = ")).unwrap().to_owned()
    };
    assert_eq!(address("vpn.example.net"), r#"["vpn.example.net:4433", "vpn.example.net:443"]"#);
    assert_eq!(address("192.0.2.1:80"), r#"["192.0.2.1:80"]"#);
}

#[test]
fn a_removed_peer_leaves_the_others_and_their_comments() {
    let directory = directory();
    let add = ["add", "laptop", "home.toml", "-e", "vpn.example.net"];
    assert!(peer(&directory, &add).status.success());
    assert!(peer(&directory, &["remove", "laptop", "home.toml"]).status.success());
    assert_eq!(read(&directory, "home.toml"), SERVER);
    assert!(peer(&directory, &["remove", "phone", "home.toml"]).status.success());
    assert!(read(&directory, "home.toml").contains("# often open"));
    assert!(!read(&directory, "home.toml").contains("phone"));
}

#[cfg(feature = "qr")]
#[test]
fn a_qr_code_holds_the_whole_configuration() {
    let directory = directory();
    let output = peer(&directory, &["add", "x", "home.toml", "-e", "192.0.2.1", "--qr"]);
    let drawn = String::from_utf8(output.stdout).unwrap();
    assert!(drawn.lines().count() > 20 && drawn.contains('█'), "{drawn}");
}

fn add(more: &[&'static str]) -> Vec<&'static str> {
    [&["add", "new", "-e", "vpn.example.net"], more].concat()
}

#[test]
fn an_impossible_peer_is_refused_and_changes_nothing() {
    let directory = directory();
    write(&directory, "taken", "", 0o600);
    write(&directory, "client.toml", "role = \"client\"\n", 0o600);
    let key = "ZlmK8YW1XZUsfdNDTUGuiHejX9tfnBnMg/U5g9+B0ZM=";
    for (arguments, status, word) in [
        (vec!["add", "phone", "home.toml", "-e", "x"], 1, "a peer called phone already"),
        (vec!["add", "new", "home.toml"], 64, "--endpoint"),
        (vec!["add", "new", "home.toml", "-e", "a b"], 64, "a b"),
        (add(&["home.toml", "-o", "taken"]), 73, "taken: File exists"),
        (add(&["home.toml", "-r", "nonsense"]), 64, "must be a prefix such as"),
        (add(&["home.toml", "-r", "10.1.2.3/8"]), 64, "it must be 10.0.0.0/8"),
        (add(&["home.toml", "-a", "10.9.9.9"]), 78, "is outside of every network"),
        (add(&["home.toml", "-a", "10.66.0.2"]), 78, "is already used by"),
        (add(&["home.toml", "--public-key", key]), 78, "is already used by"),
        (add(&["absent.toml"]), 66, "cannot read absent.toml"),
        (add(&["client.toml"]), 78, "client.toml"),
        (vec!["remove", "nobody", "home.toml"], 1, "has no peer called nobody, but phone"),
        (vec!["list", "absent.toml"], 66, "cannot read absent.toml"),
        (vec!["lend", "home.toml"], 64, "lend"),
    ] {
        let output = peer(&directory, &arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", error(&output));
        assert!(error(&output).contains(word), "{arguments:?}: {}", error(&output));
        assert_eq!(read(&directory, "home.toml"), SERVER, "{arguments:?}");
    }
    let left: Vec<_> = fs::read_dir(directory.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 4, "nothing is left behind: {left:?}");
}

#[test]
fn peers_that_are_added_at_once_are_all_written() {
    const PEERS: usize = 100;
    let directory = directory();
    write(&directory, "home.toml", &SERVER.replace("/29", "/24"), 0o640);
    let children: Vec<_> = (0..PEERS)
        .map(|number| {
            let name = format!("new{number}");
            let add = ["peer", "add", &name, "home.toml", "-e", "x"];
            command(&directory, &add).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", error(&output));
    }
    let list = String::from_utf8(peer(&directory, &["list", "home.toml"]).stdout).unwrap();
    let addresses: HashSet<_> = list.lines().filter_map(|line| line.split("  ").last()).collect();
    assert_eq!((list.lines().count(), addresses.len()), (PEERS + 1, PEERS + 1), "{list}");
}

#[test]
fn a_network_that_is_full_is_named() {
    let directory = directory();
    for number in 3..=6 {
        let name = format!("peer{number}");
        let output = peer(&directory, &["add", &name, "home.toml", "-e", "x"]);
        assert!(output.status.success(), "{}", error(&output));
    }
    let before = read(&directory, "home.toml");
    let output = peer(&directory, &["add", "more", "home.toml", "-e", "x"]);
    assert!(
        error(&output).contains("every address of 10.66.0.0/29 is taken"),
        "{}",
        error(&output)
    );
    assert_eq!(read(&directory, "home.toml"), before);
}

#[test]
fn every_other_command_says_what_is_wrong() {
    let directory = directory();
    write(&directory, "wg.conf", "[Interface]\nAddress = here\n[Peer]\n", 0o600);
    for (arguments, status, word) in [
        (&["import", "wireguard", "absent"][..], 66, "cannot read absent"),
        (&["import", "wireguard", "wg.conf"], 65, "wg.conf:2: here is no address"),
        (&["import", "openvpn", "x"], 64, "openvpn"),
        (&["doctor", "absent.toml"], 66, "cannot read absent.toml"),
        (&["reload"], 1, "no roamd is running"),
        (&["reload", "home"], 1, "no roamd named home is running"),
        (&["events", "home"], 1, "no roamd named home is running"),
        #[cfg(feature = "watch")]
        (&["watch", "home"], 64, "watch needs a terminal"),
        #[cfg(feature = "watch")]
        (&["watch", "home", "--once"], 1, "no roamd named home is running"),
        (&["status", "home"], 1, "no roamd named home is running"),
        (&["switch", "wlan0"], 1, "no roamd is running"),
        (&["switch"], 64, "<LINK>"),
        (&["pause", "--for", "soon"], 64, "--for"),
        (&["pause", "home"], 1, "no roamd named home is running"),
        (&["resume"], 1, "no roamd is running"),
        (&["probe"], 1, "no roamd is running"),
    ] {
        let output = roamd(&directory, arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", error(&output));
        assert!(error(&output).contains(word), "{arguments:?}: {}", error(&output));
    }
    assert!(!Path::new("run").exists());
}

#[test]
fn a_tunnel_is_named_in_the_same_way_everywhere() {
    let directory = directory();
    let roamd = |arguments: &[&str]| {
        let mut command = command(&directory, arguments);
        let output = command.env("ROAMD_CONFIG_DIR", directory.path()).output().unwrap();
        let said = error(&output);
        (output.status.code(), String::from_utf8(output.stdout).unwrap(), said)
    };
    let file = directory.path().join("home.toml");
    let file = file.to_str().unwrap();
    let listed = roamd(&["peer", "list", file]);
    assert_eq!((listed.0, listed.1.lines().count()), (Some(0), 1), "{}", listed.2);
    for arguments in [&["peer", "list"][..], &["peer", "list", "home"]] {
        assert_eq!(roamd(arguments), listed, "{arguments:?}");
    }
    for arguments in [&["check"][..], &["check", "home"], &["peer", "add", "nas", "-e", "x"]] {
        let (code, _, error) = roamd(arguments);
        assert_eq!(code, Some(0), "{arguments:?}: {error}");
    }
    for arguments in [
        &["status", "away"][..],
        &["reload", "/srv/away.toml"],
        &["switch", "wlan0", "away"],
        &["switch", "--auto", "away"],
        &["switch", "--server", "paris", "away"],
        &["probe", "wlan0", "away"],
        &["probe", "--all", "away"],
        &["drain", "away"],
        &["events", "away.toml"],
    ] {
        let (code, _, error) = roamd(arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {error}");
        assert!(error.contains("no roamd named away is running"), "{arguments:?}: {error}");
    }
    let (code, _, said) = roamd(&["switch", "--auto", "wlan0", "away"]);
    assert!(code == Some(64) && said.contains("wlan0 is one word too many"), "{said}");
    let mine = directory.path().join("mine");
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join("away.toml"), "").unwrap();
    let (code, _, said) = roamd(&["up", mine.join("away.toml").to_str().unwrap()]);
    let advice = format!("sudo install -m 600 -o roamd -g roamd {}/away.toml ", mine.display());
    assert!(code == Some(64) && said.contains(&advice), "{said}");
    let (code, _, said) = roamd(&["up", "/srv/away.toml"]);
    assert!(code == Some(66) && said.contains("cannot read /srv/away.toml"), "{said}");
    for command in ["check", "run", "up"] {
        let (code, _, said) = roamd(&[command, "away"]);
        assert!(code == Some(66) && said.contains("/away.toml: No such file"), "{said}");
    }
    write(&directory, "berlin.toml", "", 0o600);
    for arguments in [&["check"][..], &["run"], &["doctor"], &["up"], &["peer", "list"]] {
        let (code, _, error) = roamd(arguments);
        assert_eq!(code, Some(64), "{arguments:?}: {error}");
        assert!(error.ends_with("name one: berlin, home\n"), "{arguments:?}: {error}");
    }
}

#[test]
fn a_shell_is_offered_the_tunnels_that_are_configured() {
    let directory = directory();
    write(&directory, "office.toml", "", 0o600);
    let offered = |words: &[&str]| {
        let mut command = command(&directory, &[&["--", "roamd"], words].concat());
        command.env("ROAMD_CONFIG_DIR", directory.path()).env("_ROAMD_COMPLETE", "bash");
        let output = command.env("_CLAP_COMPLETE_INDEX", words.len().to_string()).output().unwrap();
        assert!(output.status.success(), "{}", error(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(offered(&["check", ""]), "home\noffice\n--help");
    assert_eq!(offered(&["peer", "list", "o"]), "office");
    assert_eq!(offered(&["check", "./of"]), "./office.toml");
    // None runs.
    assert_eq!(offered(&["switch", "w"]), "");
    assert_eq!(offered(&["chec"]), "check");
}

/// A server's file that lists the servers of its fleet, of which it is the second one.
#[cfg(feature = "etcd")]
fn fleet(directory: &TempDir) -> String {
    let own = roamd(directory, &["pubkey", "host.key"]);
    let own = String::from_utf8(own.stdout).unwrap();
    let servers = format!(
        "[directory]
name = \"paris\"
etcd = {{ endpoints = [\"http://127.0.0.1:1\"], prefix = \"/roamd/home\" }}
[[directory.server]]
name = \"berlin \\\"one\\\"\"
address = [\"berlin.example.net\", \"192.0.2.1:443\"]
tcp-port = 443
public-key = \"ILl7CgG0nt3G7BMUtJESNrZDpV6uAAA4R6aRA/ywxhE=\"
[[directory.server]]
name = \"paris\"
address = \"paris.example.net\"
public-key = \"{}\"
",
        own.trim()
    );
    write(directory, "home.toml", &format!("{SERVER}{servers}"), 0o640);
    own.trim().to_owned()
}

#[test]
#[cfg(feature = "etcd")]
fn a_peer_of_one_server_is_told_of_that_one_and_a_person_may_say_another_address() {
    let directory = directory();
    let own = fleet(&directory);
    for (name, more, address) in [
        ("laptop", &[][..], "paris.example.net:443"),
        ("nas", &["-e", "192.0.2.9:80"], "192.0.2.9:80"),
    ] {
        let file = format!("{name}.toml");
        let add = ["add", name, "home.toml", "-o", &file];
        let output = peer(&directory, &[&add[..], more].concat());
        assert!(output.status.success(), "{}", error(&output));
        let text = read(&directory, &file);
        assert!(text.contains(&format!("address = [\"{address}\"]\n")), "{text}");
        assert!(text.contains(&own) && !text.contains("[[server]]"), "{text}");
        assert!(roamd(&directory, &["check", &file]).status.success());
    }
}

#[test]
#[cfg(feature = "etcd")]
fn without_an_endpoint_or_a_list_nobody_is_added() {
    let directory = directory();
    let output = peer(&directory, &["add", "laptop", "home.toml"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(error(&output).contains("Say --endpoint HOST"), "{}", error(&output));
    assert_eq!(read(&directory, "home.toml"), SERVER);
}

#[test]
#[cfg(feature = "etcd")]
fn a_list_without_the_key_of_this_server_is_refused() {
    let directory = directory();
    let own = fleet(&directory);
    let former = "4u+4U1cFgxgLMrJudxC7b4L9w13hgFC5JtMtzsV0VEQ=";
    let text = read(&directory, "home.toml").replace(&own, former);
    write(&directory, "home.toml", &text, 0o640);
    let output = roamd(&directory, &["check", "home.toml"]);
    assert_eq!(output.status.code(), Some(78));
    let said = error(&output);
    assert!(said.contains("directory.server has no element") && said.contains(&own), "{said}");
}
