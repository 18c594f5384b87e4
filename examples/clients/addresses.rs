//! More addresses than a link has, for clients that are sockets of one process.

use std::net::SocketAddr;

use roamd_lab::Namespace;

/// All of 10.128.0.0/9 belongs to `host`, whose address on the server's link is `via`.
pub(crate) fn give(host: &Namespace, server: &Namespace, via: &str) -> anyhow::Result<()> {
    host.set_up("lo")?;
    ip(host, &["route", "add", "local", "10.128.0.0/9", "dev", "lo"])?;
    ip(server, &["route", "add", "10.128.0.0/9", "via", via])
}

/// One of them, each in a /24 of its own.
pub(crate) fn nth(number: usize) -> SocketAddr {
    let [.., high, low] = (number as u32).to_be_bytes();
    SocketAddr::from(([10, 128 + high, low, 7], 40_000))
}

fn ip(namespace: &Namespace, arguments: &[&str]) -> anyhow::Result<()> {
    let output = namespace.command("ip").args(arguments).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
