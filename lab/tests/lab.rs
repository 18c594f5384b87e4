//! The lab itself: what the other tests stand on.
//!
//! ```text
//!  pair()   a: left  10.0.0.1/24 fd00::1/64 ◀── veth or emulator ──▶ b: right 10.0.0.2/24 fd00::2/64
//!  Scene    see roamd_lab::scene
//! ```
//!
//! Needs root: without it every test fails and says so.

#![cfg(test)]

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use roamd_lab::{
    Access, Emulator, LinkShape, Namespace, Process, Scene,
    emulator::{Direction, Side},
    scene::{SERVER_V4, SERVER_V6},
    veth,
};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Tests that compare what this process holds before and after, or that measure time, run alone.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An echo of every UDP packet, for as long as the test lasts.
fn serve_udp_echo(namespace: &Namespace, address: IpAddr) -> SocketAddr {
    let socket = namespace.run(|| UdpSocket::bind((address, 0)).unwrap()).unwrap();
    let local = socket.local_addr().unwrap();
    socket.set_read_timeout(Some(5 * SECOND)).unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let _ = socket.send_to(&packet[..length], from);
        }
    });
    local
}

fn client(namespace: &Namespace, bind: &str, server: SocketAddr) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind((bind, 0)).unwrap()).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(300 * MS)).unwrap();
    socket
}

/// A socket that waits for packets, with room for all that a test sends at once.
fn sink(namespace: &Namespace) -> UdpSocket {
    let socket = namespace.run(|| UdpSocket::bind("10.0.0.2:0").unwrap()).unwrap();
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20))
        .unwrap();
    socket.set_read_timeout(Some(300 * MS)).unwrap();
    socket
}

fn any(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "0.0.0.0" } else { "::" }
}

/// Sends one packet and returns how long its echo took, `None` when there was none.
fn echo(socket: &UdpSocket, payload: &[u8]) -> Option<Duration> {
    let sent = Instant::now();
    socket.send(payload).ok()?;
    let mut answer = [0; 2048];
    match socket.recv(&mut answer) {
        Ok(length) => {
            assert_eq!(&answer[..length], payload);
            Some(sent.elapsed())
        }
        Err(_) => None,
    }
}

/// Whether an echo comes within three seconds. The kernel asks for a neighbour once a second; a
/// question that was lost with the carrier delays what is sent after it.
fn echoes_again(socket: &UdpSocket) -> bool {
    let deadline = Instant::now() + 3 * SECOND;
    while Instant::now() < deadline {
        if socket.send(b"again?").is_ok() && socket.recv(&mut [0; 16]).is_ok() {
            return true;
        }
    }
    false
}

fn address(a: &Namespace, b: &Namespace) {
    for (namespace, link, host) in [(a, "left", 1), (b, "right", 2)] {
        namespace.add_address(link, &format!("10.0.0.{host}/24")).unwrap();
        namespace.add_address(link, &format!("fd00::{host}/64")).unwrap();
    }
}

fn emulated_pair(shape: LinkShape) -> (Namespace, Namespace, Emulator) {
    let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
    let emulator = Emulator::connect((&a, "left"), (&b, "right"), shape).unwrap();
    address(&a, &b);
    (a, b, emulator)
}

/// Some echoes must take what the link was told to take. On a busy machine others are late, but
/// not most of them by much.
fn assert_takes(expected: Duration, socket: &UdpSocket) {
    let mut took: Vec<Duration> = (0..15).map(|_| echo(socket, b"tick").unwrap()).collect();
    took.sort();
    let (fastest, median) = (took[0], took[took.len() / 2]);
    assert!(fastest >= expected && fastest < expected + 3 * MS, "{expected:?}: {fastest:?}");
    assert!(median < expected + 20 * MS, "{expected:?}: median {median:?}");
}

#[test]
fn namespaces_do_not_see_each_other() {
    let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
    let echo_in_a = serve_udp_echo(&a, "127.0.0.1".parse().unwrap());
    assert!(echo(&client(&a, "127.0.0.1", echo_in_a), b"within").is_some());
    assert!(echo(&client(&b, "127.0.0.1", echo_in_a), b"across").is_none());

    let elsewhere = Namespace::new("elsewhere").unwrap();
    veth(&a, "only-in-a", &elsewhere, "far").unwrap();
    assert!(a.ifindex("only-in-a").is_ok());
    let error = b.ifindex("only-in-a").unwrap_err().to_string();
    assert!(error.starts_with("namespace b: cannot find link only-in-a: "), "{error}");
}

