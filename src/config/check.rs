//! Checks that clients and servers have in common.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

use super::keys;
use super::problem::Problems;
use super::raw::{List, RawLog, RawQuic};
use super::{Log, Quic};
use crate::identity::{KeyError, PrivateKey};

/// More often than this costs battery and data, and keeps no NAT open that others do not.
const MIN_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Six bits (RFC 2474 §3).
const MAX_DSCP: u8 = 63;

/// RFC 9000 §10.1: "each endpoint advertises a max_idle_timeout, but the effective value at
/// an endpoint is computed as the minimum of the two advertised values". Less than the
/// minimum here ends connections that a busy link has merely delayed; more than the maximum
/// gains nothing, since NATs commonly forget UDP after 30 s and the session outlives the
/// connection anyway.
const MIN_IDLE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_IDLE_TIMEOUT: Duration = Duration::from_secs(60);

const MIN_MTU: u16 = 1280;
const MAX_MTU: u16 = 9000;

/// IFNAMSIZ less the terminating zero (netdevice(7)).
const MAX_INTERFACE_NAME: usize = 15;

impl Problems {
    /// Passes on a value that is good, and refuses any other.
    pub(super) fn accept<T: Display>(
        &mut self,
        key: &str,
        value: Option<T>,
        is_good: impl Fn(&T) -> bool,
    ) -> Option<T> {
        let value = value?;
        if is_good(&value) {
            return Some(value);
        }
        self.refuse(key, value);
        None
    }

    /// Passes on a duration that is good, and refuses any other.
    pub(super) fn accept_duration(
        &mut self,
        key: &str,
        value: Option<Duration>,
        is_good: impl Fn(Duration) -> bool,
    ) -> Option<Duration> {
        let value = value?;
        if is_good(value) {
            return Some(value);
        }
        self.refuse(key, format!("{value:?}"));
        None
    }

    /// Reports a list that is missing or empty.
    pub(super) fn require_some<T>(&mut self, key: &str, list: &List<T>) {
        if self.require(key, list.as_ref()).is_some_and(Vec::is_empty) {
            let element = keys::accepted(&format!("{key}[0]"));
            let reason = format!("must hold at least one element: {element}");
            self.add(key, Some("[]".to_owned()), reason);
        }
    }
}

/// The elements that have not been reported, each with its own key.
pub(super) fn elements<T: Clone>(key: &str, list: &List<T>) -> Vec<(String, T)> {
    let numbered = list.iter().flatten().enumerate();
    let present = numbered.filter_map(|(i, element)| Some((i, element.clone()?)));
    present.map(|(i, element)| (format!("{key}[{i}]"), element)).collect()
}

/// Values that may occur once only, and who has them.
#[derive(Debug)]
pub(super) struct Unique<T>(HashMap<T, String>);

impl<T: Display + Eq + Hash> Unique<T> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Takes `value` for `owner`, or reports that somebody has it.
    pub(super) fn claim(&mut self, value: T, owner: &str, problems: &mut Problems) {
        match self.0.get(&value) {
            Some(first) => {
                let reason = format!("is already used by {first}");
                problems.add(owner, Some(value.to_string()), reason);
            }
            None => {
                self.0.insert(value, owner.to_owned());
            }
        }
    }
}

/// Loads the key; leaves the file's absolute path in `file`.
pub(super) fn private_key(
    file: &mut Option<PathBuf>,
    directory: &Path,
    problems: &mut Problems,
) -> Option<PrivateKey> {
    const KEY: &str = "private-key-file";
    let written = problems.require(KEY, file.take())?;
    if written.to_str().is_some_and(|text| text.parse::<PrivateKey>().is_ok()) {
        let reason = "holds a key itself; it must be the path of a file that holds it, and this \
                      key should not be used any more";
        problems.add(KEY, None, reason);
        return None;
    }
    let path = file.insert(directory.join(written));
    let reported = |error: KeyError| problems.add(KEY, None, format!("cannot be used: {error}"));
    PrivateKey::load(path).map_err(reported).ok()
}

pub(super) fn tun_name(name: &Option<String>, problems: &mut Problems) -> Option<String> {
    problems.accept("tun.name", name.clone(), |name| is_interface_name(name))
}

/// What the kernel's `dev_valid_name` accepts, less `%`, which it would number.
fn is_interface_name(name: &str) -> bool {
    let is_bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    (1..=MAX_INTERFACE_NAME).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(is_bad)
}

pub(super) fn tun_mtu(mtu: Option<u16>, problems: &mut Problems) -> Option<u16> {
    problems.accept("tun.mtu", mtu, |mtu| (MIN_MTU..=MAX_MTU).contains(mtu))
}

pub(super) fn tun_routes(routes: &List<IpNet>, problems: &mut Problems) -> Vec<IpNet> {
    let mut unique = Unique::new();
    let mut good = Vec::new();
    for (key, route) in elements("tun.routes", routes) {
        if route.prefix_len() == 0 {
            problems.refuse(&key, route);
        } else if route != route.trunc() {
            let reason = format!(
                "has bits set after its first {}; it must be {}",
                route.prefix_len(),
                route.trunc()
            );
            problems.add(&key, Some(route.to_string()), reason);
        } else {
            unique.claim(route, &key, problems);
            good.push(route);
        }
    }
    good
}

pub(super) fn quic(raw: &RawQuic, problems: &mut Problems) -> Option<Quic> {
    const KEEP_ALIVE: &str = "quic.keep-alive";
    let idle_timeout = problems.accept_duration("quic.idle-timeout", raw.idle_timeout, |timeout| {
        (MIN_IDLE_TIMEOUT..=MAX_IDLE_TIMEOUT).contains(&timeout)
    });
    let keep_alive = problems
        .accept_duration(KEEP_ALIVE, raw.keep_alive, |interval| interval >= MIN_KEEP_ALIVE)?;
    let idle_timeout = idle_timeout?;
    // One keep-alive may be lost, and the next is still in time.
    if keep_alive >= idle_timeout / 2 {
        let reason = format!("must be less than half of quic.idle-timeout ({idle_timeout:?})");
        problems.add(KEEP_ALIVE, Some(format!("{keep_alive:?}")), reason);
    }
    let dscp = problems.accept("quic.dscp", raw.dscp, |dscp| *dscp <= MAX_DSCP)?;
    Some(Quic { idle_timeout, keep_alive, congestion: raw.congestion?, dscp })
}

pub(super) fn log(raw: &RawLog) -> Option<Log> {
    Some(Log { level: raw.level.clone()?, format: raw.format? })
}
