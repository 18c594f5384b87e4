//! A network that lets nothing out but to somebody else's CONNECT-UDP relay: Envoy.
//!
//! ```text
//!  client0 eth0 10.77.0.2 ──── c0 10.77.0.1: Envoy, TCP 8443 ─▶ server, UDP 4433
//!                                            everything else is dropped by nftables at times
//! ```

use std::{fs, process::Stdio, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use roamd_lab::Process;
use serde_json::{Value, json};

use crate::harness::{Net, eventually, transfer};

/// A client with a relay, and the file with who vouches for the relay.
fn cafe() -> (Net, Process, String) {
    let net = Net::new(1);
    let template = "https://10.77.0.1:8443/.well-known/masque/udp/{target_host}/{target_port}/";
    net.clients[0].amend("[server]\n", &format!("[server]\nrelay = \"{template}\"\n"));
    let folder = net.server.folder();
    let write = |name: &str, text: &str| {
        let file = folder.join(name);
        fs::write(&file, text).unwrap();
        file.display().to_string()
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names.push(SanType::IpAddress([10, 77, 0, 1].into()));
    let certificate =
        write("relay.pem", &pem("CERTIFICATE", params.self_signed(&key).unwrap().der()));
    let key = write("relay.key", &pem("PRIVATE KEY", &key.serialize_der()));
    let configuration = envoy(&certificate, &key).to_string();
    let configuration = write("relay.json", &configuration);
    let mut command = net.server.namespace.command("envoy");
    command.args(["-c", &configuration, "--concurrency", "1", "--disable-hot-restart"]);
    let relay = net.server.namespace.spawn("envoy", command, folder).unwrap();
    eventually("Envoy listens", || {
        let connect = || std::net::TcpStream::connect("10.77.0.1:8443").ok().map(drop);
        net.clients[0].namespace.run(connect).unwrap()
    });
    (net, relay, certificate)
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// Envoy's configuration for CONNECT-UDP to any address.
fn envoy(certificate: &str, key: &str) -> Value {
    let typed = |name: &str, more: Value| {
        let mut typed = json!({ "@type": format!("type.googleapis.com/envoy.extensions.{name}") });
        typed.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        typed
    };
    let cache = json!({ "name": "cache", "dns_lookup_family": "V4_PREFERRED" });
    let filter = |name: &str, kind: &str, more| {
        json!({ "name": format!("envoy.filters.http.{name}"),
                "typed_config": typed(&format!("filters.http.{kind}"), more) })
    };
    let connect = json!({ "upgrade_type": "CONNECT-UDP", "connect_config": {} });
    let manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "stat_prefix": "relay",
            "codec_type": "AUTO",
            "http2_protocol_options": { "allow_connect": true },
            "upgrade_configs": [{ "upgrade_type": "CONNECT-UDP" }],
            "route_config": { "virtual_hosts": [{
                "name": "all",
                "domains": ["*"],
                "routes": [{
                    "match": { "connect_matcher": {} },
                    "route": { "cluster": "anybody", "upgrade_configs": [connect] }
                }]
            }] },
            "http_filters": [
                filter(
                    "dynamic_forward_proxy",
                    "dynamic_forward_proxy.v3.FilterConfig",
                    json!({ "dns_cache_config": cache })
                ),
                filter("router", "router.v3.Router", json!({})),
            ]
        }),
    );
    let tls = json!({ "common_tls_context": {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_certificates": [{
            "certificate_chain": { "filename": certificate },
            "private_key": { "filename": key }
        }]
    } });
    let cluster = typed(
        "clusters.dynamic_forward_proxy.v3.ClusterConfig",
        json!({ "dns_cache_config": cache }),
    );
    json!({ "static_resources": {
        "listeners": [{
            "address": { "socket_address": { "address": "10.77.0.1", "port_value": 8443 } },
            "filter_chains": [{
                "transport_socket": {
                    "name": "tls",
                    "typed_config": typed("transport_sockets.tls.v3.DownstreamTlsContext", tls)
                },
                "filters": [{ "name": "http", "typed_config": manager }]
            }]
        }],
        "clusters": [{
            "name": "anybody",
            "lb_policy": "CLUSTER_PROVIDED",
            "cluster_type": { "name": "anybody", "typed_config": cluster }
        }]
    } })
}

#[test]
#[ignore = "needs Envoy: README.md says how to get it"]
fn where_only_a_relay_reaches_out_the_tunnel_goes_through_it() {
    // In HTTP/1.1 Envoy 1.40 answers 200, where RFC 9298 §3.3 wants 101.
    let (mut net, _relay, certificate) = cafe();
    net.let_through(Some(8443));
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    net.clients[0].start_with(&[("SSL_CERT_FILE", &certificate)]);
    net.clients[0].connected();
    net.clients[0].assert_ping("10.66.0.1", &[]);
    net.clients[0].until_path("transport", "relay");
    let shown = net.clients[0].tell(&["status"]).stdout;
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("10.77.0.1:8443 (via relay)"), "{shown}");
    transfer(&net.clients[0], &net.server, "10.66.0.1", 4 << 20);
    transfer(&net.server, &net.clients[0], "10.66.0.2", 4 << 20);

    let mut pinging = net.clients[0].namespace.command("ping");
    pinging.args(["-n", "-q", "-i", "0.02", "-c", "1500", "10.66.0.1"]);
    let pinging = pinging.stdout(Stdio::piped()).spawn().unwrap();
    net.let_through(None);
    net.clients[0].until_path("transport", "udp");
    std::thread::sleep(Duration::from_secs(2));
    net.let_through(Some(8443));
    net.clients[0].until_path("transport", "relay");
    let output = pinging.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(" 0% packet loss"), "{text}");
    assert_eq!(net.clients[0].status()["sessions"], 1);
}

#[test]
#[ignore = "needs Envoy: README.md says how to get it"]
fn a_relay_for_which_nobody_vouches_is_told() {
    let (mut net, _relay, _) = cafe();
    net.let_through(Some(8443));
    net.server.start();
    eventually("the server listens", || net.server.try_status());
    net.clients[0].start();
    eventually("it is told", || {
        let status = net.clients[0].try_status()?.to_string();
        status.contains("invalid peer certificate").then_some(())
    });
}
