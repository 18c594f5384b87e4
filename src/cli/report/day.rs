//! Recorded events, taken together.

use std::{
    collections::BTreeMap,
    fmt,
    io::{self, BufRead, Read as _},
    ops::Range,
    time::{Duration, SystemTime},
};

use serde::Deserialize;

use super::timeline::Timeline;
use crate::{
    daemon::events::Event,
    path::Condition,
    wire::foreign::{LIMIT, printable},
};

/// Bytes of a line that are read at once. An event has some hundreds.
const LONGEST_LINE: u64 = 64 * 1024;

/// One line.
#[derive(Deserialize)]
struct Line {
    #[serde(deserialize_with = "humantime_serde::deserialize")]
    time: SystemTime,
    #[serde(flatten)]
    event: Event,
}

/// What carried the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// A link, with its transport if that is not UDP.
    Over(String),
    /// There was no connection.
    None,
    /// A person had paused the tunnel.
    Paused,
    /// No event tells.
    Unknown,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Over(link) => f.write_str(link),
            Self::None => f.write_str("no connection"),
            Self::Paused => f.write_str("paused"),
            Self::Unknown => f.write_str("not known"),
        }
    }
}

/// A change of path or server.
#[derive(Debug, PartialEq)]
pub(super) struct Moved {
    pub(super) at: SystemTime,
    pub(super) from: Option<String>,
    pub(super) to: String,
    pub(super) gap: Duration,
    pub(super) why: String,
}

/// What happened from the first event to the last.
#[derive(Debug)]
pub(super) struct Day {
    pub(super) begin: SystemTime,
    pub(super) end: SystemTime,
    /// What carried the tunnel, and when.
    pub(super) spans: Vec<(Range<SystemTime>, Way)>,
    pub(super) moves: Vec<Moved>,
    /// When there was no connection, for how long (zero: nothing tells), and why.
    pub(super) outages: Vec<(SystemTime, Duration, String)>,
    /// Lines that could not be understood.
    pub(super) skipped: usize,
    /// Events that the record lacks, as it says itself.
    pub(super) missed: u64,
    /// The link that a drill cuts.
    cut: Option<String>,
    timeline: Timeline,
}

impl Day {
    /// Reads events, one a line; those before `since` only say how things stood then.
    pub(super) fn read(mut lines: impl BufRead, since: Option<SystemTime>) -> io::Result<Self> {
        let mut day = Self {
            begin: SystemTime::UNIX_EPOCH,
            end: SystemTime::UNIX_EPOCH,
            spans: Vec::new(),
            moves: Vec::new(),
            outages: Vec::new(),
            skipped: 0,
            missed: 0,
            cut: None,
            timeline: Timeline::default(),
        };
        let mut line = Vec::new();
        while lines.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? > 0 {
            let line = std::mem::take(&mut line);
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match serde_json::from_slice::<Line>(&line) {
                Ok(Line { time, event }) => day.take(time, event),
                Err(_) => day.skipped += 1,
            }
        }
        day.finish(since);
        Ok(day)
    }

    pub(super) fn length(&self) -> Duration {
        self.end.duration_since(self.begin).unwrap_or_default()
    }

    /// How long each way was in use, the longest first.
    pub(super) fn times(&self) -> Vec<(&Way, Duration)> {
        let mut times = BTreeMap::<_, Duration>::new();
        for (span, way) in &self.spans {
            *times.entry(way).or_default() += length(span);
        }
        let mut times: Vec<_> = times.into_iter().filter(|(_, time)| !time.is_zero()).collect();
        times.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        times
    }

    /// The gaps of all moves for one reason, the commonest first.
    pub(super) fn by_reason(&self) -> Vec<(&str, Vec<Duration>)> {
        let mut gaps = BTreeMap::<_, Vec<_>>::new();
        for moved in &self.moves {
            gaps.entry(moved.why.as_str()).or_default().push(moved.gap);
        }
        let mut gaps: Vec<_> = gaps.into_iter().collect();
        gaps.sort_by_key(|(_, gaps)| std::cmp::Reverse(gaps.len()));
        gaps
    }

