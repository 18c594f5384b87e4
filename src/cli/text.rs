//! The status as people read it.

use std::{
    fmt::{self, Display, Write as _},
    time::Duration,
};

use anstyle::{AnsiColor, Style};

use super::paint::Paint;
pub(super) use crate::daemon::usage::Bytes;
use crate::{
    config::OverBudget,
    daemon::{
        status::{
            BulkState, ClientState, ClientStatus, DirectoryState, DirectoryStatus, LinkStatus,
            PassedOverStatus, PathStatus, PeerStatus, RecentStatus, RemoteState, RemoteStatus,
            Role, ServerStatus, SessionStatus, Status, TcpStatus, UnusedLink, Withdrawal,
        },
        usage::{BudgetLevel, BudgetStatus, scaled},
    },
    host::interface::LeftOut,
    path::Condition,
    tunnel::counters::Snapshot,
};

/// A status for people.
#[derive(Debug)]
pub(super) struct Text<'a> {
    /// What is shown.
    pub status: &'a Status,
    /// In which colours.
    pub paint: Paint,
}

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.status.role {
            Role::Client(client) => show_client(f, client, self.paint),
            Role::Server(server) => show_server(f, server, self.paint),
        }
    }
}

const GOOD: Style = AnsiColor::Green.on_default();
const READY: Style = AnsiColor::Cyan.on_default();
pub(super) const UNSURE: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default();
const HEAD: Style = Style::new().bold();
const FAINT: Style = Style::new().dimmed();
pub(super) const PLAIN: Style = Style::new();
/// Rows of unused links: a host of containers has hundreds of links.
const MOST_UNUSED: usize = 8;

fn show_client(f: &mut fmt::Formatter<'_>, client: &ClientStatus, paint: Paint) -> fmt::Result {
    let (style, state) = match (client.state, &client.portal) {
        (ClientState::Connected, _) => (GOOD, "connected".to_owned()),
        (ClientState::Paused, _) => (UNSURE, paused(client)),
        (_, Some(link)) => (UNSURE, format!("captive portal on {link}: log in with a browser")),
        (ClientState::Connecting, None) => (UNSURE, "connecting".into()),
        (ClientState::Waiting, None) => (BAD, waiting(client)),
    };
    writeln!(f, "client       {}, up {}", paint.paint(style, state), Span(client.uptime))?;
    match &client.session {
        Some(session) => writeln!(f, "server       {session}")?,
        None => {
            writeln!(f, "server       {}", client.server.join(", "))?;
            if let Some(error) = &client.last_error {
                writeln!(f, "last error   {error}")?;
            }
        }
    }
    if let Some(home) = &client.home {
        writeln!(f, "home         over {}; {}", home.link, home.state)?;
    }
    if client.servers.len() > 1 {
        let servers: Vec<_> = client.servers.iter().map(ToString::to_string).collect();
        writeln!(f, "servers      {}", servers.join("; "))?;
    }
    write!(f, "interface    {}, MTU {}", client.interface, client.mtu)?;
    for address in &client.addresses {
        write!(f, ", {address}")?;
    }
    writeln!(f)?;
    if !client.routes.is_empty() {
        writeln!(f, "routes       {}", list(&client.routes))?;
    }
    left_out(f, &client.left_out)?;
    traffic(f, &client.traffic, client.queued_bytes)?;
    for LinkStatus { link, budget, .. } in &client.links {
        if let Some(budget) = budget {
            show_budget(f, link, budget, paint)?;
        }
    }
    if client.bulk == BulkState::HeldHere {
        writeln!(f, "{:13}the server is of a version that does not hold back what it sends", "")?;
    }
    let recent = client.paths.iter().find_map(|path| path.recent);
    if let Some(recent) = recent.filter(|it| it.loss().is_some()) {
        writeln!(f, "lately       {recent}")?;
    }
    if !client.paths.is_empty() || !client.unused_links.is_empty() {
        writeln!(f)?;
        let mut rows =
            vec![head(["PATH", "STATE", "RTT", "LOSS", "MTU", "HEARD", "SERVER", "WHY"])];
        rows.extend(client.paths.iter().map(path_row));
        rows.extend(client.unused_links.iter().take(MOST_UNUSED).map(unused_row));
        table(f, &rows, paint)?;
        if let Some(more) = client.unused_links.len().checked_sub(MOST_UNUSED + 1) {
            writeln!(f, "and {} more links that are not used", more + 1)?;
        }
    }
    if !client.switches.is_empty() {
        writeln!(f)?;
        let mut rows = vec![head(["MOVED", "FROM", "TO", "GAP", "WHY"])];
        let switches = client.switches.iter().rev();
        rows.extend(switches.map(|it| change_row(it.ago, it.ways(), it.gap, it.reason.clone())));
        table(f, &rows, paint)?;
    }
    if !client.moves.is_empty() {
        writeln!(f)?;
        let mut rows = vec![head(["SERVER", "FROM", "TO", "GAP", "WHY"])];
        rows.extend(client.moves.iter().rev().map(|it| {
            change_row(it.ago, (it.from.clone(), it.to.clone()), it.gap, it.reason.to_string())
        }));
        table(f, &rows, paint)?;
    }
    Ok(())
}

