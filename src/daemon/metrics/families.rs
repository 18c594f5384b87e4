//! The status as metrics. Their names are part of what users build on: they stay.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, text::encode},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::{
    daemon::status::{
        ClientState, ClientStatus, DirectoryState, DirectoryStatus, Gaps, HomeState, PathStatus,
        RecentStatus, RemoteState, RemoteStatus, Role, ServerStatus, Status, TcpStatus,
    },
    path::Condition,
    tunnel::counters::Snapshot,
};

/// The figures as OpenMetrics text.
pub(crate) fn text(status: &Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Figures(status.clone())));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Figures(Status);

type Labels<'a> = Vec<(&'static str, String)>;

impl Collector for Figures {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut families = Families(encoder);
        let version = vec![("version", self.0.version.clone())];
        families.gauge("roamd_build", "Always 1", [(version, 1.0)])?;
        match &self.0.role {
            Role::Client(client) => client_families(&mut families, client),
            Role::Server(server) => server_families(&mut families, server),
        }
    }
}

struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn counter<'a>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'a>, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            if labels.is_empty() {
                return ConstCounter::new(value).encode(family);
            }
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn gauge<'a>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'a>, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            if labels.is_empty() {
                return ConstGauge::new(value).encode(family);
            }
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// What every datapath has, one for each of `owners`.
    fn datapaths(&mut self, owners: &[(Labels<'_>, &Snapshot)]) -> fmt::Result {
        type Read = fn(&Snapshot) -> u64;
        let families: [(&str, &str, Read); 12] = [
            ("roamd_sent_packets", "Inner packets sent", |it| it.sent_packets),
            ("roamd_sent_bytes", "Bytes of inner packets sent", |it| it.sent_bytes),
            ("roamd_received_packets", "Inner packets received", |it| it.received_packets),
            ("roamd_received_bytes", "Bytes of inner packets received", |it| it.received_bytes),
            ("roamd_split_packets", "Inner packets that crossed in pieces", |it| it.split_packets),
            ("roamd_repeated_packets", "Inner packets sent once more", |it| it.repeated_packets),
            (
                "roamd_resumed_packets",
                "Inner packets sent once more after a path or server died",
                |it| it.resumed_packets,
            ),
            ("roamd_repaired_packets", "Missing packets that came in time", |it| {
                it.repaired_packets
            }),
            ("roamd_lost_packets", "Missing packets that did not come", |it| it.lost_packets),
            ("roamd_copied_packets", "Inner packets also sent over the standby", |it| {
                it.copied_packets
            }),
            ("roamd_rescued_packets", "Inner packets that came over the standby first", |it| {
                it.rescued_packets
            }),
            ("roamd_duplicate_packets", "Inner packets that came again", |it| it.duplicate_packets),
        ];
        for (name, help, read) in families {
            let values = owners.iter().map(|(labels, it)| (labels.clone(), read(it)));
            self.counter(name, help, values)?;
        }
        let dropped = owners.iter().flat_map(|(labels, it)| {
            it.dropped.iter().map(|(reason, count)| {
                let mut labels = labels.clone();
                labels.push(("reason", word(reason)));
                (labels, *count)
            })
        });
        self.counter("roamd_dropped_packets", "Inner packets dropped", dropped)
    }
}

/// The labels of a figure of a link.
fn link(link: &str, (key, value): (&'static str, &str)) -> Labels<'static> {
    vec![("link", link.into()), (key, value.into())]
}

fn client_families(families: &mut Families<'_>, client: &ClientStatus) -> fmt::Result {
    let none = Labels::new;
    let connected = f64::from(u8::from(client.state == ClientState::Connected));
    families.gauge("roamd_connected", "Whether the tunnel stands", [(none(), connected)])?;
    families.counter("roamd_sessions", "Sessions begun", [(none(), client.sessions)])?;
    for (name, help, states) in [
        (
            "roamd_home",
            "Whether the path in use is one at home",
            &[HomeState::Direct, HomeState::Aside][..],
        ),
        ("roamd_home_aside", "Whether the tunnel stands aside at home", &[HomeState::Aside]),
    ] {
        let is_so = client.home.as_ref().is_some_and(|home| states.contains(&home.state));
        families.gauge(name, help, [(none(), f64::from(u8::from(is_so)))])?;
    }
    let queued = client.queued_bytes as f64;
    families.gauge("roamd_queue_bytes", "Bytes that wait to be sent", [(none(), queued)])?;
    let delay = "How long the last packet sent had waited";
    let seconds = client.queue_delay / 1000.0;
    families.gauge("roamd_queue_delay_seconds", delay, [(none(), seconds)])?;
    families.datapaths(&[(none(), &client.traffic)])?;
    let bytes = client.links.iter().flat_map(|it| {
        let amount = it.amount;
        let directions = [("up", amount.sent_bytes), ("down", amount.received_bytes)];
        directions.map(|(direction, bytes)| (link(&it.link, ("direction", direction)), bytes))
    });
    families.counter("roamd_link_bytes", "Bytes that a link carried, with headers", bytes)?;
    let upkeep =
        client.links.iter().map(|it| (vec![("link", it.link.clone())], it.amount.upkeep_bytes));
    families.counter("roamd_link_upkeep_bytes", "Those that kept paths warm", upkeep)?;
    let budgets = client.links.iter().filter_map(|it| Some((it, it.budget.as_ref()?)));
    let ratios = budgets.map(|(it, budget)| {
        let ratio = budget.used as f64 / budget.of.max(1) as f64;
        (link(&it.link, ("period", &budget.period)), ratio)
    });
    families.gauge("roamd_link_budget_ratio", "What is used of a link's budget", ratios)?;
    let switches = client.switches_by_reason.iter();
    let switches = switches.map(|(reason, count)| (vec![("reason", word(reason))], *count));
    families.counter("roamd_switches", "Changes of path", switches)?;
    let counts = client.gaps.counts;
    let bounds = Gaps::BOUNDS.iter().map(|bound| bound / 1000.0).chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(counts).collect();
    families
        .0
        .encode_descriptor(
            "roamd_switch_gap_seconds",
            "Time without a sign of the server at a change of path",
            None,
            MetricType::Histogram,
        )?
        .encode_histogram::<Labels<'_>>(
            client.gaps.sum / 1000.0,
            counts.iter().sum(),
            &buckets,
            None,
        )?;
    let moves = client.moves_by_reason.iter();
    let moves = moves.map(|(reason, count)| (vec![("reason", word(reason))], *count));
    families.counter("roamd_server_changes", "Changes of server", moves)?;
    let labels = |server: &RemoteStatus| vec![("server", server.name.clone())];
    let is = |holds: fn(&RemoteStatus) -> bool| {
        let value = move |it: &RemoteStatus| (labels(it), f64::from(u8::from(holds(it))));
        client.servers.iter().map(value)
    };
    let in_use = is(|it| it.state == RemoteState::InUse);
    families.gauge("roamd_server_in_use", "Whether the server has the session", in_use)?;
    let answers = is(|it| it.answered.is_some());
    families.gauge("roamd_server_answers", "Whether the server answers as the reserve", answers)?;
    path_families(families, &client.paths)
}

fn path_families(families: &mut Families<'_>, paths: &[PathStatus]) -> fmt::Result {
    let labels = |path: &PathStatus| {
        vec![
            ("link", path.link.clone()),
            ("local", path.local.to_string()),
            ("server", path.server.to_string()),
            ("transport", path.transport.to_string()),
        ]
    };
    let active = |path: &PathStatus| f64::from(u8::from(path.state.is_in_use()));
    let states = paths.iter().map(|path| (labels(path), active(path)));
    families.gauge("roamd_path_active", "Whether the path carries the tunnel", states)?;
    let works = |path: &PathStatus| matches!(path.state, Condition::Active | Condition::Standby);
    let states = paths.iter().map(|path| (labels(path), f64::from(u8::from(works(path)))));
    families.gauge("roamd_path_up", "Whether the path works", states)?;
    let rtts = paths.iter().filter_map(|path| Some((labels(path), path.rtt? / 1000.0)));
    families.gauge("roamd_path_rtt_seconds", "Round-trip time", rtts)?;
    let losses = paths.iter().filter_map(|path| Some((labels(path), path.loss?)));
    families.gauge("roamd_path_loss_ratio", "Share of packets lost", losses)?;
    let recent = |read: fn(&RecentStatus) -> [Option<f64>; 2]| {
        paths.iter().flat_map(move |path| {
            let values = path.recent.as_ref().map_or([None; 2], read);
            let directed = move |(direction, value): (&str, Option<f64>)| {
                let direction = ("direction", direction.to_owned());
                Some(([labels(path), vec![direction]].concat(), value?))
            };
            ["up", "down"].into_iter().zip(values).filter_map(directed)
        })
    };
    let losses = recent(|it| [it.loss_up, it.loss_down]);
    families.gauge("roamd_path_recent_loss_ratio", "Share of packets lost lately", losses)?;
    let rates = recent(|it| [it.rate_up, it.rate_down].map(|bits| Some(bits as f64 / 8.0)));
    families.gauge("roamd_path_recent_bytes_per_second", "What it carries at present", rates)?;
    type Read = fn(&PathStatus) -> u64;
    let counters: [(&str, &str, Read); 3] = [
        ("roamd_path_sent_bytes", "UDP payload sent", |it| it.sent_bytes),
        ("roamd_path_received_bytes", "UDP payload received", |it| it.received_bytes),
        ("roamd_path_errors", "Sends and receives that the kernel refused", |it| it.errors),
    ];
    for (name, help, read) in counters {
        families.counter(name, help, paths.iter().map(|path| (labels(path), read(path))))?;
    }
    Ok(())
}

fn server_families(families: &mut Families<'_>, server: &ServerStatus) -> fmt::Result {
    let none = Labels::new;
    let refused = [(none(), server.refused_keys)];
    families.counter("roamd_refused_keys", "Connections with an unknown key", refused)?;
    let refused = [(none(), server.refused_protocols)];
    families.counter("roamd_refused_protocols", "Connections of another protocol", refused)?;
    let errors = [
        (vec![("direction", "send".into())], server.send_errors),
        (vec![("direction", "receive".into())], server.receive_errors),
    ];
    families.counter("roamd_socket_errors", "Sends and receives that failed", errors)?;
    let draining = f64::from(u8::from(server.draining.is_some()));
    families.gauge("roamd_draining", "Whether the server will stop", [(none(), draining)])?;
    let here = server.draining.map(|it| (none(), it.here as f64));
    let help = "Sessions that the server waits for before it stops";
    families.gauge("roamd_draining_sessions", help, here)?;
    if let Some(tcp) = &server.tcp {
        tcp_families(families, tcp)?;
    }
    if let Some(directory) = &server.directory {
        directory_families(families, directory)?;
    }
    let label = |name: &str| vec![("peer", name.to_owned())];
    let connected = server
        .peers
        .iter()
        .map(|peer| (label(&peer.name), f64::from(u8::from(peer.session.is_some()))));
    families.gauge("roamd_peer_connected", "Whether the peer has a session", connected)?;
    let rtts = server
        .peers
        .iter()
        .filter_map(|peer| Some((label(&peer.name), peer.session.as_ref()?.quic.rtt / 1000.0)));
    families.gauge("roamd_peer_rtt_seconds", "Round-trip time", rtts)?;
    let routes = server.peers.iter().filter_map(|peer| {
        let is_there = peer.routes?.withdrawn.is_none();
        Some((label(&peer.name), f64::from(u8::from(is_there))))
    });
    let help = "Whether the host has routes to a peer whose session is here";
    families.gauge("roamd_peer_routes", help, routes)?;
    let withdrawn = server.peers.iter().flat_map(|peer| {
        peer.routes_withdrawn.iter().map(|(reason, count)| {
            (vec![("peer", peer.name.clone()), ("reason", word(reason))], *count)
        })
    });
    let help = "How often a session that went on lost its routes";
    families.counter("roamd_peer_routes_withdrawn", help, withdrawn)?;
    let queued = server.peers.iter().map(|peer| (label(&peer.name), peer.queued_bytes as f64));
    families.gauge("roamd_queue_bytes", "Bytes that wait to be sent", queued)?;
    let delays = server.peers.iter().map(|peer| (label(&peer.name), peer.queue_delay / 1000.0));
    let help = "How long the last packet sent had waited";
    families.gauge("roamd_queue_delay_seconds", help, delays)?;
    let mut owners: Vec<_> =
        server.peers.iter().map(|peer| (label(&peer.name), &peer.traffic)).collect();
    owners.push((label(""), &server.traffic));
    families.datapaths(&owners)
}

fn tcp_families(families: &mut Families<'_>, tcp: &TcpStatus) -> fmt::Result {
    let TcpStatus { listen: _, connections, refused, dismissed, dropped } = *tcp;
    let none = Labels::new;
    let open = [(none(), connections as f64)];
    families.gauge("roamd_tcp_connections", "TCP connections that carry packets", open)?;
    for (name, help, value) in [
        ("roamd_tcp_refused", "TCP connections refused, since there were too many", refused),
        ("roamd_tcp_dismissed", "TCP connections closed for want of a known key", dismissed),
        ("roamd_tcp_dropped_datagrams", "Datagrams dropped for slow TCP connections", dropped),
    ] {
        families.counter(name, help, [(none(), value)])?;
    }
    Ok(())
}

fn directory_families(families: &mut Families<'_>, directory: &DirectoryStatus) -> fmt::Result {
    let current = f64::from(u8::from(directory.state == DirectoryState::Current));
    for (name, help, value) in [
        ("roamd_directory_current", "Whether what etcd has is in force", current),
        ("roamd_directory_peers", "Peers of the directory", directory.peers as f64),
        (
            "roamd_directory_unused_records",
            "Records of the directory that cannot be used",
            directory.passed_over.len() as f64,
        ),
    ] {
        families.gauge(name, help, [(Labels::new(), value)])?;
    }
    Ok(())
}

/// The word that JSON has for it.
fn word(value: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::daemon::status::{PassedOverStatus, PeerStatus, RoutesStatus, Withdrawal};

    fn server(tcp: Option<TcpStatus>, directory: Option<DirectoryStatus>) -> String {
        server_of(tcp, directory, Vec::new())
    }

    fn server_of(
        tcp: Option<TcpStatus>,
        directory: Option<DirectoryStatus>,
        peers: Vec<PeerStatus>,
    ) -> String {
        let traffic = crate::tunnel::counters::Counters::default().snapshot();
        let status = Status::server(ServerStatus {
            listen: "[::]:4433".parse().unwrap(),
            listen_also: Vec::new(),
            interface: "roam0".into(),
            left_out: Vec::new(),
            uptime: 1.0,
            peers,
            traffic,
            send_errors: 0,
            receive_errors: 0,
            refused_keys: 0,
            refused_protocols: 0,
            tcp,
            directory,
            draining: None,
        });
        text(&status).unwrap()
    }

    #[test]
    fn a_server_with_a_tcp_port_has_its_figures() {
        let listen = "[::]:443".parse().unwrap();
        let tcp = TcpStatus { listen, connections: 2, refused: 3, dismissed: 4, dropped: 5 };
        let text = server(Some(tcp), None);
        let figures = figures(&text);
        for (name, value) in [
            ("roamd_tcp_connections", "2.0"),
            ("roamd_tcp_refused_total", "3"),
            ("roamd_tcp_dismissed_total", "4"),
            ("roamd_tcp_dropped_datagrams_total", "5"),
        ] {
            assert_eq!(figures.get(name), Some(&value), "{name} {text}");
        }
        assert!(!server(None, None).contains("roamd_tcp"));
    }

    #[test]
    fn a_server_with_a_directory_tells_whether_etcd_is_heard() {
        let directory = |state, records: &[&str]| DirectoryStatus {
            state,
            since: 1.0,
            reason: None,
            prefix: "/roamd/home".into(),
            revision: 7,
            peers: 3,
            passed_over: records
                .iter()
                .map(|record| PassedOverStatus { record: (*record).into(), reason: "odd".into() })
                .collect(),
            unsaved: None,
        };
        for (directory, current, unused) in [
            (directory(DirectoryState::Current, &["anna"]), "1.0", "1.0"),
            (directory(DirectoryState::Away, &[]), "0.0", "0.0"),
        ] {
            let text = server(None, Some(directory));
            let figures = figures(&text);
            assert_eq!(figures.get("roamd_directory_current"), Some(&current), "{text}");
            assert_eq!(figures.get("roamd_directory_peers"), Some(&"3.0"), "{text}");
            assert_eq!(figures.get("roamd_directory_unused_records"), Some(&unused), "{text}");
        }
        assert!(!server(None, None).contains("roamd_directory"));
    }

    #[test]
    fn a_server_tells_whose_routes_are_there_and_how_often_they_were_withdrawn() {
        let peer = |name: &str, routes, withdrawn: &[(Withdrawal, u64)]| PeerStatus {
            name: name.into(),
            public_key: String::new(),
            addresses: Vec::new(),
            session: None,
            last_session: None,
            rival: None,
            holder: None,
            routes,
            routes_withdrawn: withdrawn.iter().copied().collect(),
            queued_bytes: 0,
            queue_delay: 0.0,
            traffic: crate::tunnel::counters::Counters::default().snapshot(),
        };
        let routes = |withdrawn| Some(RoutesStatus { withdrawn, since: 1.0 });
        let unheard = Withdrawal::Unheard;
        let text = server_of(
            None,
            None,
            vec![
                peer("told", routes(None), &[(unheard, 2)]),
                peer("gone", routes(Some(unheard)), &[(unheard, 1)]),
                peer("away", None, &[]),
            ],
        );
        for line in [
            "roamd_peer_routes{peer=\"told\"} 1.0",
            "roamd_peer_routes{peer=\"gone\"} 0.0",
            "roamd_peer_routes_withdrawn_total{peer=\"told\",reason=\"unheard\"} 2",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} {text}");
        }
        assert!(!text.contains("roamd_peer_routes{peer=\"away\"}"), "{text}");
    }

    fn figures(text: &str) -> BTreeMap<&str, &str> {
        text.lines().filter_map(|line| line.split_once(' ')).collect()
    }
}
