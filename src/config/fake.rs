//! Configurations for tests.

use std::{net::SocketAddr, time::Duration};

use super::{Congestion, Dns, Filter, Log, LogFormat, Peer, Quic, ServerConfig, ServerTun};
use crate::identity::PrivateKey;

impl ServerConfig {
    /// A server at 10.66.0.1 that changes nothing of its host, and ends at once when it is stopped.
    pub(crate) fn fake(key: &PrivateKey, listen: impl Into<SocketAddr>, peers: Vec<Peer>) -> Self {
        Self {
            private_key: key.clone(),
            listen: vec![listen.into()],
            listen_tcp: None,
            drain: Duration::ZERO,
            tun: ServerTun {
                offload: true,
                name: "roam0".into(),
                mtu: 1400,
                addresses: vec!["10.66.0.1/24".parse().unwrap()],
                routes: Vec::new(),
                dns: Dns::default(),
                nat: false,
                peer_routes: false,
            },
            peers,
            directory: None,
            fleet: Vec::new(),
            quic: Quic {
                idle_timeout: Duration::from_secs(30),
                keep_alive: Duration::from_secs(10),
                congestion: Congestion::Cubic,
                dscp: 0,
            },
            log: Log { level: Filter::default(), format: LogFormat::Text },
            metrics: None,
        }
    }
}
