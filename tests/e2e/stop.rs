//! A daemon that is told to stop while something that it needs hangs.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    harness::{Net, PATIENCE, eventually},
    names::start_with,
    roaming::Laptop,
};

#[test]
fn a_resolver_that_does_not_answer_does_not_keep_a_daemon_from_stopping() {
    let folder = tempfile::tempdir().unwrap();
    let resolver = folder.path().join("resolv.conf");
    fs::write(&resolver, "nameserver 10.77.9.99\noptions timeout:10 attempts:3\n").unwrap();
    let mut laptop = Laptop::connected();
    start_with(&mut laptop, &resolver, "/etc/resolv.conf");
    laptop.client.status();
    // The question is on its way.
    std::thread::sleep(Duration::from_secs(1));
    let daemon = laptop.client.daemon.as_mut().unwrap();
    let begun = Instant::now();
    daemon.signal(Signal::SIGTERM).unwrap();
    let status = daemon.wait(PATIENCE).unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[test]
fn a_firewall_that_hangs_does_not_keep_a_daemon_from_stopping() {
    let mut net = Net::new(1);
    net.clients[0].amend("[tun]", "[tun]\nroutes = [\"default\"]\nkill-switch = true");
    let folder = net.clients[0].folder().to_owned();
    let (bin, hangs) = (folder.join("nft"), folder.join("hangs"));
    let script =
        format!("#!/bin/sh\n[ -e {hangs:?} ] && exec sleep 60\nexec /usr/sbin/nft \"$@\"\n");
    fs::write(&bin, script).unwrap();
    fs::set_permissions(&bin, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    net.clients[0].start_with(&[("PATH", &path)]);
    net.clients[0].connected();
    fs::write(&hangs, "").unwrap();
    let daemon = net.clients[0].daemon.as_mut().unwrap();
    let begun = Instant::now();
    daemon.signal(Signal::SIGTERM).unwrap();
    let status = daemon.wait(PATIENCE).unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    // What could not be undone stays shut.
    let tables =
        net.clients[0].namespace.command("/usr/sbin/nft").args(["list", "tables"]).output();
    assert!(String::from_utf8_lossy(&tables.unwrap().stdout).contains("roamd-roam0"));
}