#[test]
fn settings_belong_to_one_namespace() {
    let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
    a.forward(true).unwrap();
    b.forward(false).unwrap();
    let forwards = |namespace: &Namespace| {
        namespace.run(|| std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap()).unwrap()
    };
    assert_eq!((forwards(&a).trim(), forwards(&b).trim()), ("1", "0"));
    assert!(a.sysctl("net/no/such/setting", "1").is_err());
}

#[test]
fn packets_of_both_families_cross_a_pair_of_links() {
    let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
    veth(&a, "left", &b, "right").unwrap();
    address(&a, &b);
    for server in ["10.0.0.2", "fd00::2"].map(|text| text.parse::<IpAddr>().unwrap()) {
        let server = serve_udp_echo(&b, server);
        assert!(echo(&client(&a, any(server.ip()), server), b"hello").is_some(), "{server}");
    }
}

#[test]
fn links_addresses_and_routes_come_and_go() {
    let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
    veth(&a, "left", &b, "right").unwrap();
    address(&a, &b);
    b.add_address("lo", "10.9.9.9/32").unwrap();
    b.add_address("lo", "fd99::9/128").unwrap();
    let reaches = |server: SocketAddr| {
        let socket = client(&a, any(server.ip()), server);
        echo(&socket, b"hello").is_some()
    };
    for (server, net, via) in
        [("10.9.9.9", "10.9.9.0/24", "10.0.0.2"), ("fd99::9", "fd99::/64", "fd00::2")]
    {
        let server = serve_udp_echo(&b, server.parse().unwrap());
        a.add_route(net, Some(via), "left", 7).unwrap();
        assert!(reaches(server), "{server}");
        a.delete_route(net, Some(via), "left", 7).unwrap();
        assert!(a.delete_route(net, Some(via), "left", 7).is_err());
        let refused = a.run(|| UdpSocket::bind((any(server.ip()), 0)).unwrap().connect(server));
        assert_eq!(refused.unwrap().unwrap_err().kind(), ErrorKind::NetworkUnreachable);
    }
    a.delete_address("left", "10.0.0.1/24").unwrap();
    assert!(a.run(|| UdpSocket::bind("10.0.0.1:0")).unwrap().is_err());
    a.set_mtu("left", 1280).unwrap();
    a.delete_link("left").unwrap();
    assert!(b.ifindex("right").is_err(), "the other end of a deleted link is still there");
}

#[test]
fn malformed_addresses_are_named() {
    let a = Namespace::new("a").unwrap();
    let error = a.add_address("lo", "10.0.0.1").unwrap_err().to_string();
    assert!(error.starts_with("`10.0.0.1` is not an address with a prefix length"), "{error}");
    assert!(a.add_route("10.0.0.0/8", Some("fd00::1 "), "lo", 0).is_err());
}

#[test]
fn an_emulated_link_delays_by_the_configured_time() {
    let _alone = alone();
    let (a, b, emulator) = emulated_pair(LinkShape::delayed(10 * MS));
    for server in ["10.0.0.2", "fd00::2"] {
        let server = serve_udp_echo(&b, server.parse().unwrap());
        let socket = client(&a, any(server.ip()), server);
        echo(&socket, b"learn the neighbour first").unwrap();
        assert_takes(20 * MS, &socket);
    }
    emulator.set_direction(Direction::RightToLeft, LinkShape::delayed(30 * MS));
    let server = serve_udp_echo(&b, "10.0.0.2".parse().unwrap());
    let socket = client(&a, "0.0.0.0", server);
    assert_takes(40 * MS, &socket);
}

/// Sends numbered packets one way and returns the numbers that arrived.
fn arrivals(seed: u64) -> Vec<u32> {
    let (a, b, emulator) = emulated_pair(LinkShape::default());
    let sink = sink(&b);
    let source = client(&a, "0.0.0.0", sink.local_addr().unwrap());
    let mut packet = [0; 4];
    source.send(&u32::MAX.to_be_bytes()).unwrap();
    sink.recv(&mut packet).unwrap();

    emulator.seed(seed);
    emulator.set(LinkShape { loss: 0.25, ..LinkShape::default() });
    for number in 0..400_u32 {
        source.send(&number.to_be_bytes()).unwrap();
    }
    let mut arrived = Vec::new();
    while sink.recv(&mut packet).is_ok() {
        arrived.push(u32::from_be_bytes(packet));
    }
    let counters = emulator.counters(Direction::LeftToRight);
    assert!(counters.lost >= 400 - arrived.len() as u64, "{counters:?}");
    assert_eq!(counters.missed, 0);
    arrived
}

