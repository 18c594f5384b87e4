//! A link with a budget, which a download uses up, on a machine whose disk is full.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread::sleep,
    time::Duration,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};
use roamd_lab::{Access, LinkShape};
use serde_json::Value;

use crate::{
    harness::{Host, PROGRAM, eventually},
    keystrokes::type_until,
    roaming::Laptop,
};

/// A folder on a disk of 64 kB, gone with the test.
struct SmallDisk {
    folder: PathBuf,
    _parent: tempfile::TempDir,
}

impl SmallDisk {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("state");
        fs::create_dir(&folder).unwrap();
        let none = None::<&str>;
        mount(none, &folder, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        Self { folder, _parent: parent }
    }

    /// Leaves no room on it; gives the file that takes it.
    fn fill(&self) -> PathBuf {
        let path = self.folder.join("filler");
        let mut file = fs::File::create(&path).unwrap();
        let error = loop {
            if let Err(error) = file.write_all(&[7; 4096]) {
                break error;
            }
        };
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
    }
}

/// What `roamd usage` says.
fn usage(client: &Host, state: &Path, arguments: &[&str]) -> String {
    let mut command = client.namespace.command(PROGRAM);
    command.args(["usage", "roamd"]).args(arguments);
    command.env("ROAMD_RUNTIME_DIR", client.folder()).env("STATE_DIRECTORY", state);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn wifi(status: &Value) -> Option<&Value> {
    status["links"].as_array()?.iter().find(|it| it["link"] == Access::Wifi.link())
}

fn until_level(client: &Host, level: &str) {
    eventually(level, || (wifi(&client.try_status()?)?["budget"]["level"] == level).then_some(()));
}

/// Sets a flag at its end, so that a test that fails does not wait for who looks at it.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Downloads until `done`, and counts the bytes.
fn download(laptop: &Laptop, received: &AtomicU64, done: &AtomicBool) {
    let listener = laptop.client.namespace.run(|| TcpListener::bind("10.66.0.2:0").unwrap());
    let listener = listener.unwrap();
    let target = listener.local_addr().unwrap();
    let sender = laptop.server.namespace.thread("sender", move || {
        let mut stream = std::net::TcpStream::connect(target).unwrap();
        while stream.write_all(&[7; 16_384]).is_ok() {}
    });
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut buffer = [0; 65_536];
    while !done.load(Relaxed) {
        if let Ok(count) = stream.read(&mut buffer) {
            received.fetch_add(count as u64, Relaxed);
        }
    }
    // Whoever still writes hears of it.
    drop(stream);
    drop(sender);
}

/// Bytes a second of the download, and how long the slowest of a hundred keys took, over so many seconds.
fn measure(laptop: &Laptop, received: &AtomicU64, seconds: u64) -> (u64, Duration) {
    let (done, before) = (AtomicBool::new(false), received.load(Relaxed));
    std::thread::scope(|scope| {
        let typing = scope.spawn(|| type_until(&laptop.client, &laptop.server, &done));
        sleep(Duration::from_secs(seconds));
        done.store(true, Relaxed);
        let rate = (received.load(Relaxed) - before) / seconds;
        let took = typing.join().unwrap();
        (rate, took[took.len() * 99 / 100])
    })
}

#[test]
fn a_download_over_the_budget_waits_while_keys_pass_and_a_full_disk_loses_nothing() {
    let more = "[paths]\nprefer = [{ link = \"wifi*\", budget = \"8 MB/day\" }]";
    let mut laptop = Laptop::with("10.77.9.2:4433", more, |_| {});
    let rate = Some(10_000_000);
    let home = LinkShape { rate, ..LinkShape::delayed(Duration::from_millis(10)) };
    laptop.scene.air(Access::Wifi).set(home);
    let disk = SmallDisk::new();
    let filler = disk.fill();
    laptop.client.daemon = None;
    laptop.client.start_with(&[("STATE_DIRECTORY", disk.folder.to_str().unwrap())]);
    laptop.client.connected();
    laptop.until_active(Access::Wifi);
    laptop.until(Access::Lte, "standby");
    let (received, done) = (AtomicU64::default(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| download(&laptop, &received, &done));
        let _end = End(&done);
        let (rate, key) = measure(&laptop, &received, 2);
        eprintln!("within the budget: {rate} bytes/s, p99 of keys {key:?}");
        assert!(rate > 400_000, "{rate}");
        until_level(&laptop.client, "reached");
        eventually("bulk is held", || {
            (laptop.client.try_status()?["bulk"] == "held").then_some(())
        });
        // What was under way arrives.
        sleep(Duration::from_secs(1));
        let (rate, key) = measure(&laptop, &received, 4);
        eprintln!("over the budget: {rate} bytes/s, p99 of keys {key:?}");
        assert!(rate < 5_000, "{rate}");
        assert!(key < Duration::from_millis(150), "{key:?}");
        let unsaved: Value =
            serde_json::from_str(&usage(&laptop.client, &disk.folder, &["--json"])).unwrap();
        assert!(unsaved["unsaved"].as_str().unwrap().contains("No space left"), "{unsaved}");
        assert_eq!(laptop.client.log().matches("cannot be kept on disk: counted").count(), 1);
        // Another link has no budget.
        let before = received.load(Relaxed);
        assert!(laptop.client.tell(&["switch", Access::Lte.link()]).status.success());
        laptop.until_active(Access::Lte);
        eventually("the download goes on", || {
            (received.load(Relaxed) > before + 300_000).then_some(())
        });
        assert_eq!(laptop.client.status()["bulk"], "flows");
    });
    let told = |log: &str| log.matches("the budget is used up: large transfers wait").count();
    assert_eq!(told(&laptop.client.log()), 1);
    fs::remove_file(filler).unwrap();
    laptop.client.daemon.as_ref().unwrap().signal(Signal::SIGTERM).unwrap();
    assert_eq!(laptop.client.exit_code(), Some(0));
    let kept: Value =
        serde_json::from_str(&usage(&laptop.client, &disk.folder, &["--json"])).unwrap();
    let bytes = |access: Access, key: &str| {
        let mut links = kept["links"].as_array().unwrap().iter();
        let link = links.find(|it| it["link"] == access.link()).unwrap();
        link["days"][0][key].as_u64().unwrap()
    };
    let used = bytes(Access::Wifi, "sent-bytes") + bytes(Access::Wifi, "received-bytes");
    assert!(used > 8_000_000, "{kept}");
    assert!(bytes(Access::Lte, "received-bytes") > 300_000, "{kept}");
    let upkeep = bytes(Access::Lte, "upkeep-bytes");
    assert!((1000..100_000).contains(&upkeep), "what kept the standby warm: {kept}");
    eprintln!("{}", usage(&laptop.client, &disk.folder, &[]));
    laptop.client.start_with(&[("STATE_DIRECTORY", disk.folder.to_str().unwrap())]);
    laptop.client.connected();
    until_level(&laptop.client, "reached");
    assert_eq!(told(&laptop.client.log()), 0, "once a day");
}

#[test]
fn a_link_that_stops_at_its_budget_is_left_and_says_why() {
    let more =
        "[paths]\nprefer = [{ link = \"wifi*\", budget = \"1 MB/day\", over-budget = \"stop\" }]";
    let laptop = Laptop::with("10.77.9.2:4433", more, |_| {});
    crate::harness::transfer(&laptop.server, &laptop.client, "10.66.0.2", 1_200_000);
    laptop.until_active(Access::Lte);
    let status = laptop.client.status();
    assert!(wifi(&status).unwrap()["budget"]["level"] == "reached", "{status}");
    let mut unused = status["unused-links"].as_array().unwrap().iter();
    let why = unused.find(|it| it["link"] == Access::Wifi.link()).map(|it| &it["why"]);
    assert_eq!(why.unwrap(), "its budget is used up");
    laptop.client.assert_ping("10.66.0.1", &[]);
}
