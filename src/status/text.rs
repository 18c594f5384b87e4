//! The status as people read it.

use std::{
    fmt::{self, Display, Write as _},
    time::Duration,
};

use super::{
    ClientState, ClientStatus, PathStatus, PeerStatus, Role, ServerStatus, SessionStatus, Status,
    SwitchStatus,
};
use crate::tunnel::counters::Snapshot;

impl Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.role {
            Role::Client(client) => client.fmt(f),
            Role::Server(server) => server.fmt(f),
        }
    }
}

impl Display for ClientStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            ClientState::Connecting => "connecting",
            ClientState::Connected => "connected",
            ClientState::Waiting => "waiting for the next attempt",
        };
        writeln!(f, "client       {state}, up {}", Span(self.uptime))?;
        if let Some(session) = &self.session {
            writeln!(f, "server       {session}")?;
        }
        if let (None, Some(error)) = (&self.session, &self.last_error) {
            writeln!(f, "last error   {error}")?;
        }
        write!(f, "interface    {}, MTU {}", self.interface, self.mtu)?;
        for address in &self.addresses {
            write!(f, ", {address}")?;
        }
        writeln!(f)?;
        if !self.routes.is_empty() {
            writeln!(f, "routes       {}", list(&self.routes))?;
        }
        for path in &self.paths {
            writeln!(f, "path         {path}")?;
        }
        traffic(f, &self.traffic, self.queued_bytes)?;
        for switch in &self.switches {
            writeln!(f, "switched     {switch}")?;
        }
        Ok(())
    }
}

impl Display for ServerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = self.peers.iter().filter(|peer| peer.session.is_some()).count();
        writeln!(
            f,
            "server       listening on {}, up {}, {connected} of {} peers connected",
            self.listen,
            Span(self.uptime),
            self.peers.len()
        )?;
        writeln!(f, "interface    {}", self.interface)?;
        if self.refused_keys > 0 {
            writeln!(f, "refused      {} connections with an unknown key", self.refused_keys)?;
        }
        if self.send_errors + self.receive_errors > 0 {
            writeln!(
                f,
                "errors       {} sending, {} receiving",
                self.send_errors, self.receive_errors
            )?;
        }
        dropped(f, &self.traffic)?;
        for peer in &self.peers {
            write!(f, "\n{peer}")?;
        }
        Ok(())
    }
}

impl Display for PeerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "peer         {}, {}", self.name, list(&self.addresses))?;
        writeln!(f, "key          {}", self.public_key)?;
        match &self.session {
            Some(session) => writeln!(f, "session      {session}")?,
            None => writeln!(f, "session      not connected")?,
        }
        traffic(f, &self.traffic, self.queued_bytes)
    }
}

impl Display for SessionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}) for {}, RTT {:.1} ms, path MTU {}",
            self.remote,
            self.software,
            Span(self.since),
            self.quic.rtt,
            self.quic.path_mtu
        )?;
        match self.quic.lost_packets {
            0 => Ok(()),
            lost => write!(f, ", {lost} packets lost"),
        }
    }
}

impl Display for PathStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.link, self.local, self.server)?;
        write!(f, ", {}", self.state)?;
        if let Some(rtt) = self.rtt {
            write!(f, ", RTT {rtt:.1} ms")?;
        }
        if let Some(heard) = self.last_heard {
            write!(f, ", heard {} ago", Span(heard))?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, ", MTU {mtu}")?;
        }
        if let Some(loss) = self.loss.filter(|loss| *loss > 0.0) {
            write!(f, ", {:.1} % lost", loss * 100.0)?;
        }
        if self.errors > 0 {
            write!(f, ", {} errors", self.errors)?;
        }
        write!(f, ": {}", self.why)
    }
}

impl Display for SwitchStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = self.from.as_deref().unwrap_or("no path");
        let (to, reason, gap, ago) = (&self.to, &self.reason, self.gap, Span(self.ago));
        write!(f, "{from} -> {to} {ago} ago: {reason}, gap {gap:.0} ms")
    }
}

fn traffic(f: &mut fmt::Formatter<'_>, traffic: &Snapshot, queued: usize) -> fmt::Result {
    writeln!(
        f,
        "traffic      sent {} in {} packets, received {} in {}",
        Bytes(traffic.sent_bytes),
        traffic.sent_packets,
        Bytes(traffic.received_bytes),
        traffic.received_packets
    )?;
    if traffic.split_packets > 0 {
        writeln!(f, "split        {} packets larger than the path carries", traffic.split_packets)?;
    }
    if queued > 0 {
        writeln!(f, "queued       {}", Bytes(queued as u64))?;
    }
    dropped(f, traffic)
}

fn dropped(f: &mut fmt::Formatter<'_>, traffic: &Snapshot) -> fmt::Result {
    if traffic.dropped.is_empty() {
        return Ok(());
    }
    let mut reasons = String::new();
    for (reason, count) in &traffic.dropped {
        let separator = if reasons.is_empty() { "" } else { ", " };
        write!(reasons, "{separator}{count} {reason}")?;
    }
    writeln!(f, "dropped      {reasons}")
}

fn list(items: &[impl Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A duration in seconds, to the millisecond below ten seconds and to the second above.
struct Span(f64);

impl Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let duration = Duration::try_from_secs_f64(self.0).unwrap_or_default();
        let whole = if duration < Duration::from_secs(10) {
            Duration::from_millis(duration.as_millis() as u64)
        } else {
            Duration::from_secs(duration.as_secs())
        };
        humantime::format_duration(whole).fmt(f)
    }
}

/// A number of bytes with a unit of powers of ten.
struct Bytes(u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut unit) = (self.0 as f64, "B");
        for larger in ["kB", "MB", "GB", "TB"] {
            if value < 1000.0 {
                break;
            }
            value /= 1000.0;
            unit = larger;
        }
        if unit == "B" { write!(f, "{} B", self.0) } else { write!(f, "{value:.1} {unit}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_at_a_glance() {
        let shown: Vec<_> =
            [0, 999, 1000, 1_499_999, 12_000_000_000].map(|n| Bytes(n).to_string()).into();
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "1.5 MB", "12.0 GB"]);
    }

    #[test]
    fn durations_are_as_exact_as_they_are_short() {
        let shown: Vec<_> = [0.25, 3.001, 75.4, 90_061.0].map(|s| Span(s).to_string()).into();
        assert_eq!(shown, ["250ms", "3s 1ms", "1m 15s", "1day 1h 1m 1s"]);
    }
}