#[test]
fn an_emulated_link_loses_the_same_packets_for_the_same_seed() {
    let first = arrivals(42);
    assert!((260..340).contains(&first.len()), "{} of 400 arrived at 25 % loss", first.len());
    assert!(first.is_sorted());
    assert_eq!(first, arrivals(42));
    assert_ne!(first, arrivals(43));
}

#[test]
fn a_black_hole_swallows_everything_until_it_is_closed() {
    let (a, b, emulator) = emulated_pair(LinkShape::default());
    let server = serve_udp_echo(&b, "10.0.0.2".parse().unwrap());
    let socket = client(&a, "0.0.0.0", server);
    assert!(echo(&socket, b"before").is_some());
    emulator.black_hole_direction(Direction::RightToLeft, true);
    assert!(echo(&socket, b"the echo is lost").is_none());
    assert!(emulator.counters(Direction::RightToLeft).swallowed >= 1);
    assert_eq!(emulator.counters(Direction::LeftToRight).swallowed, 0);
    emulator.black_hole(true);
    assert!(echo(&socket, b"the packet is lost").is_none());
    emulator.black_hole(false);
    assert!(echo(&socket, b"after").is_some());
}

#[test]
fn unplugging_removes_the_carrier_and_keeps_the_wire() {
    let (a, b, emulator) = emulated_pair(LinkShape::default());
    let server = serve_udp_echo(&b, "10.0.0.2".parse().unwrap());
    let socket = client(&a, "0.0.0.0", server);
    // sysfs shows the links of the namespace in which it was mounted: ask the socket's ioctl.
    let running = || {
        let flags = a
            .run(|| nix::ifaddrs::getifaddrs().unwrap().find(|each| each.interface_name == "left"));
        flags.unwrap().unwrap().flags.contains(nix::net::if_::InterfaceFlags::IFF_LOWER_UP)
    };
    assert!(echo(&socket, b"before").is_some() && running());
    emulator.plug(Side::Left, false).unwrap();
    assert!(echo(&socket, b"pulled").is_none() && !running());
    emulator.plug(Side::Left, true).unwrap();
    assert!(echoes_again(&socket) && running());
}

#[test]
fn a_large_packet_crosses_whole_or_not_at_all() {
    let (a, b, emulator) = emulated_pair(LinkShape::default());
    let server = serve_udp_echo(&b, "10.0.0.2".parse().unwrap());
    let socket = client(&a, "0.0.0.0", server);
    assert!(echo(&socket, &[7; 1472]).is_some());
    emulator.set(LinkShape { mtu: 1400, ..LinkShape::default() });
    assert!(echo(&socket, &[7; 1372]).is_some());
    assert!(echo(&socket, &[7; 1373]).is_none());
    assert_eq!(emulator.counters(Direction::LeftToRight).oversize, 1);
}

/// Offloads left on would show here: one frame of many segments, or a wrong checksum.
#[test]
fn segments_of_one_send_cross_as_frames_of_their_own() {
    let (a, b, emulator) = emulated_pair(LinkShape::default());
    let sink = sink(&b);
    let source = client(&a, "0.0.0.0", sink.local_addr().unwrap());
    nix::sys::socket::setsockopt(&source, nix::sys::socket::sockopt::UdpGsoSegment, &1200).unwrap();
    source.send(&[7; 12_000]).unwrap();
    let mut packet = [0; 2048];
    for _ in 0..10 {
        assert_eq!(sink.recv(&mut packet).unwrap(), 1200);
    }
    let counters = emulator.counters(Direction::LeftToRight);
    assert_eq!(counters.oversize, 0);
    assert!(counters.passed >= 10);
}

#[test]
fn an_emulated_link_keeps_its_rate() {
    let _alone = alone();
    let shape = LinkShape { rate: Some(20_000_000), queue: SECOND, ..LinkShape::default() };
    let (a, b, emulator) = emulated_pair(shape);
    let sink = sink(&b);
    let source = client(&a, "0.0.0.0", sink.local_addr().unwrap());
    let mut packet = [0; 2048];
    source.send(b"learn the neighbour first").unwrap();
    sink.recv(&mut packet).unwrap();
    // 500 kB: 200 ms at 20 Mbit/s.
    let start = Instant::now();
    for _ in 0..500 {
        source.send(&[7; 958]).unwrap();
    }
    for number in 0..500 {
        let counters = || emulator.counters(Direction::LeftToRight);
        sink.recv(&mut packet).unwrap_or_else(|_| panic!("{number} arrived: {:?}", counters()));
    }
    let took = start.elapsed();
    assert!(took >= 200 * MS && took < 230 * MS, "500 kB at 20 Mbit/s took {took:?}");
    assert_eq!(emulator.counters(Direction::LeftToRight).overflowed, 0);
}

