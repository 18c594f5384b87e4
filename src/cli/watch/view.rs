//! The picture.

use std::io::{self, Write as _};

use anyhow::Result;
use ratatui::{
    Frame, Terminal,
    backend::TestBackend,
    layout::{Constraint, Layout, Rect},
    style::{Color, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, Paragraph, Sparkline},
};

use super::history::{Curve, History};
use crate::{
    cli::text::{Bits, Bytes, Span as Time, copies, repairs},
    daemon::status::{
        ClientState, ClientStatus, PathStatus, PeerStatus, Role, ServerStatus, SwitchStatus,
    },
    path::Condition,
};

/// Lines of a path or a peer.
const ROW: u16 = 2;
/// Columns of its words; the rest is for its curve.
const WORDS: u16 = 62;
/// The picture as plain text, without a terminal.
const WIDTH: u16 = 100;
const HEIGHT: u16 = 24;

/// Draws what is known.
pub(super) fn draw(frame: &mut Frame<'_>, name: &str, history: &History, error: Option<&str>) {
    let [body, foot] =
        Layout::vertical([Constraint::Min(0), Constraint::Length(1)]).areas(frame.area());
    match history.status.as_ref().map(|status| &status.role) {
        Some(Role::Client(client)) => draw_client(frame, body, name, client, history, error),
        Some(Role::Server(server)) => draw_server(frame, body, name, server, history, error),
        None => {}
    }
    let foot_text = match error {
        Some(error) => Line::from(error.to_owned()).red(),
        None => Line::from("q quits").dark_gray(),
    };
    frame.render_widget(Paragraph::new(foot_text), foot);
}

/// Prints one picture.
pub(super) fn print(name: &str, history: &History) -> Result<()> {
    let mut terminal = Terminal::new(TestBackend::new(WIDTH, HEIGHT))?;
    terminal.draw(|frame| draw(frame, name, history, None))?;
    let buffer = terminal.backend().buffer();
    let mut stdout = io::stdout().lock();
    for row in buffer.content().chunks(usize::from(WIDTH)) {
        let line: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
        writeln!(stdout, "{}", line.trim_end())?;
    }
    Ok(())
}

fn draw_client(
    frame: &mut Frame<'_>,
    area: Rect,
    name: &str,
    client: &ClientStatus,
    history: &History,
    error: Option<&str>,
) {
    let paths = (client.paths.len() as u16 * ROW).max(1) + 2;
    let repaired = repairs(&client.traffic).map(|repairs| format!("repaired {repairs}"));
    let servers = client.servers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let servers = Some(format!("servers {servers}")).filter(|_| client.servers.len() > 1);
    let budgets = client.links.iter();
    let budgets = budgets.filter_map(|it| Some(format!("{}: {}", it.link, it.budget.as_ref()?)));
    let told = [servers, repaired, copies(&client.traffic)].into_iter().flatten().chain(budgets);
    let told: Vec<_> = told.map(|words| Line::from(words).dark_gray()).collect();
    let [head, paths, traffic, switches] = Layout::vertical([
        Constraint::Length(2 + told.len() as u16),
        Constraint::Length(paths),
        Constraint::Length(6),
        Constraint::Min(0),
    ])
    .areas(area);
    let state = match (client.state, &client.portal) {
        _ if error.is_some() => gone(),
        (ClientState::Connected, _) => match &client.home {
            Some(home) => Span::from(format!("connected at home, {}", home.state)).green(),
            None => Span::from("connected").green(),
        },
        (ClientState::Paused, _) => Span::from("paused").yellow(),
        (_, Some(link)) => Span::from(format!("captive portal on {link}")).yellow(),
        (ClientState::Connecting, _) => Span::from("connecting").yellow(),
        (ClientState::Waiting, _) => Span::from("waiting for a network").red(),
    };
    let addresses: Vec<_> = client.addresses.iter().map(ToString::to_string).collect();
    let mut lines = vec![
        Line::from(vec![Span::from(format!("{name}  ")).bold(), state]),
        Line::from(format!(
            "{} {}  up {}  session {}",
            client.interface,
            addresses.join(" "),
            Time(client.uptime),
            client.session.as_ref().map_or("none".into(), |it| Time(it.since).to_string())
        )),
    ];
    lines.extend(told);
    frame.render_widget(Paragraph::new(lines), head);
    draw_paths(frame, paths, &client.paths, history);
    let queue =
        format!(" queue {}, {:.1} ms ", Bytes(client.queued_bytes as u64), client.queue_delay);
    draw_traffic(frame, traffic, history, &queue);
    let line = |it: &SwitchStatus| Line::from(it.line(format_args!(" {} ago", Time(it.ago))));
    let lines = client.switches.iter().rev().map(line);
    let block = Block::bordered().title(" last switches ").border_style(Style::new().dark_gray());
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), switches);
}

/// The state of a daemon that does not answer any more.
fn gone() -> Span<'static> {
    Span::from("does not answer; this is how it was").red()
}

