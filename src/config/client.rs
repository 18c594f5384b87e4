//! What a client's values mean.

use std::path::Path;
use std::time::Duration;

use super::check::{self, elements};
use super::problem::Problems;
use super::raw::{RawClient, RawClientTun, RawPaths, RawServerPeer};
use super::{ClientConfig, ClientTun, Paths, Preference, ServerPeer};
use crate::identity::{PrivateKey, PublicKey};

/// Less is less than a handshake takes on a slow link; more keeps a dead path from its retry.
const MIN_STANDBY_CHECK: Duration = Duration::from_secs(5);
const MAX_STANDBY_CHECK: Duration = Duration::from_secs(600);
const MIN_PROBE_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_PROBE_TIMEOUT: Duration = Duration::from_secs(30);

/// Fills in every default in `raw`.
pub(super) fn build(
    raw: &mut RawClient,
    directory: &Path,
    problems: &mut Problems,
) -> Option<ClientConfig> {
    let private_key = check::private_key(&mut raw.private_key_file, directory, problems);
    let own = private_key.as_ref().map(PrivateKey::public_key);
    let server = server(raw.server.get_or_insert_default(), own, problems);
    let tun = tun(raw.tun.get_or_insert_default(), problems);
    let paths = paths(raw.paths.get_or_insert_default(), problems);
    let quic = check::quic(raw.quic.get_or_insert_default(), problems);
    let log = check::log(raw.log.get_or_insert_default());
    Some(ClientConfig {
        private_key: private_key?,
        server: server?,
        tun: tun?,
        paths: paths?,
        quic: quic?,
        log: log?,
    })
}

fn server(
    raw: &RawServerPeer,
    own: Option<PublicKey>,
    problems: &mut Problems,
) -> Option<ServerPeer> {
    const PUBLIC_KEY: &str = "server.public-key";
    problems.require_some("server.address", &raw.address);
    let addresses = raw.address.iter().flatten().flatten().cloned().collect();
    let public_key = problems.require(PUBLIC_KEY, raw.public_key)?;
    if own == Some(public_key) {
        let reason = "is this host's own key; it must be the server's";
        problems.add(PUBLIC_KEY, Some(public_key.to_string()), reason);
    }
    Some(ServerPeer { addresses, public_key })
}

fn tun(raw: &RawClientTun, problems: &mut Problems) -> Option<ClientTun> {
    let name = check::tun_name(&raw.name, problems);
    let mtu = check::tun_mtu(raw.mtu, problems);
    let routes = check::tun_routes(&raw.routes, problems);
    Some(ClientTun {
        name: name?,
        mtu: mtu?,
        offload: raw.offload?,
        routes: raw.routes.as_ref().map(|_| routes),
    })
}

fn paths(raw: &RawPaths, problems: &mut Problems) -> Option<Paths> {
    let probe_timeout =
        problems.accept_duration("paths.probe-timeout", raw.probe_timeout, |timeout| {
            (MIN_PROBE_TIMEOUT..=MAX_PROBE_TIMEOUT).contains(&timeout)
        });
    let standby_check =
        problems.accept_duration("paths.standby-check", raw.standby_check, |check| {
            check.is_zero() || (MIN_STANDBY_CHECK..=MAX_STANDBY_CHECK).contains(&check)
        });
    let ignore = elements("paths.ignore", &raw.ignore)
        .into_iter()
        .filter_map(|(key, link)| problems.accept(&key, Some(link), |link| is_pattern(link)))
        .collect();
    let mut prefer = Vec::new();
    for (key, preference) in elements("paths.prefer", &raw.prefer) {
        let key = format!("{key}.link");
        let link = problems.require(&key, preference.link);
        let link = problems.accept(&key, link, |link| is_pattern(link));
        prefer.extend(
            link.zip(preference.metered).map(|(link, metered)| Preference { link, metered }),
        );
    }
    Some(Paths {
        probe_timeout: probe_timeout?,
        standby_check: Some(standby_check?).filter(|check| !check.is_zero()),
        prefer,
        ignore,
    })
}

fn is_pattern(link: &str) -> bool {
    !link.is_empty() && !link.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/')
}
