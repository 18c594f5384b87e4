//! Who uses the tunnel: established TCP connections from its inner addresses, as the kernel lists them.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// `TCP_ESTABLISHED` of the kernel's include/net/tcp_states.h.
const ESTABLISHED: &str = "01";
const SSH: u16 = 22;

/// A connection through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    local: SocketAddr,
    remote: SocketAddr,
}

impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { local, remote } = self;
        match (local.port(), remote.port()) {
            (_, SSH) => write!(f, "ssh to {}", remote.ip()),
            (SSH, _) => write!(f, "ssh from {}", remote.ip()),
            _ => write!(f, "TCP to {remote}"),
        }
    }
}

/// The established connections from these addresses, in this network namespace.
pub(super) fn connections(addresses: &[IpAddr]) -> io::Result<Vec<Connection>> {
    let mut found = parse(&fs::read_to_string("/proc/net/tcp")?, addresses);
    // A kernel without IPv6 has no such file.
    if let Ok(text) = fs::read_to_string("/proc/net/tcp6") {
        found.extend(parse(&text, addresses));
    }
    Ok(found)
}

/// Of lines such as `0: 0200420A:9C42 0100420A:0016 01 …`, whose addresses are words in the machine's byte order.
fn parse(text: &str, addresses: &[IpAddr]) -> Vec<Connection> {
    let connection = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote) = (address(fields.next()?)?, address(fields.next()?)?);
        let is_ours = fields.next()? == ESTABLISHED && addresses.contains(&local.ip());
        is_ours.then_some(Connection { local, remote })
    };
    text.lines().skip(1).filter_map(connection).collect()
}

fn address(field: &str) -> Option<SocketAddr> {
    let (ip, port) = field.split_once(':')?;
    let words =
        (0..ip.len() / 8).map(|word| u32::from_str_radix(ip.get(8 * word..8 * word + 8)?, 16).ok());
    let bytes: Vec<u8> =
        words.collect::<Option<Vec<_>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip = match *bytes.as_slice() {
        [a, b, c, d] => IpAddr::from(Ipv4Addr::new(a, b, c, d)),
        ref bytes => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    Some(SocketAddr::new(ip.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0200420A:9C42 0100420A:0016 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 0200420A:9C43 0100420A:01BB 06 00000000:00000000 00:00000000 00000000     0        0 0 3 0
   3: 0100007F:9C43 0100007F:01BB 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 20 4 30 10 -1
";
    const TCP6: &str = "\
  sl  local_address                         remote_address                        st
   0: 000066FD000000000000000002000000:0016 000066FD000000000000000001000000:D431 01
   1: 0000000000000000FFFF00000200420A:9C42 0000000000000000FFFF00000100420A:01BB 01
  nonsense
   2: 0242:9C42 xyz:01BB 01
";

    #[test]
    fn established_connections_of_the_tunnel_are_named() {
        let ours: [IpAddr; 2] = ["10.66.0.2".parse().unwrap(), "fd66::2".parse().unwrap()];
        let named = |text| parse(text, &ours).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(named(TCP), ["ssh to 10.66.0.1"]);
        assert_eq!(named(TCP6), ["ssh from fd66::1", "TCP to 10.66.0.1:443"]);
        assert!(parse(TCP, &[]).is_empty());
    }
}
