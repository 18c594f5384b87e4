//! Checks that clients and servers have in common.

use std::collections::HashMap;
use std::env;
use std::fmt::Display;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Dns, Log, Metrics, Quic, keys,
    problem::Problems,
    raw::{List, RawLog, RawMetrics, RawQuic, Secret},
    rights,
};
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

/// What IPv6 asks of a link (RFC 8200 §5).
pub(crate) const MIN_MTU: u16 = 1280;
pub(crate) const MAX_MTU: u16 = 9000;

/// Characters of a name for people.
const MAX_NAME: usize = 64;

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

/// Whether this is a name for people.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.chars().count()) && !name.contains(char::is_control)
}

/// Values that must be unique, with their owners.
#[derive(Debug)]
pub(super) struct Unique<T>(HashMap<T, String>);

impl<T: Display + Eq + Hash> Unique<T> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    /// Records `value` for `owner`, or reports the owner that already has it.
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

/// Where the service manager puts secrets (systemd.exec(5), `LoadCredential=`), and the name of ours.
const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
const CREDENTIAL: &str = "private-key";
const KEY_FILE: &str = "private-key-file";

/// Finds the key: a credential of the service, else in this file or the one that it names. Leaves that
/// file's absolute path in `named`.
pub(super) fn private_key(
    written: &Option<Secret>,
    named: &mut Option<PathBuf>,
    file: &Path,
    problems: &mut Problems,
) -> Option<PrivateKey> {
    let directory = file.parent().unwrap_or(Path::new("/"));
    if let Some(key) = written {
        return written_key(key, named.is_some(), file, problems);
    }
    match credential() {
        Some(credential) => {
            let key = PrivateKey::load_credential(named.insert(credential));
            key.map_err(|error| unusable(KEY_FILE, &error, problems)).ok()
        }
        None => named_key(named, directory, problems),
    }
}

/// The credential. A dash in its place is how a unit says that there may be none.
fn credential() -> Option<PathBuf> {
    let file = Path::new(&env::var_os(CREDENTIALS)?).join(CREDENTIAL);
    file.metadata().is_ok_and(|found| found.len() > 1).then_some(file)
}

fn written_key(
    key: &Secret,
    is_named_too: bool,
    file: &Path,
    problems: &mut Problems,
) -> Option<PrivateKey> {
    if is_named_too {
        problems.add(keys::PRIVATE_KEY, None, "is one key too many beside private-key-file");
    }
    let remedy = "make another key if they are not to be trusted with this one";
    keep_secret(keys::PRIVATE_KEY, file, remedy, problems);
    let parsed = PrivateKey::from_base64(&key.0);
    parsed.map_err(|error| problems.add(keys::PRIVATE_KEY, None, format!("is none: {error}"))).ok()
}

/// Reports a secret `key` in a file that others can read.
pub(super) fn keep_secret(key: &str, file: &Path, remedy: &str, problems: &mut Problems) {
    let mode = file.metadata().map_or(0, |found| found.permissions().mode() & 0o7777);
    if mode & 0o077 != 0 {
        let mend = rights::mend(file);
        let reason = format!(
            "can be read by others, for this file has mode {mode:04o}: run {mend}, and {remedy}"
        );
        problems.add(key, None, reason);
    }
}

fn named_key(
    named: &mut Option<PathBuf>,
    directory: &Path,
    problems: &mut Problems,
) -> Option<PrivateKey> {
    let written = problems.require(KEY_FILE, named.take())?;
    if written.to_str().is_some_and(|text| text.parse::<PrivateKey>().is_ok()) {
        let reason = "holds a key itself; it must be the path of a file that holds it, and this \
                      key should not be used any more";
        problems.add(KEY_FILE, None, reason);
        return None;
    }
    let path = named.insert(directory.join(written));
    PrivateKey::load(path).map_err(|error| unusable(KEY_FILE, &error, problems)).ok()
}

