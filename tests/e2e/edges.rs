//! What a running daemon shows: events, figures, findings; and to whom.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::UdpSocket,
    os::unix::{
        fs::PermissionsExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Command, Stdio},
};

#[cfg(feature = "metrics")]
use std::{net::TcpStream, os::unix::net::UnixStream};

use nix::sys::signal::Signal;
use roamd_lab::veth;
use serde_json::Value;

use crate::harness::{Host, Net, PATIENCE, PROGRAM, eventually};

pub(crate) fn said(host: &Host, arguments: &[&str]) -> (Option<i32>, String) {
    let output = host.tell(arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    (output.status.code(), text)
}

#[test]
fn events_are_printed_line_by_line() {
    let mut net = Net::new(1);
    net.start();
    let mut command = net.server.namespace.command(PROGRAM);
    command.args(["events", "roamd"]).env("ROAMD_RUNTIME_DIR", net.server.folder());
    let mut events = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(first["event"], "listening");
    net.clients[0].daemon = None;
    let gone: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!((&gone["event"], &gone["schema"]), (&"peer-disconnected".into(), &1.into()));
    assert_eq!(gone["peer"], "client0");
    net.clients[0].start();
    let back: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(back["event"], "peer-connected");
    assert!(back["summary"].as_str().unwrap().starts_with("client0 connected from 10.77.0.2"));
    // A listener that follows hears the next daemon, too; another one ends and says why.
    let mut command = net.server.namespace.command(PROGRAM);
    command.args(["events", "--follow", "roamd"]).env("ROAMD_RUNTIME_DIR", net.server.folder());
    let mut following = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut heard = BufReader::new(following.stdout.take().unwrap()).lines();
    heard.next().unwrap().unwrap();
    net.server.daemon = None;
    assert_eq!(events.wait().unwrap().code(), Some(1));
    net.server.start();
    let mut next = || -> Value { serde_json::from_str(&heard.next().unwrap().unwrap()).unwrap() };
    while next()["event"] != "listening" {}
    following.kill().unwrap();
    following.wait().unwrap();
}

#[cfg(feature = "metrics")]
fn get(mut stream: impl std::io::Read + std::io::Write, path: &str) -> String {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[cfg(feature = "metrics")]
#[test]
fn metrics_are_served_over_loopback_and_a_unix_socket() {
    let mut net = Net::new(1);
    let socket = net.server.folder().join("metrics");
    net.server.amend("[tun]", &format!("[metrics]\nlisten = {socket:?}\n[tun]"));
    net.clients[0].amend("[tun]", "[metrics]\nlisten = \"127.0.0.1:9433\"\n[tun]");
    net.clients[0].namespace.set_up("lo").unwrap();
    net.start();
    net.clients[0].assert_ping("10.66.0.1", &[]);
    let connect = || TcpStream::connect("127.0.0.1:9433").unwrap();
    let client = get(net.clients[0].namespace.run(connect).unwrap(), "/metrics");
    for line in [
        "HTTP/1.1 200 OK",
        "roamd_connected 1.0",
        "roamd_sessions_total 1",
        "roamd_path_active{link=\"eth0\",local=\"10.77.0.2\",server=\"10.77.0.1:4433\",transport=\"udp\"} 1.0",
        "roamd_switch_gap_seconds_bucket{le=\"+Inf\"} 0",
        "# EOF",
    ] {
        assert!(client.contains(line), "{line} in {client}");
    }
    let server = get(UnixStream::connect(&socket).unwrap(), "/metrics");
    for line in ["roamd_peer_connected{peer=\"client0\"} 1.0", "roamd_refused_keys_total 0"] {
        assert!(server.contains(line), "{line} in {server}");
    }
    let wrong = get(UnixStream::connect(&socket).unwrap(), "/");
    assert!(wrong.starts_with("HTTP/1.1 404"), "{wrong}");
}

#[test]
fn other_users_are_refused_even_if_the_socket_mode_admits_them() {
    let mut net = Net::new(1);
    net.start();
    let folder = net.server.folder().to_owned();
    let mut open = folder.as_path();
    loop {
        fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
        if open.parent() == Some(&std::env::temp_dir()) {
            break;
        }
        open = open.parent().unwrap();
    }
    let socket = folder.join("roamd.sock");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    // A stranger needs a copy of the program that it may run. Were it written by this process, the child of another
    // test could still have it open for writing (execve(2), ETXTBSY).
    let program = tempfile::tempdir().unwrap();
    fs::set_permissions(program.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = program.path().join("roamd");
    assert!(Command::new("cp").arg(PROGRAM).arg(&program).status().unwrap().success());
    let mut command = Command::new(&program);
    command.args(["status", "roamd"]).env("ROAMD_RUNTIME_DIR", &folder).uid(65534).gid(65534);
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("only root and the daemon's own user and group may ask"), "{error}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn the_doctor_finds_what_is_wrong_and_says_what_to_do() {
    let mut net = Net::new(2);
    net.configure_client(1, "10.77.1.1:4444", "");
    net.start_only(0);
    let file = |host: &Host| host.folder().join("roamd.toml").display().to_string();
    let (code, text) = said(&net.clients[0], &["doctor", &file(&net.clients[0])]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("ok    10.77.0.1:4433 over eth0: answers, "), "{text}");
    // A server that is not there, over a link that is narrow.
    net.clients[1].namespace.set_mtu("eth0", 1420).unwrap();
    let (code, text) = said(&net.clients[1], &["doctor", &file(&net.clients[1])]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("tun.mtu = 1340 avoids that"), "{text}");
    assert!(text.contains("bad   10.77.1.1:4444 over eth0: no answer"), "{text}");
    // A key that the server does not know.
    net.server.amend(&net.clients[1].key(), "ZlmK8YW1XZUsfdNDTUGuiHejX9tfnBnMg/U5g9+B0ZM=");
    assert_eq!(said(&net.server, &["reload", "roamd"]).0, Some(0));
    net.configure_client(1, "10.77.1.1:4433", "");
    let (code, text) = said(&net.clients[1], &["doctor", &file(&net.clients[1])]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("the server does not know this client's key"), "{text}");
    let (code, text) = said(&net.server, &["doctor", &file(&net.server)]);
    assert_eq!(code, Some(0), "{text}");
}

/// Runs a program on a host.
fn run(host: &Host, program: &str, arguments: &[&str]) {
    let output = host.namespace.command(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[test]
fn the_doctor_does_not_say_ok_when_it_is_not() {
    let mut net = Net::new(1);
    let file = |host: &Host| host.folder().join("roamd.toml").display().to_string();
    let examined = |host: &Host| said(host, &["doctor", &file(host)]);
    let client = |net: &Net| examined(&net.clients[0]);

    // Another program has the port and the TUN device.
    let blocker = net.server.namespace.run(|| UdpSocket::bind("[::]:4433").unwrap()).unwrap();
    run(&net.server, "ip", &["tuntap", "add", "roam0", "mode", "tun"]);
    let (code, text) = examined(&net.server);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.starts_with("ok    daemon: not running"), "{text}");
    assert!(text.contains("bad   port: [::]:4433 is in use (UDP) by another program"), "{text}");
    assert!(text.contains("bad   TUN device: roam0 exists, and another program has it"), "{text}");
    drop(blocker);
    run(&net.server, "ip", &["link", "del", "roam0"]);

    // A client whose server is away.
    net.clients[0].start();
    eventually("an attempt has failed", || {
        let text = client(&net).1;
        text.starts_with("bad   daemon: runs (pid ").then_some(())
    });
    net.server.start();
    net.clients[0].connected();
    let (code, text) = client(&net);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(", connected over eth0"), "{text}");
    assert!(text.contains("ok    TUN device: roam0 is this tunnel's"), "{text}");
    let (code, text) = examined(&net.server);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("1 of 1 peers connected"), "{text}");
    assert!(text.contains("ok    port: [::]:4433 is this server's"), "{text}");
    assert!(text.contains("ok    firewall: this host's nftables let UDP port 4433 in"), "{text}");

    // Its own firewall shuts the port; IPv6 is off; a link has a network of the tunnel's.
    let shut =
        "table inet own { chain in { type filter hook input priority 0; udp dport 4433 drop; }; }";
    run(&net.server, "nft", &[shut]);
    net.server.namespace.add_address("c0", "10.66.0.9/24").unwrap();
    let (code, text) = examined(&net.server);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("bad   firewall: the chain inet own in drops what comes to UDP port 4433"),
        "{text}"
    );
    assert!(
        text.contains("poor  routes: 10.66.0.0/24 of tun.addresses is the network of c0, too"),
        "{text}"
    );
    let off =
        net.clients[0].namespace.run(|| fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"));
    off.unwrap().unwrap();
    let (_, text) = client(&net);
    assert!(text.contains("poor  IPv6: is off on this host"), "{text}");
}

#[test]
fn the_status_without_a_session_shows_links_and_attempts() {
    let mut net = Net::new(1);
    let client = &mut net.clients[0];
    client.amend("[tun]", "[paths]\nignore = [\"veth*\"]\n[tun]");
    for (link, there) in [("wlan0", "a"), ("veth7", "b"), ("docker0", "c")] {
        veth(&client.namespace, link, &net.server.namespace, there).unwrap();
    }
    client.namespace.set_up("docker0").unwrap();
    net.server.namespace.set_up("c").unwrap();
    run(client, "ip", &["link", "set", "wlan0", "down"]);
    client.start();
    eventually("an attempt", || {
        let status = client.try_status()?;
        let path = status["paths"].get(0)?;
        let silent = path["why"].as_str()?.starts_with("no answer for ");
        (path["link"] == "eth0" && path["state"] == "probing" && silent).then_some(())
    });
    let status = client.status();
    assert_eq!(status["server"], serde_json::json!(["10.77.0.1:4433"]));
    let unused: BTreeMap<_, _> = status["unused-links"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["link"].as_str().unwrap(), it["why"].as_str().unwrap()))
        .collect();
    let expected = [
        ("docker0", "it has no route to the server"),
        ("veth7", "paths.ignore names it"),
        ("wlan0", "it is down"),
    ];
    assert_eq!(unused, expected.into());
    let (_, text) = said(client, &["status", "roamd"]);
    for line in ["server       10.77.0.1:4433", "eth0     being probed", "wlan0    not used"] {
        assert!(text.contains(line), "{line} in {text}");
    }
    let (code, text) = said(client, &["probe", "--all", "roamd"]);
    assert!(code == Some(1) && text.contains("not connected (still connecting)"), "{text}");
    net.server.start();
    net.clients[0].connected();
    let status = net.clients[0].status();
    assert_eq!(status["paths"][0]["state"], "active");
    assert_eq!(status["unused-links"].as_array().unwrap().len(), 3);
}

#[test]
fn status_without_a_name_shows_all_tunnels() {
    let mut net = Net::new(1);
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    let folder = net.server.folder().to_owned();
    let other = folder.join("other.toml");
    fs::copy(folder.join("roamd.toml"), &other).unwrap();
    let mut command = net.server.namespace.command(PROGRAM);
    command.arg("run").arg(&other).env("ROAMD_RUNTIME_DIR", &folder);
    command.env("ROAMD_TUN__NAME", "roam1").env("ROAMD_LISTEN", "[::]:4434");
    let _other = net.server.namespace.spawn("other", command, &folder).unwrap();
    eventually("both are shown", || {
        let (code, text) = said(&net.server, &["status"]);
        let shows = |word: &str| text.contains(word);
        (code == Some(0) && shows("tunnel       other\n") && shows("tunnel       roamd\n"))
            .then_some(())
    });
    let (code, text) = said(&net.server, &["status", "--json"]);
    assert!(code == Some(1) && text.contains("name one: other, roamd"), "{text}");
}

#[test]
fn a_captive_portal_is_reported_and_never_used() {
    use roamd_lab::{Namespace, veth};
    let mut net = Net::new(1);
    let hotel = Namespace::new("hotel").unwrap();
    let client = &net.clients[0];
    veth(&client.namespace, "wlan0", &hotel, "guests").unwrap();
    for (host, link, last) in [(&client.namespace, "wlan0", 2), (&hotel, "guests", 1)] {
        host.set_up(link).unwrap();
        host.add_address(link, &format!("10.99.0.{last}/24")).unwrap();
    }
    client.namespace.add_route("10.77.0.0/24", Some("10.99.0.1"), "wlan0", 50).unwrap();
    // The hotel takes every connection to port 80, and drops everything else.
    let redirect = "table ip portal {\n chain in {\n type nat hook prerouting priority dstnat;\n \
                    tcp dport 80 redirect to :80\n }\n}\n";
    let file = client.folder().join("portal.nft");
    fs::write(&file, redirect).unwrap();
    assert!(hotel.command("nft").arg("-f").arg(&file).status().unwrap().success());
    let listener = hotel.run(|| std::net::TcpListener::bind("0.0.0.0:80").unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let login = "HTTP/1.1 302 Found\r\nLocation: http://login.hotel.example/\r\n\r\n";
            let _ = stream.write_all(login.as_bytes());
        }
    });
    client.amend("[tun]", "[tun]\nroutes = [\"default\"]\nexclude = [\"lan\", \"captive-portal\"]");
    client.amend(
        "[tun]",
        "[paths]\nprefer = [{ link = \"wlan0\" }]\nprobe-timeout = \"1s\"\n\
         [quic]\nidle-timeout = \"5s\"\nkeep-alive = \"1s\"\n[tun]",
    );
    net.start();
    let client = &net.clients[0];
    let path = |status: &Value, link: &str| {
        let paths = status["paths"].as_array()?.clone();
        paths.into_iter().find(|path| path["link"] == link)
    };
    eventually("the portal is seen", || {
        let path = path(&client.try_status()?, "wlan0")?;
        (path["portal"] == true).then_some(())
    });
    assert_eq!(path(&client.status(), "eth0").unwrap()["state"], "active");
    let (_, text) = said(client, &["status", "roamd"]);
    assert!(text.contains("a captive portal seems to answer"), "{text}");
    // Without another network it is what keeps us from connecting, and a browser may reach it.
    client.namespace.set_down("eth0").unwrap();
    client.namespace.add_route("0.0.0.0/0", Some("10.99.0.1"), "wlan0", 50).unwrap();
    eventually("the portal is named", || {
        let (_, text) = said(client, &["status", "roamd"]);
        text.contains("captive portal on wlan0").then_some(())
    });
    let leaves_by = |link: &str| {
        let mut command = client.namespace.command("ip");
        let route = command.args(["route", "get", "203.0.113.1"]).output().unwrap();
        String::from_utf8_lossy(&route.stdout).contains(&format!("dev {link}"))
    };
    eventually("a browser gets there", || leaves_by("wlan0").then_some(()));
    // Back in a good network everything is inside again.
    client.namespace.set_up("eth0").unwrap();
    eventually("the tunnel takes everything", || leaves_by("roam0").then_some(()));
}

#[test]
fn a_daemon_that_is_aborted_leaves_no_core_dump() {
    let mut net = Net::new(0);
    let folder = net.server.folder().display().to_string();
    let script = "ulimit -c unlimited; cd \"$0\"; exec \"$@\"";
    net.server.start_in("sh", &["-c", script, &folder]);
    eventually("the server listens", || net.server.try_status());
    let daemon = net.server.daemon.as_mut().unwrap();
    daemon.signal(Signal::SIGABRT).unwrap();
    let status = daemon.wait(PATIENCE).unwrap().unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGABRT as i32));
    assert!(!status.core_dumped(), "{status}: the key is in the dump");
}