#[test]
fn an_emulated_link_carries_a_hundred_megabits_and_stays_punctual() {
    const PACKETS: usize = 10_000;
    let _alone = alone();
    let (a, b, emulator) = emulated_pair(LinkShape::delayed(10 * MS));
    let sink = sink(&b);
    let source = client(&a, "0.0.0.0", sink.local_addr().unwrap());
    let mut packet = [0; 2048];
    source.send(b"learn the neighbour first").unwrap();
    sink.recv(&mut packet).unwrap();

    let sender = std::thread::spawn({
        let source = source.try_clone().unwrap();
        move || {
            // In steps of a millisecond: 25 × 1200 bytes are 240 Mbit/s.
            let start = Instant::now();
            for number in 0..PACKETS {
                std::thread::sleep((MS * (number / 25) as u32).saturating_sub(start.elapsed()));
                source.send(&[7; 1200]).unwrap();
            }
        }
    });
    let start = Instant::now();
    for number in 0..PACKETS {
        sink.recv(&mut packet).unwrap_or_else(|_| {
            panic!("{number} of {PACKETS}: {:?}", emulator.counters(Direction::LeftToRight))
        });
    }
    let rate = (PACKETS * 1200 * 8) as f64 / start.elapsed().as_secs_f64();
    sender.join().unwrap();
    assert!(rate > 1e8, "{rate} bit/s");

    source.set_read_timeout(Some(SECOND)).unwrap();
    let mut late: Vec<Duration> = (0..100)
        .map(|_| {
            std::thread::sleep(10 * MS);
            let sent = Instant::now();
            source.send(b"tick").unwrap();
            sink.recv(&mut packet).unwrap();
            sent.elapsed() - 10 * MS
        })
        .collect();
    late.sort();
    assert!(late[25] < MS, "three quarters are {:?} late and more", late[25]);
}

fn spawn(namespace: &Namespace, folder: &Path, script: &str) -> Process {
    let mut command = namespace.command("sh");
    command.args(["-c", script]);
    namespace.spawn("sh", command, folder).unwrap()
}

fn exists(pid: Pid) -> bool {
    kill(pid, None) != Err(Errno::ESRCH)
}

/// Whether it runs: an orphan that has ended is there until init gets round to it.
fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn first_number_in_log(process: &Process) -> Pid {
    let deadline = Instant::now() + 5 * SECOND;
    loop {
        if let Some(line) = process.log().unwrap().lines().next() {
            return Pid::from_raw(line.parse().unwrap());
        }
        assert!(Instant::now() < deadline, "{} printed nothing", process.name());
        std::thread::sleep(5 * MS);
    }
}

#[test]
fn a_process_runs_in_its_namespace_and_its_output_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("a").unwrap();
    let mut process = spawn(&namespace, folder.path(), "readlink /proc/self/ns/net; echo >&2 oh");
    let status = process.wait(5 * SECOND).unwrap().unwrap();
    let inode = namespace.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
    assert!(status.success());
    assert_eq!(process.log().unwrap(), format!("{}\noh\n", inode.display()));
}

#[test]
fn a_process_tells_what_it_has_used() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("a").unwrap();
    let busy = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo $$; sleep 1000";
    let mut process = spawn(&namespace, folder.path(), busy);
    first_number_in_log(&process);
    let cpu = process.cpu().unwrap();
    assert!(cpu > 0.0 && cpu < 60.0, "{cpu}");
    let [now, most] = ["VmRSS", "VmHWM"].map(|field| process.memory(field).unwrap());
    assert!(now > 0 && now <= most, "{now} kB, {most} kB at most");
    assert!(process.memory("Vm").is_err() && process.memory("Threads").is_err());
    process.stop().unwrap();
    assert!(process.cpu().is_err() && process.memory("VmRSS").is_err());
}

