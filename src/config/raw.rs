//! The file as it is written, and every default.
//!
//! `None` stands for a key that is absent and has no default, or whose value has already
//! been reported as a problem. In a configuration without problems only the former is left,
//! so that writing it gives the effective file.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{
        MapAccess, SeqAccess, Visitor,
        value::{MapAccessDeserializer, SeqAccessDeserializer},
    },
};
use zeroize::Zeroizing;

use super::{
    Congestion, Filter, HomeMode, HostPort, LogFormat, OverBudget, proxy::without_credentials,
};
use crate::{clock::Date, identity::PublicKey};

/// A list of which some elements may have been reported.
pub(super) type List<T> = Option<Vec<Option<T>>>;

/// Text that is never shown, and wiped from memory on drop.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub(super) struct Secret(pub(super) Zeroizing<String>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("[redacted]")
    }
}

/// The URL of a proxy, whose user and password are never shown.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
pub(super) struct ProxyUrl(pub(super) Zeroizing<String>);

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_credentials(&self.0))
    }
}

impl Serialize for ProxyUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&without_credentials(&self.0))
    }
}

#[derive(Debug, Serialize)]
#[serde(tag = "role", rename_all = "kebab-case")]
pub(super) enum RawConfig {
    Client(RawClient),
    Server(RawServer),
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawClient {
    pub(super) private_key: Option<Secret>,
    pub(super) private_key_file: Option<PathBuf>,
    pub(super) server: Option<RawServers>,
    pub(super) home: Option<RawHome>,
    pub(super) tun: Option<RawClientTun>,
    pub(super) paths: Option<RawPaths>,
    pub(super) quic: Option<RawQuic>,
    pub(super) log: Option<RawLog>,
    pub(super) metrics: Option<RawMetrics>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawServer {
    pub(super) private_key: Option<Secret>,
    pub(super) private_key_file: Option<PathBuf>,
    pub(super) listen: List<SocketAddr>,
    pub(super) listen_tcp: Option<SocketAddr>,
    #[serde(with = "humantime_serde")]
    pub(super) drain: Option<Duration>,
    pub(super) tun: Option<RawServerTun>,
    pub(super) quic: Option<RawQuic>,
    pub(super) log: Option<RawLog>,
    pub(super) metrics: Option<RawMetrics>,
    pub(super) directory: Option<RawDirectory>,
    pub(super) peer: List<RawPeer>,
}

/// `[server]` or `[[server]]`.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(super) enum RawServers {
    One(RawServerPeer),
    Several(Vec<Option<RawServerPeer>>),
}

impl Default for RawServers {
    fn default() -> Self {
        Self::One(RawServerPeer::default())
    }
}

/// The derived one tries each of them, and forgets which key of a table did not fit.
impl<'de> Deserialize<'de> for RawServers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = RawServers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table or a list of tables")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawServers, A::Error> {
                Deserialize::deserialize(MapAccessDeserializer::new(map)).map(RawServers::One)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<RawServers, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(list)).map(RawServers::Several)
            }
        }
        deserializer.deserialize_any(OneOrMore)
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawServerPeer {
    pub(super) name: Option<String>,
    pub(super) address: List<HostPort>,
    pub(super) tcp_port: Option<u16>,
    pub(super) proxy: Option<ProxyUrl>,
    pub(super) relay: Option<String>,
    pub(super) public_key: Option<PublicKey>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawHome {
    pub(super) addresses: List<HostPort>,
    pub(super) mode: Option<HomeMode>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawClientTun {
    pub(super) name: Option<String>,
    pub(super) mtu: Option<u16>,
    pub(super) offload: Option<bool>,
    pub(super) routes: List<String>,
    pub(super) exclude: List<String>,
    pub(super) kill_switch: Option<bool>,
    pub(super) dns: List<IpAddr>,
    pub(super) search_domains: List<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawServerTun {
    pub(super) name: Option<String>,
    pub(super) mtu: Option<u16>,
    pub(super) offload: Option<bool>,
    pub(super) addresses: List<IpNet>,
    pub(super) routes: List<String>,
    pub(super) dns: List<IpAddr>,
    pub(super) search_domains: List<String>,
    pub(super) nat: Option<bool>,
    pub(super) peer_routes: Option<bool>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawDirectory {
    pub(super) name: Option<String>,
    pub(super) etcd: Option<RawEtcd>,
    pub(super) ticket_key_file: Option<PathBuf>,
    pub(super) server: List<RawFleetServer>,
}

/// `[[directory.server]]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawFleetServer {
    pub(super) name: Option<String>,
    pub(super) address: List<HostPort>,
    pub(super) tcp_port: Option<u16>,
    pub(super) public_key: Option<PublicKey>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawEtcd {
    pub(super) endpoints: List<String>,
    pub(super) prefix: Option<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawPeer {
    pub(super) name: Option<String>,
    pub(super) public_key: Option<PublicKey>,
    pub(super) addresses: List<IpAddr>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawPaths {
    #[serde(with = "humantime_serde")]
    pub(super) probe_timeout: Option<Duration>,
    #[serde(with = "humantime_serde")]
    pub(super) standby_check: Option<Duration>,
    pub(super) metered_copies: Option<u32>,
    pub(super) metered_reserve: Option<bool>,
    pub(super) ignore: List<String>,
    pub(super) prefer: List<RawPreference>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawPreference {
    pub(super) link: Option<String>,
    pub(super) metered: Option<bool>,
    pub(super) budget: Option<String>,
    pub(super) budget_day: Option<u8>,
    pub(super) budget_start: Option<Date>,
    pub(super) over_budget: Option<OverBudget>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawQuic {
    #[serde(with = "humantime_serde")]
    pub(super) idle_timeout: Option<Duration>,
    #[serde(with = "humantime_serde")]
    pub(super) keep_alive: Option<Duration>,
    pub(super) congestion: Option<Congestion>,
    pub(super) dscp: Option<u8>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawLog {
    pub(super) level: Option<Filter>,
    pub(super) format: Option<LogFormat>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RawMetrics {
    pub(super) listen: Option<String>,
}

const TUN_NAME: &str = "roam0";
const TUN_MTU: u16 = 1400;

impl Default for RawServer {
    fn default() -> Self {
        Self {
            private_key: None,
            private_key_file: None,
            listen: None,
            listen_tcp: None,
            drain: Some(Duration::from_secs(5)),
            tun: None,
            quic: None,
            log: None,
            metrics: None,
            directory: None,
            peer: None,
        }
    }
}

impl Default for RawHome {
    fn default() -> Self {
        Self { addresses: Some(Vec::new()), mode: Some(HomeMode::Direct) }
    }
}

impl Default for RawClientTun {
    fn default() -> Self {
        Self {
            name: Some(TUN_NAME.to_owned()),
            mtu: Some(TUN_MTU),
            offload: Some(true),
            routes: None,
            exclude: Some(vec![Some("lan".to_owned())]),
            kill_switch: Some(false),
            dns: None,
            search_domains: Some(Vec::new()),
        }
    }
}

impl Default for RawServerTun {
    fn default() -> Self {
        Self {
            name: Some(TUN_NAME.to_owned()),
            mtu: Some(TUN_MTU),
            offload: Some(true),
            addresses: None,
            routes: Some(Vec::new()),
            dns: Some(Vec::new()),
            search_domains: Some(Vec::new()),
            nat: Some(false),
            peer_routes: None,
        }
    }
}

impl Default for RawPaths {
    fn default() -> Self {
        Self {
            probe_timeout: Some(Duration::from_secs(5)),
            standby_check: Some(Duration::from_secs(15)),
            metered_copies: Some(64 << 10),
            metered_reserve: Some(false),
            ignore: Some(Vec::new()),
            prefer: Some(Vec::new()),
        }
    }
}

impl Default for RawPreference {
    fn default() -> Self {
        Self {
            link: None,
            metered: Some(false),
            budget: None,
            budget_day: Some(1),
            budget_start: None,
            over_budget: Some(OverBudget::default()),
        }
    }
}

impl Default for RawQuic {
    fn default() -> Self {
        Self {
            idle_timeout: Some(Duration::from_secs(30)),
            keep_alive: Some(Duration::from_secs(10)),
            congestion: Some(Congestion::Cubic),
            dscp: Some(0),
        }
    }
}

impl Default for RawLog {
    fn default() -> Self {
        Self { level: Some(Filter::default()), format: Some(LogFormat::Text) }
    }
}