/// Reports that the file which `key` names holds no private key.
pub(super) fn unusable(key: &str, error: &KeyError, problems: &mut Problems) {
    let advice = match error {
        KeyError::Read { path, error } => rights::advice(path, error),
        KeyError::Exposed { .. } | KeyError::Content { .. } | KeyError::Random => None,
    };
    let advice = advice.map_or_else(String::new, |advice| format!(": {advice}"));
    problems.add(key, None, format!("cannot be used: {error}{advice}"));
}

pub(super) fn tun_name(name: &Option<String>, problems: &mut Problems) -> Option<String> {
    problems.accept("tun.name", name.clone(), |name| is_interface_name(name))
}

/// What the kernel's `dev_valid_name` accepts, less `%`, which it would number, and what means something else to nft than
/// itself: `"`, `*` (many interfaces) and `\`.
fn is_interface_name(name: &str) -> bool {
    let is_bad = |c: char| {
        c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%' | '"' | '*' | '\\')
    };
    (1..=MAX_INTERFACE_NAME).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name.contains(is_bad)
}

pub(super) fn tun_mtu(mtu: Option<u16>, problems: &mut Problems) -> Option<u16> {
    problems.accept("tun.mtu", mtu, |mtu| (MIN_MTU..=MAX_MTU).contains(mtu))
}

/// All addresses of both families.
pub(super) fn default_routes() -> [IpNet; 2] {
    [Ipv4Net::default().into(), Ipv6Net::default().into()]
}

pub(super) fn tun_routes(routes: &List<String>, problems: &mut Problems) -> Vec<IpNet> {
    let mut unique = Unique::new();
    let mut good = Vec::new();
    for (key, route) in elements("tun.routes", routes) {
        let found = match route.as_str() {
            "default" => default_routes().into(),
            prefix => Vec::from_iter(net(&key, prefix, problems)),
        };
        for net in found {
            unique.claim(net, &key, problems);
            good.push(net);
        }
    }
    good
}

/// A prefix without bits behind its end.
pub(super) fn net(key: &str, text: &str, problems: &mut Problems) -> Option<IpNet> {
    let Ok(net) = text.parse::<IpNet>() else {
        problems.refuse(key, text);
        return None;
    };
    if net != net.trunc() {
        let (length, right) = (net.prefix_len(), net.trunc());
        let reason = format!("has bits set after its first {length}; it must be {right}");
        problems.add(key, Some(net.to_string()), reason);
        return None;
    }
    Some(net)
}

pub(super) fn dns(servers: &List<IpAddr>, domains: &List<String>, problems: &mut Problems) -> Dns {
    let servers = elements("tun.dns", servers);
    let domains = elements("tun.search-domains", domains);
    if let ([], [(key, _), ..]) = (&servers[..], &domains[..]) {
        problems.add(key, None, "needs a resolver to ask: set tun.dns");
    }
    let good = domains
        .into_iter()
        .filter_map(|(key, domain)| problems.accept(&key, Some(domain), |it| is_domain(it)));
    Dns { domains: good.collect(), servers: servers.into_iter().map(|(_, it)| it).collect() }
}

/// RFC 1035 §2.3.4: labels of 63 bytes at most; names of 255 bytes on the wire.
pub(crate) fn is_domain(domain: &str) -> bool {
    let domain = domain.strip_suffix('.').unwrap_or(domain);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    domain.len() <= 253 && domain.split('.').all(is_label)
}

pub(super) fn metrics(raw: &RawMetrics, problems: &mut Problems) -> Option<Metrics> {
    const LISTEN: &str = "metrics.listen";
    let listen = raw.listen.clone()?;
    if listen.starts_with('/') {
        return Some(Metrics::Socket(listen.into()));
    }
    match listen.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Some(Metrics::Loopback(address)),
        _ => {
            problems.refuse(LISTEN, listen);
            None
        }
    }
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