#[test]
fn a_dropped_process_is_gone_with_its_children() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("a").unwrap();
    let process = spawn(&namespace, folder.path(), "sleep 1000 & echo $!; wait");
    let (pid, grandchild) = (process.pid(), first_number_in_log(&process));
    // The guard alone keeps the namespace and the thread that started the process.
    drop(namespace);
    assert!(process.is_running());
    drop(process);
    assert!(!exists(pid), "the process, or a zombie of it, is still there");
    let deadline = Instant::now() + SECOND;
    while is_alive(grandchild) {
        assert!(Instant::now() < deadline, "the process's child is still there");
        std::thread::sleep(5 * MS);
    }
}

#[test]
fn a_process_that_ignores_sigterm_is_killed_after_a_second() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("a").unwrap();
    let process =
        spawn(&namespace, folder.path(), "trap '' TERM; echo $$; while :; do sleep 0.05; done");
    let pid = first_number_in_log(&process);
    let start = Instant::now();
    drop(process);
    assert!(start.elapsed() >= SECOND && start.elapsed() < 2 * SECOND);
    assert!(!exists(pid));
}

#[test]
fn a_stopped_process_can_be_terminated() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("a").unwrap();
    let mut process = spawn(
        &namespace,
        folder.path(),
        "trap 'echo bye; exit 3' TERM; echo $$; while :; do sleep 0.01; done",
    );
    first_number_in_log(&process);
    process.signal(Signal::SIGSTOP).unwrap();
    let status = process.stop().unwrap();
    assert_eq!(status.code(), Some(3));
    assert!(process.log().unwrap().ends_with("bye\n"));
    assert_eq!(process.stop().unwrap(), status);
    assert!(!process.is_running());
    assert!(process.signal(Signal::SIGTERM).is_err(), "a signal went to whoever has the number");
}

#[test]
fn a_process_outlives_the_thread_that_asked_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let namespace = Namespace::new("a").unwrap();
    let process = std::thread::scope(|scope| {
        scope.spawn(|| spawn(&namespace, folder.path(), "sleep 1000")).join().unwrap()
    });
    std::thread::sleep(50 * MS);
    assert!(process.is_running());
}

#[test]
fn the_client_reaches_the_server_over_either_network_and_family() {
    let _alone = alone();
    let scene = Scene::new().unwrap();
    let expected = |access| match access {
        Access::Wifi => 10 * MS,
        Access::Lte => 50 * MS,
    };
    for server in [SERVER_V4, SERVER_V6] {
        let server = serve_udp_echo(scene.server(), server);
        let by_default = client(scene.client(), any(server.ip()), server);
        echo(&by_default, b"learn the neighbours first").unwrap();
        assert_takes(expected(Access::Wifi), &by_default);
        for access in Access::BOTH {
            let socket = over(&scene, access, server).unwrap();
            echo(&socket, b"learn the neighbour first").unwrap();
            assert_takes(expected(access), &socket);
        }
    }
}

/// A socket bound to the access network's link and address, as roamd binds it.
fn over(scene: &Scene, access: Access, server: SocketAddr) -> std::io::Result<UdpSocket> {
    let local = if server.is_ipv4() { access.client_v4() } else { access.client_v6() };
    let socket = scene.client().run(|| -> std::io::Result<UdpSocket> {
        let socket = UdpSocket::bind((local, 0))?;
        socket2::SockRef::from(&socket).bind_device(Some(access.link().as_bytes()))?;
        socket.connect(server)?;
        Ok(socket)
    });
    let socket = socket.unwrap()?;
    socket.set_read_timeout(Some(300 * MS))?;
    Ok(socket)
}

#[test]
fn the_client_leaves_and_rejoins_a_network() {
    let scene = Scene::new().unwrap();
    let server = serve_udp_echo(scene.server(), SERVER_V6);
    let over_wifi = || over(&scene, Access::Wifi, server);
    assert!(echo(&over_wifi().unwrap(), b"at first").is_some());
    scene.disconnect(Access::Wifi).unwrap();
    assert!(over_wifi().is_err());
    assert!(echo(&client(scene.client(), "::", server), b"over lte").is_some());
    scene.connect(Access::Wifi).unwrap();
    assert!(echo(&over_wifi().unwrap(), b"rejoined").is_some());
    scene.carrier(Access::Wifi, false).unwrap();
    assert!(over_wifi().is_ok_and(|socket| echo(&socket, b"no signal").is_none()));
    scene.carrier(Access::Wifi, true).unwrap();
    assert!(echoes_again(&over_wifi().unwrap()));
}