    fn take(&mut self, time: SystemTime, event: Event) {
        let time = self.timeline.pass(time);
        if self.spans.is_empty() {
            (self.begin, self.end) = (time, time);
            self.spans.push((time..time, Way::Unknown));
        }
        let before = std::mem::replace(&mut self.end, time);
        match event {
            // The events before it were another daemon's, and the record may have been off.
            Event::Listening => {
                self.cut = None;
                self.enter(time, Way::Unknown);
            }
            Event::Missed { count } => {
                self.missed = self.missed.saturating_add(count);
                self.cut = None;
                self.enter(before, Way::Unknown);
                // What a later event says of the time before it holds from here on, and not for that of the missing ones.
                self.begin_span(time, Way::Unknown);
            }
            Event::Connected { link, .. } => self.enter(time, Way::Over(link)),
            // Who pauses has no connection to lose.
            Event::Paused { .. } => self.enter(time, Way::Paused),
            Event::Resumed => self.enter(time, Way::None),
            Event::Disconnected { reason } => {
                self.outages.push((time, Duration::ZERO, reason));
                self.enter(time, Way::None);
            }
            // It may tell how things stand, or be the beginning of a change, of which the switch tells more.
            Event::Path { link, state: Some(Condition::Active), .. } if self.is_unknown() => {
                self.enter(time, Way::Over(link));
            }
            Event::Cut { link, .. } => self.cut = Some(link),
            Event::CutEnded { .. } => self.cut = None,
            Event::Switched { from, from_transport, to, to_transport, reason, gap } => {
                let is_drill = from.is_some() && from == self.cut;
                let why = if is_drill { format!("{reason}, in a drill") } else { reason };
                let from = from.map(|from| from_transport.mark(&from));
                let to = to_transport.mark(&to);
                if let Some(from) = &from {
                    self.know(from, &to);
                }
                self.enter(time, Way::Over(to.clone()));
                self.moves.push(Moved { at: time, from, to, gap: milliseconds(gap), why });
            }
            Event::ServerChanged { from, to, reason, gap } => {
                let (from, why) = (Some(from), format!("another server: {reason}"));
                self.moves.push(Moved { at: time, from, to, gap: milliseconds(gap), why });
            }
            _ => {}
        }
    }

    fn is_unknown(&self) -> bool {
        self.spans.last().is_some_and(|(_, way)| *way == Way::Unknown)
    }

    /// What was in use before the last change: of that no event told if it was there from the beginning.
    fn know(&mut self, from: &str, to: &str) {
        let mut spans = self.spans.iter_mut().rev();
        let last = spans.next().filter(|(_, way)| match way {
            Way::Unknown => true,
            // So far somebody told of one end of the change alone.
            Way::Over(link) => link == from || link == to,
            Way::None | Way::Paused => false,
        });
        let Some((_, last)) = last else { return };
        if *last == Way::Unknown {
            *last = Way::Over(from.into());
        } else if let Some((_, before @ Way::Unknown)) = spans.next() {
            *before = Way::Over(from.into());
        }
    }

    fn enter(&mut self, time: SystemTime, way: Way) {
        match self.spans.last_mut() {
            Some((span, before)) if *before == way => span.end = time,
            _ => self.begin_span(time, way),
        }
    }

    fn begin_span(&mut self, time: SystemTime, way: Way) {
        if let Some((span, _)) = self.spans.last_mut() {
            span.end = time;
        }
        self.spans.push((time..time, way));
    }