fn paused(client: &ClientStatus) -> String {
    match client.next_attempt {
        Some(next) => format!("paused for another {}", Span(next.ceil())),
        None => "paused, roamd resume ends it".into(),
    }
}

fn waiting(client: &ClientStatus) -> String {
    let refused = client.refused_since.map(|since| format!("refused for {}", Span(since.floor())));
    let refused = refused.unwrap_or_else(|| "not connected".into());
    let next = client.next_attempt.map(|next| format!(", next attempt in {}", Span(next.ceil())));
    refused + &next.unwrap_or_default()
}

fn path_row(path: &PathStatus) -> [Cell; 8] {
    let style = match path.state {
        Condition::Active => GOOD,
        Condition::Standby => READY,
        Condition::Suspect | Condition::Probing | Condition::Waiting => UNSURE,
        Condition::Failed => BAD,
    };
    let dash = || "-".to_owned();
    // What is counted since the session began is of other paths as well.
    let loss = path.recent.map_or(path.loss, |recent| recent.loss());
    [
        (PLAIN, path.link.clone()),
        (style, path.state.to_string()),
        (PLAIN, path.rtt.map_or_else(dash, |rtt| format!("{rtt:.1} ms"))),
        (PLAIN, loss.map_or_else(dash, |loss| format!("{:.1} %", loss * 100.0))),
        (PLAIN, path.mtu.map_or_else(dash, |mtu| mtu.to_string())),
        (PLAIN, path.last_heard.map_or_else(dash, |heard| format!("{} ago", Span(heard)))),
        (PLAIN, path.transport.mark(path.server)),
        (PLAIN, path.why.clone()),
    ]
}

fn unused_row(unused: &UnusedLink) -> [Cell; 8] {
    let dash = || (PLAIN, "-".to_owned());
    let (link, why) = ((PLAIN, unused.link.clone()), (PLAIN, unused.why.clone()));
    [link, (FAINT, "not used".into()), dash(), dash(), dash(), dash(), dash(), why]
}

/// A change of path or of server.
fn change_row(ago: f64, (from, to): (String, String), gap: f64, why: String) -> [Cell; 5] {
    let (ago, gap) = (format!("{} ago", Span(ago)), format!("{gap:.0} ms"));
    [ago, from, to, gap, why].map(|text| (PLAIN, text))
}