fn draw_paths(frame: &mut Frame<'_>, area: Rect, paths: &[PathStatus], history: &History) {
    let block = Block::bordered().title(" paths ").border_style(Style::new().dark_gray());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    if paths.is_empty() {
        return frame.render_widget(Paragraph::new("none"), inner);
    }
    let rows = Layout::vertical(paths.iter().map(|_| Constraint::Length(ROW))).split(inner);
    for (path, row) in paths.iter().zip(rows.iter()) {
        let [words, rtt, loss] = Layout::horizontal([
            Constraint::Length(WORDS.min(row.width / 2)),
            Constraint::Fill(3),
            Constraint::Fill(1),
        ])
        .areas(*row);
        let colour = match path.state {
            Condition::Active => Color::Green,
            Condition::Standby => Color::Cyan,
            Condition::Suspect | Condition::Probing | Condition::Waiting => Color::Yellow,
            Condition::Failed => Color::Red,
        };
        let rtt_words = path.rtt.map_or("-".into(), |rtt| format!("{rtt:.1} ms"));
        let percent = |loss: Option<f64>| {
            loss.map_or_else(|| "-".into(), |loss| format!("{:.1}", loss * 100.0))
        };
        let loss_words = match (path.recent, path.loss) {
            (Some(recent), _) => {
                format!(", ↑ {} ↓ {} % lost", percent(recent.loss_up), percent(recent.loss_down))
            }
            (None, loss @ Some(_)) => format!(", {} % lost", percent(loss)),
            (None, None) => String::new(),
        };
        let lines = vec![
            Line::from(vec![
                Span::from(format!("{:10}", path.link)).bold(),
                Span::from(format!("{} ", path.state)).fg(colour),
                Span::from(format!("{rtt_words}{loss_words}")),
            ]),
            Line::from(format!("  {}: {}", path.transport.mark(path.server), path.why)).dark_gray(),
        ];
        frame.render_widget(Paragraph::new(lines), words);
        let name = format!("{} {}", path.link, path.transport.mark(path.server));
        draw_curve(frame, rtt, history.rtt.get(&name), colour);
        draw_curve(frame, loss, history.loss.get(&name), Color::Red);
    }
}

fn draw_curve(frame: &mut Frame<'_>, area: Rect, curve: Option<&Curve>, colour: Color) {
    let Some(curve) = curve else { return };
    let [_, area] = Layout::horizontal([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    let points = curve.iter().rev().take(usize::from(area.width)).rev().copied();
    frame.render_widget(Sparkline::default().data(points.collect::<Vec<_>>()).fg(colour), area);
}

fn draw_traffic(frame: &mut Frame<'_>, area: Rect, history: &History, queue: &str) {
    let halves = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).areas::<2>(area);
    let curves = [("sent", &history.sent, queue), ("received", &history.received, "")];
    for ((word, curve, more), half) in curves.into_iter().zip(halves) {
        let rate = Bits(curve.back().copied().unwrap_or_default());
        let block = Block::bordered()
            .title(format!(" {word} {rate} "))
            .title_bottom(more.to_owned())
            .border_style(Style::new().dark_gray());
        let inner = block.inner(half);
        frame.render_widget(block, half);
        draw_curve(frame, inner, Some(curve), Color::Blue);
    }
}

fn draw_server(
    frame: &mut Frame<'_>,
    area: Rect,
    name: &str,
    server: &ServerStatus,
    history: &History,
    error: Option<&str>,
) {
    let [head, traffic, peers] =
        Layout::vertical([Constraint::Length(2), Constraint::Length(6), Constraint::Min(0)])
            .areas(area);
    let connected = server.peers.iter().filter(|peer| peer.session.is_some()).count();
    let state = match error {
        Some(_) => gone(),
        None => {
            Span::from(format!("{connected} of {} peers connected", server.peers.len())).green()
        }
    };
    let lines = vec![
        Line::from(vec![Span::from(format!("{name}  ")).bold(), state]),
        Line::from(format!(
            "{} listening on {}  up {}",
            server.interface,
            server.listening(),
            Time(server.uptime)
        )),
    ];
    frame.render_widget(Paragraph::new(lines), head);
    draw_traffic(frame, traffic, history, "");
    let block = Block::bordered().title(" peers ").border_style(Style::new().dark_gray());
    let inner = block.inner(peers);
    frame.render_widget(block, peers);
    // Those who are here first.
    let mut shown: Vec<&PeerStatus> = server.peers.iter().collect();
    shown.sort_by_key(|peer| peer.session.is_none());
    shown.truncate(usize::from(inner.height));
    let rows = Layout::vertical(shown.iter().map(|_| Constraint::Length(1))).split(inner);
    for (peer, row) in shown.into_iter().zip(rows.iter()) {
        let [words, curve] =
            Layout::horizontal([Constraint::Length(WORDS), Constraint::Min(0)]).areas(*row);
        let line = match &peer.session {
            Some(session) => Line::from(vec![
                Span::from(format!("{:12}", peer.name)).bold(),
                Span::from(format!("{} {:.1} ms", session.remote, session.quic.rtt)).green(),
                Span::from(format!(
                    "  sent {} received {}",
                    Bytes(peer.traffic.sent_bytes),
                    Bytes(peer.traffic.received_bytes)
                )),
            ]),
            None => {
                let since = peer.last_session.as_ref();
                let since =
                    since.map(|it| format!(" for {}, was at {}", Time(it.ended), it.remote));
                let since = since.unwrap_or_default();
                Line::from(format!("{:12}not connected{since}", peer.name)).dark_gray()
            }
        };
        frame.render_widget(Paragraph::new(line), words);
        draw_curve(frame, curve, history.rtt.get(&peer.name), Color::Green);
    }
}
