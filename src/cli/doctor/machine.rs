//! What both roles need of the host.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use nix::sys::utsname::uname;

use super::{
    finding::Finding,
    links::{self, Link},
    running::Running,
};
use crate::{
    clock,
    config::rights,
    daemon::status::Role,
    host::{instance::Instance, nft, sysctl},
    link::netlink::Netlink,
    tunnel::{device::Tun, vnet::Offload},
};

/// From this one on, anyone may bind a socket to a link (SO_BINDTODEVICE).
const OLDEST: (u32, u32) = (5, 7);
/// From this one on, UDP too crosses the TUN device in super-packets.
const FASTEST: (u32, u32) = (6, 2);
/// `CAP_NET_ADMIN` and `CAP_NET_BIND_SERVICE` of capabilities(7).
const NET_ADMIN: u32 = 12;
const NET_BIND_SERVICE: u32 = 10;
/// What the TUN device is called that is created to see whether one can be; the kernel puts a number in the place of `%d`.
const TRIAL: &str = "roamd-try%d";
/// 2026-01-01 in seconds since 1970. A clock that shows an earlier date is wrong: this program did not exist.
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

/// Looks whether the user of the unit can read the configuration and its key, where the unit has them.
pub(super) fn files(file: &Path, key: Option<&Path>, tell: &mut dyn FnMut(Finding)) {
    let Some(user) = rights::reader(file) else { return };
    tell(match rights::check(file, key) {
        Ok(()) => Finding::good("files", format!("user {} can read them", user.name)),
        Err(error) => Finding::bad("files", error.found(), error.advice),
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
    let now = clock::wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Nothing depends on the time of day but logs and the lifetime of tickets for 0-RTT.
    tell(if now < YOUNGEST {
        Finding::poor("clock", "is years behind", "run timedatectl set-ntp true")
    } else {
        Finding::good("clock", humantime::format_rfc3339_seconds(clock::wall()).to_string())
    });
}

/// Looks whether the TUN device can be had; whether it exists because this tunnel is `running`.
pub(super) async fn device(
    name: &str,
    offload: bool,
    running: &Running,
    tell: &mut dyn FnMut(Finding),
) {
    let subject = "TUN device";
    let links = async { anyhow::Ok(links::all(&Netlink::open()?).await?) };
    let links = match links.await {
        Ok(links) => links,
        Err(error) => {
            let found = format!("links cannot be read: {error:#}");
            return tell(Finding::bad(subject, found, "netlink must be allowed"));
        }
    };
    if let Some(link) = links.iter().find(|link| link.name == name) {
        return tell(if running.has_device(name) {
            Finding::good(subject, format!("{name} is this tunnel's"))
        } else {
            let found = format!("{name} exists, and {}", holder(link));
            Finding::bad(subject, found, "choose another tun.name, such as \"roam1\"")
        });
    }
    // Not of the tunnel's name, which a daemon that starts at this moment needs.
    match Tun::create(TRIAL, 1400, offload).map(|tun| tun.offload()) {
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
            format!("cannot be created: {error}"),
            "modprobe tun; /dev/net/tun must exist and be writable (mode 0666)",
        )),
    }
}

/// What an interface is that this tunnel does not have.
fn holder(link: &Link) -> String {
    if !link.is_tun {
        return "is no TUN device".into();
    }
    let has_it = |instance: &Instance| {
        instance.status().is_ok_and(|status| match &status.role {
            Role::Client(client) => client.interface == link.name,
            Role::Server(server) => server.interface == link.name,
        })
    };
    let other = Instance::running().ok().and_then(|all| all.into_iter().find(has_it));
    match other {
        Some(other) => format!("the tunnel {} has it", other.title()),
        None => "another program has it".into(),
    }
}

/// Whether the kernel lets interfaces have addresses of IPv6.
pub(super) fn has_ipv6() -> bool {
    ["all", "default"].iter().all(|link| {
        sysctl::read(&format!("ipv6/conf/{link}/disable_ipv6")).is_ok_and(|value| value == "0")
    })
}

/// Says that IPv6 is off, where `wants` it.
pub(super) fn ipv6(wants: &str, tell: &mut dyn FnMut(Finding)) {
    if !has_ipv6() {
        let advice = "sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0, \
                      or do without";
        tell(Finding::poor("IPv6", format!("is off on this host: {wants}"), advice));
    }
}

/// Looks for nft(8), which `reason` needs.
pub(super) async fn firewall(table_of: &str, reason: &str, tell: &mut dyn FnMut(Finding)) {
    let table = nft::table(table_of);
    tell(match nft::listing(&table).await.map(|found| found.is_some()) {
        Err(error) => Finding::bad(
            "firewall",
            format!("{error:#}"),
            format!("{reason} needs it: install nftables"),
        ),
        Ok(true) => Finding::good("firewall", format!("nft has the table {table}")),
        Ok(false) => Finding::good("firewall", "nft works"),
    });
}