fn show_server(f: &mut fmt::Formatter<'_>, server: &ServerStatus, paint: Paint) -> fmt::Result {
    let connected = server.peers.iter().filter(|peer| peer.session.is_some()).count();
    writeln!(
        f,
        "server       listening on {}, up {}, {connected} of {} peers connected",
        server.listening(),
        Span(server.uptime),
        server.peers.len()
    )?;
    if let Some(draining) = &server.draining {
        writeln!(f, "{}", paint.paint(UNSURE, draining))?;
    }
    writeln!(f, "interface    {}", server.interface)?;
    left_out(f, &server.left_out)?;
    if let Some(tcp) = &server.tcp {
        let TcpStatus { listen, connections, refused, dismissed, .. } = tcp;
        writeln!(
            f,
            "tcp          listening on {listen}, {connections} connections, {refused} refused, {dismissed} dismissed"
        )?;
    }
    if let Some(directory) = &server.directory {
        show_directory(f, directory, paint)?;
    }
    if server.refused_keys > 0 {
        writeln!(f, "refused      {} connections with an unknown key", server.refused_keys)?;
    }
    if server.refused_protocols > 0 {
        let count = server.refused_protocols;
        writeln!(f, "refused      {count} connections of another protocol, such as HTTP/3")?;
    }
    if server.send_errors + server.receive_errors > 0 {
        let (send, receive) = (server.send_errors, server.receive_errors);
        writeln!(f, "errors       {send} sending, {receive} receiving")?;
    }
    dropped(f, &server.traffic)?;
    if !server.peers.is_empty() {
        writeln!(f)?;
        let columns =
            ["PEER", "SESSION", "RTT", "FROM", "SENT", "RECEIVED", "DROPPED", "ADDRESSES"];
        let mut rows = vec![head(columns)];
        rows.extend(server.peers.iter().map(peer_row));
        table(f, &rows, paint)?;
    }
    for PeerStatus { name, traffic, .. } in &server.peers {
        if let Some(repairs) = repairs(traffic) {
            writeln!(f, "{name}: repaired {repairs}")?;
        }
        if let Some(copies) = copies(traffic) {
            writeln!(f, "{name}: {copies}")?;
        }
    }
    for peer in &server.peers {
        if let Some(holder) = peer.holder.as_ref().filter(|it| !it.here) {
            writeln!(f, "{}: at the server {}", peer.name, holder.server)?;
        }
        if let Some(routes) = routes(peer) {
            writeln!(f, "{}: {routes}", peer.name)?;
        }
        if let Some(rival) = peer.rival {
            let name = &peer.name;
            writeln!(
                f,
                "{name}: another machine with the same key is at {rival}; give it a key of its own"
            )?;
        }
    }
    Ok(())
}

/// What is to be said of the routes to a peer that may be at another server.
fn routes(peer: &PeerStatus) -> Option<String> {
    let gone = peer.routes.filter(|it| it.withdrawn == Some(Withdrawal::Unheard))?;
    Some(format!(
        "no routes for {}, as neither etcd nor it was heard; they return when it is heard without a pause",
        Span(gone.since)
    ))
}

/// Records that are not used and shown: all of them are in the log.
const MOST_PASSED_OVER: usize = 8;

fn show_directory(
    f: &mut fmt::Formatter<'_>,
    directory: &DirectoryStatus,
    paint: Paint,
) -> fmt::Result {
    let DirectoryStatus { prefix, peers, revision, .. } = directory;
    let (style, state) = match directory.state {
        DirectoryState::Unasked => (UNSURE, "not heard of yet"),
        DirectoryState::Current => (GOOD, "current"),
        DirectoryState::Away => (BAD, "away"),
        DirectoryState::Old => (BAD, "has lost changes"),
    };
    let state = format!("{state} for {}", Span(directory.since));
    write!(f, "directory    {prefix}, {}", paint.paint(style, state))?;
    let force = if directory.state == DirectoryState::Current { "" } else { " in force" };
    write!(f, ", {peers} peers of revision {revision}{force}")?;
    match &directory.reason {
        Some(reason) => writeln!(f, ": {reason}")?,
        None => writeln!(f)?,
    }
    if let Some(why) = &directory.unsaved {
        writeln!(f, "not on disk  {why}")?;
    }
    for PassedOverStatus { record, reason } in directory.passed_over.iter().take(MOST_PASSED_OVER) {
        writeln!(f, "not used     {record}: {reason}")?;
    }
    if let Some(more) = directory.passed_over.len().checked_sub(MOST_PASSED_OVER + 1) {
        writeln!(f, "and {} more records that are not used", more + 1)?;
    }
    Ok(())
}

