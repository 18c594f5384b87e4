//! The show as a picture (SVG 1.1): echoes and round trips over time, the path in use as a band, each
//! switch marked.

use std::{
    fmt::{self, Write as _},
    time::{Duration, Instant},
};

use super::{script::Event, tally::Tally, watch::Record};

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 980.0;
const TOP: f64 = 95.0;
/// Rows of titles above the plot.
const ROWS: usize = 4;
const TURN: f64 = 780.0;
const BOTTOM: f64 = 330.0;
const BAND: f64 = 345.0;
const BAND_HEIGHT: f64 = 18.0;
/// The vertical axis in milliseconds: decades, since a stall is a thousand times a round trip.
const SMALLEST: f64 = 1.0;
const LARGEST: f64 = 100_000.0;

/// What is drawn.
pub(super) struct Chart<'a> {
    pub(super) start: Instant,
    pub(super) length: Duration,
    pub(super) events: &'a [Event],
    pub(super) tally: &'a Tally,
    pub(super) record: &'a Record,
}

impl Chart<'_> {
    /// The picture.
    pub(super) fn svg(&self) -> String {
        let mut svg = String::new();
        // Writing to a string does not fail.
        let _ = self.draw(&mut svg);
        svg
    }

    fn draw(&self, svg: &mut String) -> fmt::Result {
        writeln!(
            svg,
            r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">"##
        )?;
        writeln!(svg, r##"<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>"##)?;
        writeln!(
            svg,
            r##"<text x="{LEFT}" y="24" font-size="16">A session typed through roamd while its networks come and go</text>"##
        )?;
        self.axes(svg)?;
        self.events(svg)?;
        self.band(svg)?;
        self.round_trips(svg)?;
        self.echoes(svg)?;
        self.switches(svg)?;
        self.legend(svg)?;
        writeln!(svg, "</svg>")
    }

    fn axes(&self, svg: &mut String) -> fmt::Result {
        for (value, label) in [
            (1.0, "1 ms"),
            (10.0, "10 ms"),
            (100.0, "100 ms"),
            (1e3, "1 s"),
            (1e4, "10 s"),
            (1e5, "100 s"),
        ] {
            let y = y(value);
            writeln!(
                svg,
                r##"<path d="M{LEFT} {y:.1}H{RIGHT}" stroke="#ddd"/><text x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"##,
                LEFT - 6.0,
                y + 4.0
            )?;
        }
        let seconds = self.length.as_secs();
        for second in (0..=seconds).step_by(if seconds > 40 { 10 } else { 5 }) {
            let x = self.x(Duration::from_secs(second));
            writeln!(
                svg,
                r##"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{second} s</text>"##,
                BAND + BAND_HEIGHT + 16.0
            )?;
        }
        Ok(())
    }

    fn events(&self, svg: &mut String) -> fmt::Result {
        for (number, event) in self.events.iter().enumerate() {
            let x = self.x(event.at);
            let y = 40.0 + 12.0 * (number % ROWS) as f64;
            // What begins near the right edge is written to the left of its line.
            let (anchor, beside) = if x > TURN { ("end", x - 3.0) } else { ("start", x + 3.0) };
            writeln!(
                svg,
                r##"<path d="M{x:.1} {y:.1}V{BOTTOM}" stroke="#c80" stroke-dasharray="3 3"/><text x="{beside:.1}" y="{:.1}" fill="#a60" font-size="10" text-anchor="{anchor}">{}</text>"##,
                y + 4.0,
                event.title
            )?;
        }
        Ok(())
    }

    /// Which path was in use.
    fn band(&self, svg: &mut String) -> fmt::Result {
        let samples = &self.record.samples;
        for (number, sample) in samples.iter().enumerate() {
            let until = samples.get(number + 1).map_or(sample.at, |next| next.at);
            let (from, to) = (self.at(sample.at), self.at(until));
            let fill = sample.active.as_deref().map_or("#eee", colour);
            writeln!(
                svg,
                r##"<rect x="{from:.1}" y="{BAND}" width="{:.1}" height="{BAND_HEIGHT}" fill="{fill}"/>"##,
                (to - from).max(0.0)
            )?;
        }
        Ok(())
    }

    fn round_trips(&self, svg: &mut String) -> fmt::Result {
        for link in self.links() {
            let mut path = String::new();
            let mut drawing = false;
            for sample in &self.record.samples {
                let rtt = sample.rtts.iter().find(|(name, _)| *name == link);
                if let Some((_, rtt)) = rtt {
                    let command = if drawing { 'L' } else { 'M' };
                    write!(path, "{command}{:.1} {:.1}", self.at(sample.at), y(*rtt))?;
                }
                drawing = rtt.is_some();
            }
            writeln!(
                svg,
                r##"<path d="{path}" fill="none" stroke="{}" stroke-width="1.5"/>"##,
                colour(&link)
            )?;
        }
        Ok(())
    }

    fn echoes(&self, svg: &mut String) -> fmt::Result {
        for (typed, took) in self.tally.echoes() {
            let (x, y) = (self.at(typed), y(took.as_secs_f64() * 1e3));
            writeln!(svg, r##"<circle cx="{x:.1}" cy="{y:.1}" r="1.3" fill="#333"/>"##)?;
        }
        Ok(())
    }

    fn switches(&self, svg: &mut String) -> fmt::Result {
        for switch in &self.record.switches {
            let x = self.at(switch.at);
            let (from, to) = switch.what.ways();
            writeln!(
                svg,
                r##"<path d="M{x:.1} {TOP}V{:.1}" stroke="#06c"><title>{from} to {to}: {}, gap {:.0} ms</title></path><text x="{:.1}" y="{:.1}" fill="#06c" font-size="10">{:.0} ms</text>"##,
                BAND + BAND_HEIGHT,
                switch.what.reason,
                switch.what.gap,
                x + 2.0,
                BOTTOM - 4.0,
                switch.what.gap
            )?;
        }
        Ok(())
    }

    fn legend(&self, svg: &mut String) -> fmt::Result {
        let y = HEIGHT - 14.0;
        let mut x = LEFT;
        for link in self.links() {
            writeln!(
                svg,
                r##"<rect x="{x}" y="{:.1}" width="14" height="8" fill="{}"/><text x="{:.1}" y="{y}">{link}: round trip, in use</text>"##,
                y - 8.0,
                colour(&link),
                x + 20.0
            )?;
            x += 190.0;
        }
        writeln!(
            svg,
            r##"<text x="{x}" y="{y}">dots: echo of each line; blue: switch, with its gap</text>"##
        )
    }

    fn links(&self) -> Vec<String> {
        let all = self.record.samples.iter().flat_map(|sample| &sample.rtts);
        let mut links: Vec<_> = all.map(|(link, _)| link.clone()).collect();
        links.sort();
        links.dedup();
        links.reverse();
        links
    }

    fn at(&self, at: Instant) -> f64 {
        self.x(at.saturating_duration_since(self.start).min(self.length))
    }

    fn x(&self, since: Duration) -> f64 {
        LEFT + (RIGHT - LEFT) * since.as_secs_f64() / self.length.as_secs_f64().max(1.0)
    }
}

fn y(milliseconds: f64) -> f64 {
    let decades = (milliseconds.clamp(SMALLEST, LARGEST) / SMALLEST).log10();
    BOTTOM - (BOTTOM - TOP) * decades / (LARGEST / SMALLEST).log10()
}

fn colour(link: &str) -> &'static str {
    match link {
        "wifi0" => "#7bc47f",
        tcp if tcp.ends_with("(tcp)") => "#8f86d8",
        _ => "#e79b6c",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::demo::{
        script::Script,
        watch::{Care, Sample},
    };

    #[test]
    fn a_chart_shows_every_event_echo_and_path() {
        let start = Instant::now();
        let script = Script::roam();
        let mut tally = Tally::default();
        tally.line_typed(start);
        tally.line_echoed(start + Duration::from_millis(11));
        let sample = |seconds, active: &str| Sample {
            at: start + Duration::from_secs(seconds),
            active: Some(active.into()),
            rtts: vec![("wifi0".into(), 10.0), ("lte0".into(), 50.0)],
            care: Care::default(),
        };
        let record = Record {
            samples: vec![sample(0, "wifi0"), sample(3, "lte0"), sample(9, "lte0")],
            switches: Vec::new(),
        };
        let chart = Chart {
            start,
            length: script.length,
            events: &script.events,
            tally: &tally,
            record: &record,
        };
        let svg = chart.svg();
        for event in &script.events {
            assert!(svg.contains(event.title), "{svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 1);
        assert_eq!(svg.matches("<rect").count(), 1 + 3 + 2, "ground, band and legend");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn the_axis_is_logarithmic() {
        assert_eq!(y(0.1).to_bits(), y(1.0).to_bits());
        assert!((y(10.0) - y(100.0) - (y(100.0) - y(1000.0))).abs() < 1e-9);
    }
}
