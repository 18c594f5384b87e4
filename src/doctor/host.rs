//! What both roles need of the host.

use std::{
    fs,
    time::{Duration, SystemTime},
};

use nix::sys::utsname::uname;

use super::Finding;
use crate::{
    host::{nft, sysctl},
    tunnel::{device::Tun, vnet::Offload},
};

/// From this one on, anyone may bind a socket to a link (SO_BINDTODEVICE).
const OLDEST: (u32, u32) = (5, 7);
/// From this one on, UDP too crosses the TUN device in super-packets.
const FASTEST: (u32, u32) = (6, 2);
/// `CAP_NET_ADMIN` and `CAP_NET_BIND_SERVICE` of capabilities(7).
const NET_ADMIN: u32 = 12;
const NET_BIND_SERVICE: u32 = 10;
/// This program is younger than any clock that is right.
const YOUNGEST: Duration = Duration::from_secs(1_767_225_600);

pub(super) fn kernel(tell: &mut dyn FnMut(Finding)) {
    let release = uname().map(|it| it.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let found = format!("Linux {release}");
    tell(if version < OLDEST {
        Finding::bad("kernel", found, "use Linux 5.7 or newer")
    } else if version < FASTEST {
        Finding::poor("kernel", found, "Linux 6.2 and newer carry UDP through the tunnel faster")
    } else {
        Finding::good("kernel", found)
    });
}

/// The capabilities in effect, as a bit set.
fn effective() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or_default()
}

pub(super) fn capabilities(tell: &mut dyn FnMut(Finding)) {
    tell(if effective() >> NET_ADMIN & 1 == 1 {
        Finding::good("permission", "may set up networks (CAP_NET_ADMIN)")
    } else {
        let advice = "run as root, or let systemd run roamd@.service, which gives it CAP_NET_ADMIN";
        Finding::bad("permission", "may not set up networks", advice)
    });
}

pub(super) fn port(port: u16, tell: &mut dyn FnMut(Finding)) {
    let first: u16 = sysctl::read("ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(1024);
    if port < first && effective() >> NET_BIND_SERVICE & 1 == 0 {
        let advice = "run as root or with CAP_NET_BIND_SERVICE, or listen on a larger port";
        tell(Finding::bad("port", format!("{port} is for privileged programs"), advice));
    }
}

pub(super) fn clock(tell: &mut dyn FnMut(Finding)) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Nothing depends on the time of day but logs and the lifetime of tickets for 0-RTT.
    tell(if now < YOUNGEST {
        Finding::poor("clock", "is years behind", "run timedatectl set-ntp true")
    } else {
        Finding::good("clock", humantime::format_rfc3339_seconds(SystemTime::now()).to_string())
    });
}

pub(super) fn device(name: &str, offload: bool, tell: &mut dyn FnMut(Finding)) {
    let subject = "TUN device";
    if sysctl::links().is_ok_and(|links| links.iter().any(|link| link == name)) {
        tell(Finding::good(
            subject,
            format!("{name} exists: roamd runs, or another program has it"),
        ));
        return;
    }
    match Tun::create(name, 1400, offload).map(|tun| tun.offload()) {
        Ok(Offload::None) if offload => tell(Finding::poor(
            subject,
            "works, without offload",
            "a kernel that can leave segmentation to roamd carries several times as much",
        )),
        Ok(level) => {
            tell(Finding::good(subject, format!("works, offload: {level:?}").to_lowercase()))
        }
        Err(error) => tell(Finding::bad(
            subject,
            format!("can't create {name}: {error}"),
            "modprobe tun; /dev/net/tun must exist and be writable (mode 0666)",
        )),
    }
}

/// Looks for nft(8), which `reason` needs.
pub(super) async fn firewall(table_of: &str, reason: &str, tell: &mut dyn FnMut(Finding)) {
    let table = nft::table(table_of);
    tell(match nft::exists(&table).await {
        Err(error) => Finding::bad(
            "firewall",
            format!("{error:#}"),
            format!("{reason} needs it: install nftables"),
        ),
        Ok(true) => Finding::good("firewall", format!("nft has the table {table}")),
        Ok(false) => Finding::good("firewall", "nft works"),
    });
}