fn peer_row(peer: &PeerStatus) -> [Cell; 8] {
    let dash = || "-".to_owned();
    let session = peer.session.as_ref();
    let (state, from) = match (session, &peer.last_session) {
        (Some(it), _) => ((GOOD, format!("for {}", Span(it.since))), Some(it.remote)),
        (None, Some(it)) => ((BAD, format!("ended {} ago", Span(it.ended))), Some(it.remote)),
        (None, None) => ((BAD, "none".into()), None),
    };
    [
        (PLAIN, peer.name.clone()),
        state,
        (PLAIN, session.map_or_else(dash, |it| format!("{:.1} ms", it.quic.rtt))),
        (PLAIN, from.map_or_else(dash, |it| it.to_string())),
        (PLAIN, Bytes(peer.traffic.sent_bytes).to_string()),
        (PLAIN, Bytes(peer.traffic.received_bytes).to_string()),
        (PLAIN, peer.traffic.dropped.values().sum::<u64>().to_string()),
        (PLAIN, list(&peer.addresses)),
    ]
}

/// Text and its style.
pub(super) type Cell = (Style, String);

pub(super) fn head<const N: usize>(columns: [&str; N]) -> [Cell; N] {
    columns.map(|column| (HEAD, column.to_owned()))
}

/// Writes rows with their columns below each other.
pub(super) fn table<const N: usize>(
    f: &mut fmt::Formatter<'_>,
    rows: &[[Cell; N]],
    paint: Paint,
) -> fmt::Result {
    let width = |column: usize| rows.iter().map(|row| row[column].1.chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    for row in rows {
        for (column, (style, text)) in row.iter().enumerate() {
            let is_last = column + 1 == N;
            let room = if is_last { 0 } else { widths[column] + 2 - text.chars().count() };
            write!(f, "{}{:room$}", paint.paint(*style, text), "")?;
        }
        writeln!(f)?;
    }
    Ok(())
}

impl Display for SessionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (remote, software, since) = (self.remote, &self.software, Span(self.since));
        write!(f, "{remote} ({software}), session for {since}")
    }
}

impl Display for RecentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { loss_up, loss_down, rate_up, rate_down } = *self;
        let lost = |loss: Option<f64>| {
            loss.map_or_else(String::new, |loss| format!(", {:.1} % lost", 100.0 * loss))
        };
        let (up, down) = (Bits(rate_up), Bits(rate_down));
        write!(f, "{up} up{}; {down} down{}", lost(loss_up), lost(loss_down))
    }
}

impl Display for RemoteStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match (self.state, self.answered) {
            (RemoteState::InUse, _) => f.write_str(" in use"),
            (RemoteState::Reserve, Some(ago)) => {
                write!(f, " answered {} ago", Span(ago))?;
                self.rtt.map_or(Ok(()), |rtt| write!(f, ", {rtt:.1} ms"))
            }
            (RemoteState::Reserve, None) => f.write_str(" has not answered"),
            (RemoteState::Unused, _) => f.write_str(" unused"),
        }
    }
}

impl Display for BudgetStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { used, of, since, .. } = self;
        let percent = u128::from(*used) * 100 / u128::from((*of).max(1));
        write!(f, "{} of {} ({percent} %) since {since}", Bytes(*used), Bytes(*of))
    }
}

