//! What quinn does by itself: datagrams as fast as it takes them, over the same link, with its own sockets and
//! settings. No tunnel that is built on it is faster.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use anyhow::Context as _;
use bytes::Bytes;
use quinn::{Endpoint, TransportConfig};
use roamd::internals::{
    identity::PrivateKey,
    quic::tls::{self, ServerTls},
};
use roamd_lab::Namespace;
use tokio::runtime::{Builder, Runtime};

/// Bytes of datagrams that wait, on either side.
const BUFFER: usize = 1 << 20;

/// Mbit/s of payload from `client` to `server`, which listens at `address`; bytes in all.
pub(crate) fn datagrams(
    client: &Namespace,
    server: &Namespace,
    address: SocketAddr,
) -> anyhow::Result<(f64, u64)> {
    let (own, peer) = (PrivateKey::generate()?, PrivateKey::generate()?);
    let mut settings = TransportConfig::default();
    settings.datagram_receive_buffer_size(Some(BUFFER)).datagram_send_buffer_size(BUFFER);
    let settings = Arc::new(settings);

    let tls = ServerTls::new(&peer, |_| true)?.for_connection()?;
    let mut accepting = quinn::ServerConfig::with_crypto(Arc::new(tls));
    accepting.transport_config(settings.clone());
    let tls = tls::client(&own, peer.public_key(), tls::TUNNEL)?.fresh;
    let mut connecting = quinn::ClientConfig::new(Arc::new(tls));
    connecting.transport_config(settings);

    let (there, listening) = server.run(|| {
        let runtime = runtime()?;
        let endpoint = runtime.block_on(async { Endpoint::server(accepting, address) })?;
        anyhow::Ok((runtime, endpoint))
    })??;
    let (here, endpoint) = client.run(|| {
        let runtime = runtime()?;
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let endpoint = runtime.block_on(async { Endpoint::client(any) })?;
        anyhow::Ok((runtime, endpoint))
    })??;
    let (counted, all, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let counting = AtomicBool::new(false);
    thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            there.block_on(async {
                let connection = listening.accept().await.context("no connection")?.await?;
                while let Ok(datagram) = connection.read_datagram().await {
                    all.fetch_add(datagram.len() as u64, Relaxed);
                    if counting.load(Relaxed) {
                        counted.fetch_add(datagram.len() as u64, Relaxed);
                    }
                }
                anyhow::Ok(())
            })
        });
        let sender = scope.spawn(|| {
            here.block_on(async {
                let connection = endpoint.connect_with(connecting, address, "roamd")?.await?;
                while !done.load(Relaxed) {
                    let size = connection.max_datagram_size().context("no datagrams")?;
                    connection.send_datagram_wait(Bytes::from(vec![7; size])).await?;
                }
                connection.close(0_u32.into(), b"done");
                endpoint.wait_idle().await;
                anyhow::Ok(())
            })
        });
        let rate = super::count(&counting, &counted);
        done.store(true, Relaxed);
        for side in [sender, receiver] {
            side.join().map_err(|_| anyhow::anyhow!("a side panicked"))??;
        }
        Ok((rate * 8.0 / 1e6, all.load(Relaxed)))
    })
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}
