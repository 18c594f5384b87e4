//! A server in a namespace of its own, and clients that are connections of this process.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use quinn::{Connection, Endpoint, EndpointConfig, TokioRuntime};
use roamd::internals::{
    config::{Congestion, Quic},
    identity::{PrivateKey, PublicKey},
    path::udp::UdpSocket,
    quic::{
        self,
        congestion::CongestionHandle,
        session::{self, MessageStream},
        tls,
    },
};
use roamd_lab::{Emulator, LinkShape, Namespace, Process, veth};

pub(crate) const SERVER: &str = "10.77.0.1:4433";

/// The clients' namespace, the server's, and what delays packets between them, each way, if anything does.
pub(crate) fn namespaces(
    delay: Duration,
) -> anyhow::Result<(Namespace, Namespace, Option<Emulator>)> {
    let (here, there) = (Namespace::new("clients")?, Namespace::new("server")?);
    let link = if delay.is_zero() {
        veth(&here, "eth0", &there, "eth0")?;
        None
    } else {
        let shape = LinkShape::delayed(delay);
        Some(Emulator::connect((&here, "eth0"), (&there, "eth0"), shape)?)
    };
    for (host, last) in [(&here, 2), (&there, 1)] {
        host.set_up("eth0")?;
        host.add_address("eth0", &format!("10.77.0.{last}/24"))?;
    }
    Ok((here, there, link))
}

/// The clients' end.
pub(crate) fn endpoint() -> anyhow::Result<Endpoint> {
    Ok(Endpoint::new_with_abstract_socket(
        EndpointConfig::default(),
        None,
        UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0)), None, 0, None)?,
        Arc::new(TokioRuntime),
    )?)
}

/// Starts the server with a peer for each key.
pub(crate) fn start(
    program: &Path,
    namespace: &Namespace,
    folder: &Path,
    keys: &[PrivateKey],
) -> anyhow::Result<(Process, PublicKey)> {
    let output = std::process::Command::new(program)
        .args(["genkey", "--output"])
        .arg(folder.join("server.key"))
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut toml = "role = \"server\"\nprivate-key-file = \"server.key\"\nlisten = \"[::]:4433\"\n\
                    [tun]\naddresses = [\"10.66.0.1/16\"]\n"
        .to_owned();
    for (number, key) in keys.iter().enumerate() {
        let [.., high, low] = inner(number);
        toml += &format!(
            "[[peer]]\nname = \"client {number}\"\npublic-key = \"{}\"\naddresses = [\"10.66.{high}.{low}\"]\n",
            key.public_key()
        );
    }
    let file = folder.join("server.toml");
    fs::write(&file, toml)?;
    let mut command = namespace.command(program);
    command.env("STATE_DIRECTORY", folder);
    command.arg("run").arg(file).env("ROAMD_RUNTIME_DIR", folder).env("ROAMD_LOG__LEVEL", "warn");
    let server = namespace.spawn("server", command, folder)?;
    Ok((server, PrivateKey::load(&folder.join("server.key"))?.public_key()))
}

/// The inner address of a client.
pub(crate) fn inner(number: usize) -> [u8; 4] {
    let [high, low] = (number as u16 + 2).to_be_bytes();
    [10, 66, high, low]
}

pub(crate) fn config(own: &PrivateKey, server: PublicKey) -> anyhow::Result<quinn::ClientConfig> {
    let quic = Quic {
        idle_timeout: Duration::from_secs(30),
        keep_alive: Duration::from_secs(10),
        congestion: Congestion::Cubic,
        dscp: 0,
    };
    let mut config =
        quinn::ClientConfig::new(Arc::new(tls::client(own, server, tls::TUNNEL)?.fresh));
    config.transport_config(Arc::new(quic::transport(&quic, 1400, CongestionHandle::default())));
    Ok(config)
}

pub(crate) async fn connect(
    endpoint: Endpoint,
    config: quinn::ClientConfig,
) -> anyhow::Result<(Connection, MessageStream)> {
    let connection = endpoint.connect_with(config, SERVER.parse()?, "roamd")?.await?;
    let (messages, _) = session::open(&connection, true, 1).await?;
    Ok((connection, messages))
}

/// An IPv4 packet of `protocol` from a client to another address in the tunnel.
pub(crate) fn ipv4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = vec![0; 20];
    ip[0] = 0x45;
    ip[2..4].copy_from_slice(&((20 + payload.len()) as u16).to_be_bytes());
    ip[8..10].copy_from_slice(&[64, protocol]);
    ip[12..16].copy_from_slice(&source);
    ip[16..20].copy_from_slice(&destination);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend_from_slice(payload);
    ip
}

/// The Internet checksum of an even number of bytes (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// The daemon, built beside this example.
pub(crate) fn program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let program = own.ancestors().nth(2).context("no folder")?.join("roamd");
    anyhow::ensure!(program.exists(), "{} is missing: cargo build --release", program.display());
    Ok(program)
}