    fn finish(&mut self, since: Option<SystemTime>) {
        if let Some((span, _)) = self.spans.last_mut() {
            span.end = self.end;
        }
        self.straighten();
        if let Some(since) = since {
            self.begin = self.begin.max(since.min(self.end));
            let begin = self.begin;
            for (span, _) in &mut self.spans {
                *span = span.start.max(begin)..span.end.max(begin);
            }
            self.moves.retain(|moved| moved.at >= begin);
            self.outages.retain(|(at, ..)| *at >= begin);
        }
        self.spans.retain(|(span, _)| span.start < span.end);
        for (at, time, _) in &mut self.outages {
            let span = self.spans.iter().find(|(span, way)| span.contains(at) && *way == Way::None);
            *time = span.map_or(Duration::ZERO, |(span, _)| {
                span.end.duration_since(*at).unwrap_or_default()
            });
        }
        self.make_printable();
    }

    /// What the clock was wrong by has not passed.
    fn straighten(&mut self) {
        let when = self.timeline.straighten();
        let spans = self.spans.iter_mut().flat_map(|(span, _)| [&mut span.start, &mut span.end]);
        let moves = self.moves.iter_mut().map(|it| &mut it.at);
        let outages = self.outages.iter_mut().map(|(at, ..)| at);
        let ends = [&mut self.begin, &mut self.end];
        spans.chain(moves).chain(outages).chain(ends).for_each(|at| *at = when(*at));
    }

    /// A record may come from anywhere.
    fn make_printable(&mut self) {
        let ways = self.spans.iter_mut().filter_map(|(_, way)| match way {
            Way::Over(link) => Some(link),
            Way::None | Way::Paused | Way::Unknown => None,
        });
        let moves = self.moves.iter_mut();
        let moves = moves.flat_map(|it| it.from.iter_mut().chain([&mut it.to, &mut it.why]));
        let outages = self.outages.iter_mut().map(|(.., why)| why);
        for text in ways.chain(moves).chain(outages) {
            *text = printable(text, LIMIT);
        }
    }
}

fn length(span: &Range<SystemTime>) -> Duration {
    span.end.duration_since(span.start).unwrap_or_default()
}

