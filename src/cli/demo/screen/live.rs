//! The show as one screen of a terminal, drawn again several times a second.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use terminal_size::terminal_size;

use super::{Moment, Screen, colour, milliseconds};
use crate::cli::{
    demo::{
        script::{Event, Script},
        session::{Played, line},
    },
    paint::{BOLD, DIM, GREEN, YELLOW},
    record::Record,
};

/// The laptop's links, each with a lane of its own.
const LINKS: [&str; 2] = ["wifi0", "lte0"];
/// Columns and rows, if the terminal does not say, and the most that are used.
const SIZE: (usize, usize) = (80, 24);
/// The columns of a line that a lane leaves free.
const BESIDE_LANE: usize = 9;

impl Screen<'_> {
    /// Draws the moment over the one before.
    pub(super) fn draw(&mut self, moment: &Moment<'_>) -> io::Result<()> {
        let frame = self.frame(moment, size());
        self.replace(&frame)
    }

    /// Draws what happened over everything else.
    pub(super) fn draw_timeline(&mut self, played: &Played) -> io::Result<()> {
        let (width, _) = size();
        let mut lines = vec![self.paint(BOLD, "roamd demo"), String::new()];
        for (event, stall) in played.acts() {
            lines.push(self.act(event, stall, width));
        }
        self.replace(&lines)
    }

    fn frame(&self, moment: &Moment<'_>, (width, height): (usize, usize)) -> Vec<String> {
        let Moment { start, at, script, tally, .. } = *moment;
        let now = at.saturating_duration_since(start).min(script.length);
        let clock = format!("{} of {} s", now.as_secs(), script.length.as_secs());
        let title = "roamd demo";
        let gap = " ".repeat(width.saturating_sub(title.len() + clock.len()));
        let mut lines = vec![
            format!("{}{gap}{}", self.paint(BOLD, title), self.paint(DIM, &clock)),
            self.paint(DIM, &cut("a laptop with two networks, and a tunnel to a server", width)),
            String::new(),
        ];
        for link in LINKS {
            let cells = lane(link, moment, width.saturating_sub(BESIDE_LANE));
            let drawn: String = cells.iter().map(|cell| self.cell(*cell)).collect();
            lines.push(format!(" {link:<6} {drawn}"));
        }
        let act = script.events.iter().rfind(|event| event.at <= now);
        let act = act.map_or("both networks work", |event| event.title);
        let number = |number: usize| number.checked_sub(1).map(line).unwrap_or_default();
        let path = moment.path().unwrap_or("no network");
        let stall = moment.stall();
        let echo = moment.echo().map_or_else(|| "none".into(), milliseconds);
        lines.extend([
            String::new(),
            self.paint(YELLOW, &cut(&format!("▸ {act}"), width)),
            String::new(),
            cut(&format!(" typed   {}", number(tally.typed())), width),
            cut(&format!(" echoed  {}", number(tally.echoed())), width),
            format!(" over {path}, echo {echo}"),
            format!(" longest stall {}", self.paint(colour(stall), &milliseconds(stall))),
            String::new(),
        ]);
        // The act under way is shown above.
        let past = script.events.iter().filter(|event| event.at <= now).count().saturating_sub(1);
        let room = height.saturating_sub(lines.len() + 1);
        for (number, event) in
            script.events.iter().enumerate().take(past).skip(past.saturating_sub(room))
        {
            let next = script.events.get(number + 1).map_or(at, |next| start + next.at);
            let stall = tally.stall_between(start + event.at, next);
            lines.push(self.act(event, stall, width));
        }
        lines
    }

    fn act(&self, event: &Event, stall: Duration, width: usize) -> String {
        let cost = if event.offline { "no network".into() } else { milliseconds(stall) };
        let room = width.saturating_sub(cost.chars().count() + 8);
        let title = cut(event.title, room);
        let style = if event.offline { DIM } else { colour(stall) };
        let at = self.paint(DIM, &format!("{:>3} s", event.at.as_secs()));
        format!("{at}  {title:<room$} {}", self.paint(style, &cost))
    }

    fn cell(&self, cell: Cell) -> String {
        match cell {
            Cell::InUse => self.paint(GREEN, "━"),
            Cell::Works => self.paint(DIM, "─"),
            Cell::Fails => " ".into(),
            Cell::Now => self.paint(BOLD, "●"),
            Cell::Later => self.paint(DIM, "·"),
        }
    }

    /// Writes lines in place of those that were drawn before.
    fn replace(&mut self, lines: &[String]) -> io::Result<()> {
        let mut text = match self.live.replace(0) {
            None | Some(0) => String::new(),
            Some(drawn) => format!("\x1b[{drawn}A\r"),
        };
        for line in lines {
            text.push_str(line);
            text.push_str("\x1b[K\n");
        }
        text.push_str("\x1b[J");
        self.live = Some(lines.len());
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }
}

