//! Every way to switch the kill switch on or off, in every state of the daemon, and every way to end it after that.
//! Each cell runs for real, in namespaces of its own; the packets on the uplink say what holds.
//!
//! `cargo test --test e2e seal::matrix -- --nocapture` prints the matrix.

use std::{
    fmt, fs,
    os::unix::fs::PermissionsExt as _,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use super::{OPEN, PACKETS, SEALED, World, kill, reload, rules, run, said, stop};
use crate::harness::{eventually, roamd};

/// Cells that run at the same time.
const AT_ONCE: usize = 6;
/// How long a refused client may take to end, should it do so.
const REFUSED: Duration = Duration::from_secs(1);
/// How long packets may take to the server's end of the tunnel.
const ARRIVAL: Duration = Duration::from_millis(200);

/// In the daemon's PATH before the real one: kills the daemon before or after it has changed a table.
const NFT: &str = "#!/bin/sh
here=${0%/*} real=$(PATH=/usr/sbin:/sbin:/usr/bin:/bin command -v nft)
[ \"$1\" = -f ] || exec $real \"$@\"
if rm \"$here/before\" 2>/dev/null; then kill -KILL $PPID; exit 1; fi
$real \"$@\"
code=$?
if rm \"$here/after\" 2>/dev/null; then kill -KILL $PPID; fi
exit $code
";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seal {
    Off,
    On,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connected,
    Connecting,
    Refused,
    /// The same where a service manager runs the daemon: it stays and asks again.
    RefusedService,
    NoNetwork,
    Crashed,
    Killed(Step),
}

/// When SIGKILL comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    BeforeTable,
    AfterTable,
    AfterReload,
    InStop,
    InStart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Stop,
    Restart,
    Remove,
    Purge,
}

const STATES: [State; 11] = [
    State::Connected,
    State::Connecting,
    State::Refused,
    State::RefusedService,
    State::NoNetwork,
    State::Crashed,
    State::Killed(Step::BeforeTable),
    State::Killed(Step::AfterTable),
    State::Killed(Step::AfterReload),
    State::Killed(Step::InStop),
    State::Killed(Step::InStart),
];
const ENDS: [End; 4] = [End::Stop, End::Restart, End::Remove, End::Purge];

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connected => "connected",
            Self::Connecting => "connecting",
            Self::Refused => "refused",
            Self::RefusedService => "refused, service",
            Self::NoNetwork => "no network",
            Self::Crashed => "crashed",
            Self::Killed(Step::BeforeTable) => "killed before nft",
            Self::Killed(Step::AfterTable) => "killed after nft",
            Self::Killed(Step::AfterReload) => "killed after reload",
            Self::Killed(Step::InStop) => "killed in stop",
            Self::Killed(Step::InStart) => "killed in start",
        })
    }
}

impl Seal {
    fn toml(self) -> &'static str {
        match self {
            Self::Off => OPEN,
            Self::On => SEALED,
        }
    }
}

struct Cell {
    from: Seal,
    to: Seal,
    state: State,
    end: End,
    world: World,
    bin: PathBuf,
    /// How the host was before there was a tunnel.
    clean: (String, String),
}

/// What was seen after the change and at the end.
#[derive(Clone, Debug)]
struct Seen {
    changed: String,
    ended: String,
}

impl Cell {
    fn new(from: Seal, state: State, end: End) -> Self {
        let to = if from == Seal::Off { Seal::On } else { Seal::Off };
        let mut world = World::new(from.toml());
        world.client().namespace.reverse_path_filter(1).unwrap();
        let bin = world.client().folder().join("bin");
        fs::create_dir(&bin).unwrap();
        fs::write(bin.join("nft"), NFT).unwrap();
        fs::set_permissions(bin.join("nft"), fs::Permissions::from_mode(0o755)).unwrap();
        let clean = leftovers(&mut world);
        Self { from, to, state, end, world, bin, clean }
    }

    fn run(mut self) -> Seen {
        self.begin();
        if self.state != State::NoNetwork {
            self.judge(self.from, "at first");
        }
        let now = self.change();
        if self.state == State::NoNetwork {
            self.restore_network();
        }
        let changed = self.judge(now, "after the change");
        let after = self.finish(now);
        let ended = self.judge(after, "at the end");
        if self.end == End::Restart && self.is_alive() && self.has_server() {
            self.world.client().connected();
            self.judge(after, "and connected");
        }
        Seen { changed, ended }
    }

    fn has_server(&self) -> bool {
        matches!(self.state, State::Connected | State::Crashed | State::Killed(_))
    }

    fn start(&mut self) {
        let path = format!("{}:{}", self.bin.display(), std::env::var("PATH").unwrap());
        let nobody = ("NOTIFY_SOCKET", "/nonexistent");
        let variables = [("PATH", path.as_str()), nobody];
        let is_service = self.state == State::RefusedService;
        self.world.client().start_with(&variables[..1 + usize::from(is_service)]);
    }

    fn is_alive(&self) -> bool {
        self.world.net.clients[0].daemon.as_ref().is_some_and(|daemon| daemon.is_running())
    }

    /// Brings the daemon into its state, as the first configuration has it.
    fn begin(&mut self) {
        match self.state {
            State::Connecting => {}
            State::NoNetwork => self.world.net.server.namespace.set_down("c0").unwrap(),
            State::Refused | State::RefusedService => {
                let peer = self.world.client().key();
                let stranger = roamd(&["genkey"]);
                let file = self.bin.join("stranger");
                fs::write(&file, stranger.stdout).unwrap();
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
                let key = said(&roamd(&["pubkey", file.to_str().unwrap()]));
                self.world.net.server.amend(&peer, key.trim());
                self.world.serve();
            }
            State::Connected | State::Crashed | State::Killed(_) => self.world.serve(),
        }
        self.start();
        if self.has_server() {
            self.world.client().connected();
        } else if matches!(self.state, State::Refused | State::RefusedService) {
            eventually("the server refuses", || {
                (self.world.net.server.try_status()?["refused-keys"].as_u64()? > 0).then_some(())
            });
            let _ = self.world.client().daemon.as_mut().unwrap().wait(REFUSED).unwrap();
        } else {
            eventually("the daemon answers", || self.world.net.clients[0].try_status());
        }
    }

    /// Changes the configuration; returns what must hold after that.
    fn change(&mut self) -> Seal {
        let (from, to) = (self.from, self.to);
        let arm = |step: &str| fs::write(self.bin.join(step), "").unwrap();
        match self.state {
            State::Crashed => {
                self.world.client().namespace.delete_link("roam0").unwrap();
                assert_ne!(self.world.client().exit_code(), Some(0));
            }
            State::Killed(Step::BeforeTable) => arm("before"),
            State::Killed(Step::AfterTable) => arm("after"),
            State::Killed(Step::InStart) => {
                arm("after");
                kill(self.world.client());
            }
            _ => {}
        }
        self.world.client().amend(from.toml(), to.toml());
        if self.state == State::Killed(Step::InStart) {
            self.start();
            assert_eq!(self.world.client().exit_code(), None);
            return to;
        }
        let output = reload(self.world.client());
        match self.state {
            State::Killed(step @ (Step::BeforeTable | Step::AfterTable)) => {
                assert!(!output.status.success(), "{}", said(&output));
                assert_eq!(self.world.client().exit_code(), None);
                if step == Step::BeforeTable { from } else { to }
            }
            State::Killed(step) => {
                assert!(output.status.success(), "{}", said(&output));
                if step == Step::InStop {
                    fs::write(self.bin.join("before"), "").unwrap();
                    let daemon = self.world.client().daemon.as_mut().unwrap();
                    daemon.signal(Signal::SIGTERM).unwrap();
                    self.world.client().exit_code();
                    let _ = fs::remove_file(self.bin.join("before"));
                } else {
                    kill(self.world.client());
                }
                to
            }
            // Where nobody is left to tell, nothing changes, and the caller hears of it.
            _ if !self.is_alive() => {
                assert!(!output.status.success(), "{}", said(&output));
                from
            }
            _ => {
                assert!(output.status.success(), "{}", said(&output));
                to
            }
        }
    }

    fn restore_network(&mut self) {
        let server = &self.world.net.server.namespace;
        server.set_up("c0").unwrap();
        server.add_address("c0", "fd77:0::1/64").unwrap();
        for gateway in ["10.77.0.1", "fd77:0::1"] {
            eventually("the network is back", || {
                let ping = self.world.net.clients[0].ping(gateway, &["-c", "1", "-W", "1"]);
                ping.status.success().then_some(())
            });
        }
    }

    /// Ends it; returns what must hold after that.
    fn finish(&mut self, now: Seal) -> Seal {
        let alive = self.is_alive();
        if alive {
            stop(self.world.client());
        }
        match self.end {
            End::Stop if alive => {}
            End::Stop => return now,
            End::Restart => {
                self.start();
                let client = &mut self.world.net.clients[0];
                eventually("it answers or has ended", || {
                    let ended = !client.daemon.as_ref().unwrap().is_running();
                    (ended || client.try_status().is_some()).then_some(())
                });
                return self.to;
            }
            End::Remove | End::Purge => {
                let output = self.world.client().tell(&["unseal"]);
                assert!(output.status.success(), "{}", said(&output));
            }
        }
        if self.end == End::Purge {
            for file in ["roamd.toml", "own.key", "roamd.state"] {
                fs::remove_file(self.world.client().folder().join(file)).unwrap();
            }
        }
        assert_eq!(leftovers(&mut self.world), self.clean, "nothing is left");
        Seal::Off
    }

    /// Sends packets until all of one turn arrive through the tunnel, and none in clear of any: a busy machine
    /// may drop a datagram, and nobody repeats it.
    fn until_all_arrive(&self, when: &str) {
        let inside = || ["inside4", "inside6"].map(|counter| self.world.counted(counter));
        eventually("all packets of a turn arrive through the tunnel", || {
            let before = inside();
            assert_eq!(self.world.leaked(), 0, "{when}: packets in clear");
            thread::sleep(ARRIVAL);
            inside().iter().zip(before).all(|(now, old)| *now >= old + PACKETS).then_some(())
        });
    }

    /// Sends packets and looks at the uplink.
    fn judge(&mut self, seal: Seal, when: &str) -> String {
        let is_connected = self.is_alive()
            && self.world.client().try_status().is_some_and(|it| it["state"] == "connected");
        let (leaked, all) = (self.world.leaked(), 2 * PACKETS);
        let expected = if seal == Seal::Off { all } else { 0 };
        assert_eq!(leaked, expected, "{when}, the kill switch is {seal:?}: packets in clear");
        if seal == Seal::On && is_connected {
            self.until_all_arrive(when);
            return format!("sealed {leaked}/{all} tunnel");
        }
        let word = if seal == Seal::Off { "open" } else { "sealed" };
        format!("{word} {leaked}/{all}")
    }
}

/// Rules and tables of the client's host.
fn leftovers(world: &mut World) -> (String, String) {
    let client = world.client();
    (rules(client), run(client, "nft", &["list", "tables"]))
}

#[test]
fn the_uplink_carries_only_what_the_configuration_allows() {
    let cells: Vec<_> = [Seal::Off, Seal::On]
        .into_iter()
        .flat_map(|from| STATES.map(|state| ENDS.map(|end| (from, state, end))))
        .flatten()
        .collect();
    let next = AtomicUsize::new(0);
    let run = || {
        let mut seen = Vec::new();
        while let Some((from, state, end)) = cells.get(next.fetch_add(1, Ordering::Relaxed)) {
            let cell = AssertUnwindSafe(|| Cell::new(*from, *state, *end).run());
            seen.push(((*from, *state, *end), catch_unwind(cell).ok()));
        }
        seen
    };
    let seen: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(run)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    let find = |cell| seen.iter().find(|(it, _)| *it == cell).and_then(|(_, seen)| seen.clone());
    eprintln!("packets in clear on the uplink, of those that the client sent:");
    eprintln!(
        "{:<9}{:<21}{:<20}{:<20}{:<20}{:<20}purge",
        "seal", "state", "after the change", "stop", "restart", "remove"
    );
    for (from, word) in [(Seal::Off, "off → on"), (Seal::On, "on → off")] {
        for state in STATES {
            let row = ENDS.map(|end| find((from, state, end)));
            let changed = row.iter().flatten().next().map_or("FAILED", |seen| &seen.changed);
            eprint!("{word:<9}{state:<21}{changed:<20}");
            for seen in &row {
                eprint!("{:<20}", seen.as_ref().map_or("FAILED", |seen| &seen.ended));
            }
            eprintln!();
        }
    }
    let failed: Vec<_> = seen.iter().filter(|(_, it)| it.is_none()).map(|(cell, _)| cell).collect();
    assert!(failed.is_empty(), "failed: {failed:?}");
    assert_eq!(seen.len(), cells.len());
}