/// A recorded gap, which may be any number.
fn milliseconds(gap: f64) -> Duration {
    Duration::try_from_secs_f64(gap / 1e3).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: &str = r#"
{"schema":1,"time":"2026-11-23T08:00:00.000Z","event":"listening","summary":"listening"}
{"schema":1,"time":"2026-11-23T09:00:00.000Z","event":"path","link":"wwan0","server":"203.0.113.5:4433","state":"active","why":"","summary":"…"}
{"schema":1,"time":"2026-11-23T09:00:00.000Z","event":"switched","from":"wlan0","from-transport":"udp","to":"wwan0","to-transport":"udp","reason":"the old path is gone","gap":63.1,"summary":"…"}
{"schema":1,"time":"2026-11-23T09:00:01.000Z","event":"path","link":"wwan0","server":"203.0.113.5:4433","state":"active","why":"","summary":"…"}
this is no event
{"schema":9,"time":"2026-11-23T09:10:00.000Z","event":"of-a-later-version","summary":"…"}
{"schema":1,"time":"2026-11-23T09:30:00.000Z","event":"disconnected","reason":"no path","summary":"…"}
{"schema":1,"time":"2026-11-23T09:40:00.000Z","event":"connected","link":"wlan0","server":"203.0.113.5:4433","rtt":12.0,"summary":"…"}
{"schema":1,"time":"2026-11-23T09:49:59.000Z","event":"cut","link":"wlan0","seconds":3,"summary":"…"}
{"schema":1,"time":"2026-11-23T09:50:00.000Z","event":"switched","from":"wlan0","from-transport":"udp","to":"wlan0","to-transport":"tcp","reason":"the old path was silent","gap":745.0,"summary":"…"}
{"schema":1,"time":"2026-11-23T10:00:00.000Z","event":"reloaded","restart-needed":[],"summary":"…"}
"#;

    fn at(time: &str) -> SystemTime {
        humantime::parse_rfc3339(&format!("2026-11-23T{time}:00Z")).unwrap()
    }

    fn minutes(minutes: u64) -> Duration {
        Duration::from_secs(60 * minutes)
    }

    fn times(day: &Day) -> Vec<(String, Duration)> {
        day.times().into_iter().map(|(way, time)| (way.to_string(), time)).collect()
    }

    #[test]
    fn a_day_is_divided_among_the_links() {
        let day = Day::read(DAY.as_bytes(), None).unwrap();
        assert_eq!((day.begin, day.end, day.skipped), (at("08:00"), at("10:00"), 2));
        let expected = [
            ("wlan0", minutes(70)),
            ("wwan0", minutes(30)),
            ("no connection", minutes(10)),
            ("wlan0 (tcp)", minutes(10)),
        ];
        let mut told = times(&day);
        told[2..].sort();
        assert_eq!(
            told,
            expected.map(|(way, time)| (way.to_owned(), time)),
            "the first switch tells what was before it"
        );
        assert_eq!(day.outages, [(at("09:30"), minutes(10), "no path".to_owned())]);
        let gaps = [("the old path is gone", 63), ("the old path was silent, in a drill", 745)];
        let by_reason = day.by_reason();
        let told = by_reason.iter().map(|(why, gaps)| (*why, gaps[0].as_millis()));
        assert_eq!(told.collect::<Vec<_>>(), gaps);
    }

    #[test]
    fn what_was_before_the_wanted_time_only_tells_how_things_stood() {
        let day = Day::read(DAY.as_bytes(), Some(at("09:20"))).unwrap();
        assert_eq!((day.begin, day.length()), (at("09:20"), minutes(40)));
        assert_eq!(day.moves.len(), 1);
        assert!(times(&day).contains(&("wwan0".into(), minutes(10))), "{:?}", times(&day));
        let none = Day::read(DAY.as_bytes(), Some(at("11:00"))).unwrap();
        assert_eq!(none.length(), Duration::ZERO);
    }

    #[test]
    fn between_two_daemons_nothing_is_known() {
        let text = "\
{\"time\":\"2026-11-23T08:00:00Z\",\"event\":\"connected\",\"link\":\"wlan0\",\"server\":\"203.0.113.5:4433\",\"rtt\":1.0}
{\"time\":\"2026-11-23T09:00:00Z\",\"event\":\"listening\"}
{\"time\":\"2026-11-23T08:30:00Z\",\"event\":\"drain-cancelled\"}
{\"time\":\"2026-11-23T09:30:00Z\",\"event\":\"drain-cancelled\"}
";
        let day = Day::read(text.as_bytes(), None).unwrap();
        let expected = [("not known".to_owned(), minutes(60)), ("wlan0".to_owned(), minutes(30))];
        assert_eq!((times(&day), day.skipped), (expected.into(), 0));
    }

    #[test]
    fn where_events_are_missing_it_is_not_known_what_was_in_use() {
        let text = "\
{\"time\":\"2026-11-23T08:00:00Z\",\"event\":\"connected\",\"link\":\"wlan0\",\"server\":\"203.0.113.5:4433\",\"rtt\":1.0}
{\"time\":\"2026-11-23T08:30:00Z\",\"event\":\"disconnected\",\"reason\":\"no path\"}
{\"time\":\"2026-11-23T09:00:00Z\",\"event\":\"missed\",\"count\":7}
{\"time\":\"2026-11-23T09:10:00Z\",\"event\":\"switched\",\"from\":\"wwan0\",\"from-transport\":\"udp\",\"to\":\"wlan0\",\"to-transport\":\"udp\",\"reason\":\"a better path\",\"gap\":0.0}
{\"time\":\"2026-11-23T09:30:00Z\",\"event\":\"missed\",\"count\":18446744073709551615}
{\"time\":\"2026-11-23T09:45:00Z\",\"event\":\"drain-cancelled\"}
";
        let day = Day::read(text.as_bytes(), None).unwrap();
        let known = [("not known", 65), ("wlan0", 30), ("wwan0", 10)];
        assert_eq!(times(&day), known.map(|(way, time)| (way.to_owned(), minutes(time))));
        assert_eq!(day.outages, [(at("08:30"), Duration::ZERO, "no path".to_owned())]);
        assert_eq!((day.missed, day.skipped), (u64::MAX, 0));
    }

    #[test]
    fn a_clock_that_was_ahead_for_a_while_flattens_nothing() {
        let ahead = DAY.replace("2026-11-23T09:30", "2027-02-01T09:30");
        let day = Day::read(ahead.as_bytes(), None).unwrap();
        assert_eq!((day.begin, day.length()), (at("08:00"), minutes(120)));
        let [(outage, ..)] = &day.outages[..] else { panic!("{:?}", day.outages) };
        assert!((at("09:00")..=at("09:40")).contains(outage), "{:?}", day.outages);
        assert_eq!(day.times().iter().map(|(_, time)| *time).sum::<Duration>(), minutes(120));
    }

    #[test]
    fn a_pause_is_neither_use_nor_an_outage() {
        let text = "\
{\"time\":\"2026-11-23T08:00:00Z\",\"event\":\"connected\",\"link\":\"wlan0\",\"server\":\"203.0.113.5:4433\",\"rtt\":1.0}
{\"time\":\"2026-11-23T09:00:00Z\",\"event\":\"paused\",\"seconds\":null}
{\"time\":\"2026-11-23T11:00:00Z\",\"event\":\"resumed\"}
{\"time\":\"2026-11-23T11:10:00Z\",\"event\":\"connected\",\"link\":\"wlan0\",\"server\":\"203.0.113.5:4433\",\"rtt\":1.0}
{\"time\":\"2026-11-23T11:30:00Z\",\"event\":\"drain-cancelled\"}
";
        let day = Day::read(text.as_bytes(), None).unwrap();
        let expected = [("paused", 120), ("wlan0", 80), ("no connection", 10)];
        assert_eq!(times(&day), expected.map(|(way, time)| (way.to_owned(), minutes(time))));
        assert!(day.outages.is_empty());
    }

    #[test]
    fn a_hostile_record_neither_moves_the_cursor_nor_fills_the_memory() {
        let text = format!(
            "{}\n{{\"time\":\"2026-11-23T08:00:00Z\",\"event\":\"switched\",\"from\":\"\\u001b[2J\",\
             \"from-transport\":\"udp\",\"to\":\"{}\",\"to-transport\":\"tcp\",\"reason\":\"\\u009b1A\",\
             \"gap\":1e300}}\n{{\"time\":\"2026-11-23T09:00:00Z\",\"event\":\"disconnected\",\
             \"reason\":\"\\u202e\\u0000\"}}\n{{\"time\":\"9999-12-31T23:59:59Z\",\"event\":\"listening\"}}",
            "x".repeat(200_000),
            "w".repeat(10_000),
        );
        let day = Day::read(text.as_bytes(), None).unwrap();
        let [Moved { from: Some(from), to, gap, why, .. }] = &day.moves[..] else {
            panic!("{:?}", day.moves)
        };
        assert_eq!((from.as_str(), why.as_str()), ("\\u{1b}[2J", "\\u{9b}1A"));
        assert_eq!((to.chars().count(), *gap), (LIMIT, Duration::ZERO));
        assert_eq!(day.outages[0].2, "\\u{202e}\\0");
        let [(name, _)] = &times(&day)[1..] else { panic!("{:?}", times(&day)) };
        assert!(name.starts_with("www") && name.chars().count() == LIMIT, "{name}");
    }

    #[test]
    fn no_events_are_a_day_without_length() {
        let day = Day::read(b"\n\xff\n".as_slice(), None).unwrap();
        assert_eq!((day.length(), day.skipped), (Duration::ZERO, 1));
    }
}