/// A piece of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cell {
    InUse,
    Works,
    Fails,
    Now,
    Later,
}

/// What a link was like from the beginning to the end of the show, in so many pieces.
fn lane(link: &str, moment: &Moment<'_>, width: usize) -> Vec<Cell> {
    let Moment { start, at, script: Script { length, .. }, record: Record { samples, .. }, .. } =
        *moment;
    let width = width.min(length.as_secs() as usize).max(1);
    let place = |since: Duration| {
        let share = since.as_secs_f64() / length.as_secs_f64().max(1.0);
        ((share * width as f64) as usize).min(width - 1)
    };
    let now = place(at.saturating_duration_since(start));
    let mut cells = vec![Cell::Later; width];
    cells[..now].fill(Cell::Fails);
    for sample in samples {
        let cell = &mut cells[place(sample.at.saturating_duration_since(start))];
        if sample.link.as_deref() == Some(link) {
            *cell = Cell::InUse;
        } else if sample.works(link) && *cell != Cell::InUse {
            *cell = Cell::Works;
        }
    }
    cells[now] = Cell::Now;
    cells
}

/// As much of the words as fits.
pub(super) fn cut(words: &str, width: usize) -> String {
    words.chars().take(width).collect()
}

/// Columns and rows of the terminal.
pub(super) fn size() -> (usize, usize) {
    let (width, height) = SIZE;
    terminal_size().map_or(SIZE, |(columns, rows)| {
        (usize::from(columns.0).min(width) - 1, usize::from(rows.0).clamp(14, height))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::cli::{
        record::{Care, Sample},
        tally::Tally,
    };

    /// The show so many seconds after its begin, on a terminal of this size.
    fn frame(second: u64, size: (usize, usize)) -> Vec<String> {
        let (start, script) = (Instant::now(), Script::roam());
        let at = |second| start + Duration::from_secs(second);
        let mut tally = Tally::default();
        for number in 0..=second {
            tally.line_typed(at(number));
            tally.line_echoed(number as usize, at(number) + Duration::from_millis(11));
        }
        let sample = |second, active: &str| Sample {
            at: at(second),
            link: Some(active.into()),
            active: Some(active.into()),
            rtts: vec![("wifi0".into(), 11.0)],
            care: Care::default(),
        };
        let samples = (0..second).map(|it| sample(it, if it < 9 { "wifi0" } else { "lte0" }));
        let record = Record { samples: samples.collect(), ..Record::default() };
        let moment =
            Moment { start, at: at(second), script: &script, tally: &tally, record: &record };
        Screen::plain(io::sink()).frame(&moment, size)
    }

    #[test]
    fn the_show_fits_the_terminal_at_any_time() {
        for (width, height) in [(79, 24), (39, 24), (39, 14), (120, 50)] {
            for second in [0, 1, 2, 30, 74, 75, 90] {
                let lines = frame(second, (width, height));
                assert!(lines.len() < height, "{lines:#?}");
                let widest = lines.iter().map(|line| line.chars().count()).max().unwrap();
                assert!(widest <= width, "{widest} {lines:#?}");
            }
        }
    }

    #[test]
    fn a_lane_shows_what_a_link_was_like() {
        let lines = frame(30, (79, 24));
        let lane = |link: &str| lines.iter().find(|line| line.starts_with(link)).unwrap().clone();
        assert!(lane(" wifi0").starts_with(" wifi0  ━━━━━━━"), "{}", lane(" wifi0"));
        assert!(lane(" wifi0").contains("─●··"), "{}", lane(" wifi0"));
        assert!(lane(" lte0").contains("━●··"), "{}", lane(" lte0"));
        assert!(lines.iter().any(|line| line.contains("underground")), "{lines:#?}");
        assert!(lines.iter().any(|line| line.contains("  9 s  out of wifi's reach")), "{lines:#?}");
    }

    #[test]
    fn the_next_picture_replaces_the_one_before() {
        let mut out = Vec::new();
        let mut screen = Screen { live: Some(0), ..Screen::plain(&mut out) };
        screen.title().unwrap();
        screen.step("made", Instant::now()).unwrap();
        screen.replace(&["one".into()]).unwrap();
        screen.replace(&["two".into(), "three".into()]).unwrap();
        drop(screen);
        let text = String::from_utf8(out).unwrap();
        let drawn = text.split_once("made").unwrap().1;
        assert!(
            drawn.ends_with("\x1b[2A\rone\x1b[K\n\x1b[J\x1b[1A\rtwo\x1b[K\nthree\x1b[K\n\x1b[J"),
            "{drawn:?}"
        );
    }
}
