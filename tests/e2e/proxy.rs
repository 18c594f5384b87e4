//! A network that lets nothing out but what its HTTP proxy passes on: squid, which alone knows the server's name.
//!
//! ```text
//!  client0 eth0 10.77.0.2 ──── c0 10.77.0.1: squid, TCP 3128 ─▶ server, TCP 443
//!                                            everything else is dropped by nftables at times
//! ```

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::harness::{Net, eventually, transfer};
use roamd_lab::Process;

/// A name that only the proxy knows.
const NAME: &str = "vpn.roamd.test";
const PASSWORD: &str = "open-sesame";
/// `openssl passwd -apr1 -salt roamd open-sesame`.
const HASH: &str = "$apr1$roamd$zefp6AbAUgOCmhyBeYcxL/";
/// From the start to the first answer: UDP and TCP have a head start of 300 ms each.
const SOON: Duration = Duration::from_millis(2500);

/// A client whose server has that name, and a proxy in front of it.
fn office(user: &str) -> (Net, Process) {
    let net = Net::new(1);
    net.configure_server("[::]:4433", "listen-tcp = \"[::]:443\"");
    net.configure_client(0, &format!("{NAME}\", \"10.77.0.1"), "");
    let keys = format!("[server]\ntcp-port = 443\nproxy = \"http://{user}10.77.0.1:3128\"\n");
    net.clients[0].amend("[server]\n", &keys);
    let file = net.clients[0].file();
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    let proxy = squid(&net);
    (net, proxy)
}

fn squid(net: &Net) -> Process {
    let folder = net.server.folder();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let write = |name: &str, text: &str| {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let users = write("squid.users", &format!("laptop:{HASH}\n"));
    let hosts = write("squid.hosts", &format!("10.77.0.1 {NAME}\n"));
    let configuration = format!(
        "http_port 10.77.0.1:3128\nvisible_hostname proxy\nhosts_file {hosts}\n\
         pid_filename none\ncache deny all\naccess_log none\ncache_log /dev/null\ncache_store_log none\n\
         auth_param basic program /usr/lib/squid/basic_ncsa_auth {users}\n\
         acl users proxy_auth REQUIRED\nacl CONNECT method CONNECT\nacl https port 443\n\
         http_access deny !https\nhttp_access allow CONNECT users\nhttp_access deny all\n\
         netdb_filename none\npinger_enable off\nshutdown_lifetime 0 seconds\n"
    );
    let configuration = write("squid.conf", &configuration);
    let mut command = net.server.namespace.command("squid");
    command.args(["-N", "-f", &configuration]);
    let proxy = net.server.namespace.spawn("squid", command, folder).unwrap();
    eventually("squid listens", || {
        let connect = || std::net::TcpStream::connect("10.77.0.1:3128").ok().map(drop);
        net.clients[0].namespace.run(connect).unwrap()
    });
    proxy
}

fn text(command: &mut Command) -> String {
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

#[test]
fn where_only_the_proxy_reaches_out_the_tunnel_goes_through_it() {
    let (mut net, _proxy) = office(&format!("laptop:{PASSWORD}@"));
    net.let_through(Some(3128));
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    let begun = Instant::now();
    net.clients[0].start();
    net.clients[0].connected();
    net.clients[0].assert_ping("10.66.0.1", &["-c", "1"]);
    let first = begun.elapsed();
    assert!(first < SOON, "{first:?}");
    let status = net.clients[0].status();
    let path = net.clients[0].path_in_use().unwrap();
    assert_eq!(
        (path["transport"].as_str(), path["server"].as_str()),
        (Some("proxy"), Some("10.77.0.1:3128"))
    );
    transfer(&net.clients[0], &net.server, "10.66.0.1", 4 << 20);
    transfer(&net.server, &net.clients[0], "10.66.0.2", 4 << 20);

    let client = &net.clients[0];
    let shown = String::from_utf8(client.tell(&["status"]).stdout).unwrap();
    assert!(shown.contains("10.77.0.1:3128 (via proxy)"), "{shown}");
    let mut check = client.namespace.command(env!("CARGO_BIN_EXE_roamd"));
    let checked = text(check.arg("check").arg(client.file()));
    assert!(checked.contains("http://[redacted]@10.77.0.1:3128"), "{checked}");
    for told in [shown, checked, status.to_string(), client.log()] {
        assert!(!told.contains(PASSWORD) && !told.contains("bGFwdG9wO"), "{told}");
    }

    // UDP comes back, and goes away again.
    let mut pinging = client.namespace.command("ping");
    pinging.args(["-n", "-q", "-i", "0.02", "-c", "2000", "10.66.0.1"]).stdout(Stdio::piped());
    let pinging = pinging.spawn().unwrap();
    net.let_through(None);
    net.clients[0].until_path("transport", "udp");
    std::thread::sleep(Duration::from_secs(2));
    net.let_through(Some(3128));
    net.clients[0].until_path("transport", "proxy");
    let gap = net.clients[0].gap_of_switch("to-transport", "proxy");
    assert!(gap < SOON.as_secs_f64() * 1000.0, "{gap}");
    let output = pinging.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");
    assert_eq!(net.clients[0].status()["sessions"], 1);
}

#[test]
fn a_proxy_that_wants_a_password_says_so() {
    let (mut net, _proxy) = office("laptop:wrong@");
    net.let_through(Some(3128));
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    net.clients[0].start();
    eventually("it is told", || {
        let status = net.clients[0].try_status()?.to_string();
        status.contains("407 Proxy Authentication Required").then_some(())
    });
}

#[test]
fn the_proxy_of_the_environment_is_taken_where_the_configuration_names_none() {
    let (mut net, _proxy) = office("");
    net.clients[0].amend("proxy = \"http://10.77.0.1:3128\"\n", "");
    net.let_through(Some(3128));
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    let proxy = format!("http://laptop:{PASSWORD}@10.77.0.1:3128");
    net.clients[0].start_with(&[("HTTPS_PROXY", &proxy)]);
    net.clients[0].connected();
    net.clients[0].until_path("transport", "proxy");
}