/// What is used of a link's budget, and what follows.
pub(super) fn show_budget(
    f: &mut fmt::Formatter<'_>,
    link: &str,
    budget: &BudgetStatus,
    paint: Paint,
) -> fmt::Result {
    let style = if budget.level == BudgetLevel::Within { PLAIN } else { UNSURE };
    writeln!(f, "budget       {link}: {}", paint.paint(style, budget))?;
    match (budget.level, budget.over) {
        (BudgetLevel::Reached, OverBudget::HoldBulk) => {
            writeln!(f, "             large transfers wait while {link} is in use")
        }
        (BudgetLevel::Reached, OverBudget::Stop) => writeln!(f, "             {link} is not used"),
        (BudgetLevel::Reached, OverBudget::Warn)
        | (BudgetLevel::Within | BudgetLevel::Warned, _) => Ok(()),
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
    if let Some(repairs) = repairs(traffic) {
        writeln!(f, "repaired     {repairs}")?;
    }
    if let Some(copies) = copies(traffic) {
        writeln!(f, "copies       {copies}")?;
    }
    if queued > 0 {
        writeln!(f, "queued       {}", Bytes(queued as u64))?;
    }
    dropped(f, traffic)
}

/// What became of packets that the network lost, if it lost any.
pub(super) fn repairs(traffic: &Snapshot) -> Option<String> {
    let Snapshot { repaired_packets, lost_packets, repeated_packets, resumed_packets, .. } =
        traffic;
    (repaired_packets + lost_packets + repeated_packets > 0).then(|| {
        format!(
            "{repaired_packets} missing packets, {lost_packets} were lost; \
             sent {repeated_packets} again, {resumed_packets} of them after a path or server died"
        )
    })
}

/// What went over standbys while the path in use was late, if anything did.
pub(super) fn copies(traffic: &Snapshot) -> Option<String> {
    let Snapshot { copied_packets, rescued_packets, .. } = traffic;
    (copied_packets + rescued_packets > 0).then(|| {
        format!(
            "{copied_packets} packets also sent over a standby; {rescued_packets} came over one first"
        )
    })
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

fn left_out(f: &mut fmt::Formatter<'_>, items: &[LeftOut]) -> fmt::Result {
    items.iter().try_for_each(|item| writeln!(f, "left out     {item}"))
}

fn list(items: &[impl Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A rate in bits per second, with a unit of powers of ten.
pub(super) struct Bits(pub(super) u64);

impl Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])
    }
}

/// A duration in seconds, to the millisecond below ten seconds and to the second above.
pub(super) struct Span(pub(super) f64);

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_counts_are_rounded_to_a_unit() {
        let shown: Vec<_> =
            [0, 999, 1000, 1_499_999, 12_000_000_000].map(|n| Bytes(n).to_string()).into();
        assert_eq!(shown, ["0 B", "999 B", "1.0 kB", "1.5 MB", "12.0 GB"]);
    }

    #[test]
    fn the_path_in_use_is_described_each_way() {
        let recent =
            RecentStatus { loss_up: Some(0.3), loss_down: None, rate_up: 2_200_000, rate_down: 0 };
        assert_eq!(recent.to_string(), "2.2 Mbit/s up, 30.0 % lost; 0 bit/s down");
    }

    #[test]
    fn repairs_and_copies_are_told_of_once_there_are_any() {
        let traffic = Snapshot::default();
        assert_eq!((repairs(&traffic), copies(&traffic)), (None, None));
        let traffic =
            Snapshot { resumed_packets: 2, repeated_packets: 3, copied_packets: 5, ..traffic };
        let expected =
            "0 missing packets, 0 were lost; sent 3 again, 2 of them after a path or server died";
        assert_eq!(repairs(&traffic).as_deref(), Some(expected));
        let expected = "5 packets also sent over a standby; 0 came over one first";
        assert_eq!(copies(&traffic).as_deref(), Some(expected));
    }

    #[test]
    fn a_peer_that_has_left_is_shown_with_when_and_where_it_was() {
        let row = |last: serde_json::Value| {
            let traffic = serde_json::to_value(Snapshot::default()).unwrap();
            let peer = serde_json::json!({
                "name": "laptop", "public-key": "", "addresses": ["10.66.0.2"], "session": null,
                "last-session": last, "queued-bytes": 0, "queue-delay": 0.0, "traffic": traffic,
            });
            let row = peer_row(&serde_json::from_value(peer).unwrap());
            row.map(|(_, text)| text)[1..4].to_vec()
        };
        let last = serde_json::json!({ "ended": 7440.2, "remote": "198.51.100.7:22102" });
        assert_eq!(row(last), ["ended 2h 4m ago", "-", "198.51.100.7:22102"]);
        assert_eq!(row(serde_json::Value::Null), ["none", "-", "-"]);
    }

    #[test]
    fn durations_are_printed_with_every_unit() {
        let shown: Vec<_> = [0.25, 3.001, 75.4, 90_061.0].map(|s| Span(s).to_string()).into();
        assert_eq!(shown, ["250ms", "3s 1ms", "1m 15s", "1day 1h 1m 1s"]);
    }
}
