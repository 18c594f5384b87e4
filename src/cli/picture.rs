//! Time without an answer, as a picture (SVG 1.1): a dot for each measurement, a band for the path in use, and a
//! numbered list of what happened. The demo, a drill and a report draw the same one.

use std::{
    collections::{HashMap, HashSet},
    fmt::{self, Write as _},
    fs::{self, File},
    ops::Range,
    path::Path,
    time::Duration,
};

use anyhow::Context as _;

use super::exit::Exit;

const WIDTH: f64 = 640.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 626.0;
/// The numbers of what happened.
const BADGES: f64 = 78.0;
const TOP: f64 = 96.0;
const BOTTOM: f64 = 262.0;
const BAND: f64 = 272.0;
const BAND_HEIGHT: f64 = 22.0;
const AXIS: f64 = 312.0;
const LEGEND: f64 = 338.0;
const LIST: f64 = 370.0;
const ROW: f64 = 23.0;
/// The vertical axis, linear, in milliseconds. What took longer is a mark above it.
const LARGEST: f64 = 700.0;
/// A pause longer than this share of the whole is drawn as long as that.
const LONG_PAUSE: f64 = 0.125;
const SHORT_PAUSE: f64 = 0.09;
/// Letters of the list that fit into a row, and the width of a letter on the band.
const LETTERS: usize = 62;
const LETTER: f64 = 7.5;
/// Paths with colours of their own.
const COLOURS: usize = 4;

/// Blue and orange differ for everyone who sees colours differently, too (Okabe and Ito).
const STYLE: &str = "\
text{font-family:system-ui,sans-serif;font-size:14px;fill:#222}
.b{font-size:17px;font-weight:600}.s{fill:#555}.e{text-anchor:end}.m{text-anchor:middle}
.g{fill:#fff}.l{stroke:#ddd}.d{stroke:#777;stroke-dasharray:3 3}.p{fill:#eee}.o{fill:#222}.n{fill:#fff;font-size:12px;text-anchor:middle}
.c0{fill:#0072b2}.c1{fill:#e69f00}.c2{fill:#cc79a7}.c3{fill:#009e73}.t0,.t2,.t3{fill:#fff}.t1{fill:#000}
@media (prefers-color-scheme:dark){
text{fill:#e6e6e6}.s{fill:#aaa}.g{fill:#0d1117}.l{stroke:#30363d}.d{stroke:#8b949e}.p{fill:#21262d}.o{fill:#e6e6e6}.n{fill:#0d1117}
.c0{fill:#56b4e9}.c2{fill:#e39ac4}.c3{fill:#2bc79a}.t0,.t1,.t2,.t3{fill:#000}}
";

/// What is drawn. Times count from the beginning.
pub(crate) struct Picture {
    pub(crate) title: String,
    /// What a dot is.
    pub(crate) dots_are: String,
    pub(crate) length: Duration,
    /// What is written at a time on the axis.
    pub(crate) clock: Box<dyn Fn(Duration) -> String>,
    /// When, and how long it took.
    pub(crate) dots: Vec<(Duration, Duration)>,
    /// The path in use; none while there was no network.
    pub(crate) spans: Vec<(Range<Duration>, Option<String>)>,
    /// What happened, in order.
    pub(crate) acts: Vec<Act>,
}

/// Something that happened.
pub(crate) struct Act {
    pub(crate) at: Duration,
    pub(crate) title: String,
    /// What it cost, in words.
    pub(crate) cost: String,
}

/// Finds out early whether a picture could be written. A file that is there stays as it is.
pub(crate) fn can_write(file: &Path) -> anyhow::Result<()> {
    let is_new = !file.exists();
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(file)
        .map_err(|error| Exit::CannotCreate.because(error))
        .with_context(|| format!("cannot write {}", file.display()))?;
    if is_new {
        fs::remove_file(file)?;
    }
    Ok(())
}

impl Picture {
    /// Writes it into a file.
    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        fs::write(file, self.svg())
            .map_err(|error| Exit::CannotCreate.because(error))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// The picture.
    pub(crate) fn svg(&self) -> String {
        let mut svg = String::new();
        // Writing to a string does not fail.
        let _ = self.draw(&mut svg, &Scale::new(self));
        svg
    }

    fn draw(&self, svg: &mut String, scale: &Scale) -> fmt::Result {
        let height = LIST + ROW * self.acts.len() as f64;
        let title = text(&self.title);
        writeln!(
            svg,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="t d">
<title id="t">{title}</title>
<desc id="d">{}</desc>
<style>{STYLE}</style>
<rect class="g" width="{WIDTH}" height="{height}"/>
<text class="b" x="14" y="28">{title}</text>
<text class="s" x="14" y="49">{}</text>"#,
            text(&self.description()),
            text(&self.dots_are)
        )?;
        self.axes(svg, scale)?;
        self.band(svg, scale)?;
        self.draw_dots(svg, scale)?;
        self.legend(svg)?;
        self.list(svg, scale)?;
        writeln!(svg, "</svg>")
    }

    /// The picture in words.
    fn description(&self) -> String {
        let mut words = format!(
            "{}. The band shows the path in use: {}.",
            self.dots_are,
            self.links().join(", ")
        );
        for (number, act) in (1..).zip(&self.acts) {
            let (at, cost) = ((self.clock)(act.at), &act.cost);
            words.push_str(&format!(" {number}: {at}, {}", act.title));
            words.push_str(&if cost.is_empty() { ".".into() } else { format!(", {cost}.") });
        }
        words
    }

    fn axes(&self, svg: &mut String, scale: &Scale) -> fmt::Result {
        for value in [0, 200, 400, 600] {
            let y = y(f64::from(value));
            let unit = if value == 0 { "0" } else { &format!("{value} ms") };
            writeln!(
                svg,
                r#"<path class="l" d="M{LEFT} {y:.1}H{RIGHT}"/><text class="s e" x="{:.1}" y="{:.1}">{unit}</text>"#,
                LEFT - 6.0,
                y + 5.0
            )?;
        }
        let step = step(scale.shown());
        let mut free = 0.0;
        let mut at = Duration::ZERO;
        while at <= self.length {
            if let Some((_, end)) = scale.pause(at) {
                // However long it was: its end is near on the paper.
                let end = (*end + Duration::from_nanos(999_999_999)).as_secs();
                at = Duration::from_secs(end.next_multiple_of(step.as_secs()));
                continue;
            }
            let (x, label) = (scale.x(at), (self.clock)(at));
            let half = label.chars().count() as f64 * LETTER / 2.0;
            if x - half >= free && x + half <= WIDTH {
                writeln!(svg, r#"<text class="s m" x="{x:.1}" y="{AXIS}">{label}</text>"#)?;
                free = x + half + LETTER;
            }
            at += step;
        }
        for (from, to) in &scale.pauses {
            let (from_x, to_x) = (scale.x(*from), scale.x(*to));
            let (x, y) = ((from_x + to_x) / 2.0 + 5.0, (TOP + BOTTOM) / 2.0);
            writeln!(
                svg,
                r#"<rect class="p" x="{from_x:.1}" y="{TOP}" width="{:.1}" height="{:.1}"/><text class="s m" transform="translate({x:.1} {y:.1}) rotate(-90)">{}, drawn short</text>"#,
                to_x - from_x,
                BOTTOM - TOP,
                spoken(*to - *from)
            )?;
        }
        Ok(())
    }

    /// Which path was in use.
    fn band(&self, svg: &mut String, scale: &Scale) -> fmt::Result {
        let colours = self.colours();
        for (span, link) in &self.spans {
            let (from, to) = (scale.x(span.start), scale.x(span.end));
            let width = to - from;
            let colour = link.as_ref().and_then(|link| colours.get(link.as_str()));
            let fill = colour.map_or("p".into(), |it| format!("c{it}"));
            writeln!(
                svg,
                r#"<rect class="{fill}" x="{from:.1}" y="{BAND}" width="{width:.1}" height="{BAND_HEIGHT}" shape-rendering="crispEdges"><title>{}</title></rect>"#,
                text(link.as_deref().unwrap_or("no path"))
            )?;
            let name = link.as_deref().unwrap_or("none");
            if width > LETTER * (name.chars().count() + 1) as f64 {
                let colour = colour.map_or("s".into(), |it| format!("t{it}"));
                writeln!(
                    svg,
                    r#"<text class="m {colour}" x="{:.1}" y="{:.1}">{}</text>"#,
                    (from + to) / 2.0,
                    BAND + 16.0,
                    text(name)
                )?;
            }
        }
        Ok(())
    }

    fn draw_dots(&self, svg: &mut String, scale: &Scale) -> fmt::Result {
        let colours = self.colours();
        for (at, took) in &self.dots {
            let (x, milliseconds) = (scale.x(*at), took.as_secs_f64() * 1e3);
            // What was sent into a pause waited for its end, like all the rest of it.
            if scale.pause(*at).is_some() {
                continue;
            }
            if milliseconds > LARGEST {
                writeln!(
                    svg,
                    r#"<path class="o" d="M{:.1} {TOP}l4 -7l4 7z"><title>{}</title></path>"#,
                    x - 4.0,
                    spoken(*took)
                )?;
                continue;
            }
            let next = self.spans.partition_point(|(span, _)| span.start <= *at);
            let span = self.spans[..next].last().filter(|(span, _)| span.contains(at));
            let link = span.and_then(|(_, link)| link.as_deref());
            let colour = link.and_then(|link| colours.get(link));
            let fill = colour.map_or("o".into(), |it| format!("c{it}"));
            let y = y(milliseconds);
            writeln!(svg, r#"<circle class="{fill}" cx="{x:.1}" cy="{y:.1}" r="2"/>"#)?;
        }
        Ok(())
    }

    /// Which colour is which path.
    fn legend(&self, svg: &mut String) -> fmt::Result {
        let mut x = LEFT;
        for (number, link) in self.links().into_iter().enumerate() {
            if x > RIGHT {
                break;
            }
            let colour = number % COLOURS;
            writeln!(
                svg,
                r#"<rect class="c{colour}" x="{x:.1}" y="{:.1}" width="12" height="12"/><text class="s" x="{:.1}" y="{LEGEND}">{}</text>"#,
                LEGEND - 11.0,
                x + 17.0,
                text(link)
            )?;
            x += 36.0 + LETTER * link.chars().count() as f64;
        }
        Ok(())
    }

    /// What happened: a number above the plot, and a row below it.
    fn list(&self, svg: &mut String, scale: &Scale) -> fmt::Result {
        let (mut free, mut is_raised) = (0.0, false);
        for (number, act) in (1..).zip(&self.acts) {
            let x = scale.x(act.at);
            is_raised = x < free && !is_raised;
            let y = if is_raised { BADGES - 17.0 } else { BADGES };
            free = x + 19.0;
            writeln!(svg, r#"<path class="d" d="M{x:.1} {y}V{BOTTOM}"/>"#)?;
            badge(svg, number, x, y)?;
            let y = LIST + ROW * f64::from(number - 1);
            badge(svg, number, 24.0, y - 5.0)?;
            let letters = LETTERS.saturating_sub(act.cost.chars().count());
            writeln!(
                svg,
                r#"<text class="s e" x="88" y="{y}">{}</text><text x="98" y="{y}">{}</text><text class="e" x="{RIGHT}" y="{y}">{}</text>"#,
                (self.clock)(act.at),
                text(&shortened(&act.title, letters)),
                text(&act.cost)
            )?;
        }
        Ok(())
    }

    /// The paths that were used, in the order of their first use; those that are not over UDP are named with their
    /// transport, and come last.
    fn links(&self) -> Vec<&str> {
        let mut known = HashSet::new();
        let links = self.spans.iter().filter_map(|(_, link)| link.as_deref());
        let mut links: Vec<_> = links.filter(|link| known.insert(*link)).collect();
        links.sort_by_key(|link| link.contains(' '));
        links
    }

    /// The number of the colour of each.
    fn colours(&self) -> HashMap<&str, usize> {
        self.links().into_iter().enumerate().map(|(at, link)| (link, at % COLOURS)).collect()
    }
}

/// The horizontal axis, with long pauses drawn short.
struct Scale {
    length: Duration,
    pauses: Vec<(Duration, Duration)>,
    /// How long a pause is drawn.
    short: Duration,
}

impl Scale {
    fn new(Picture { length, spans, .. }: &Picture) -> Self {
        let long = length.mul_f64(LONG_PAUSE);
        let pauses = spans.iter().filter(|(_, link)| link.is_none());
        let pauses = pauses.map(|(span, _)| (span.start, span.end.min(*length)));
        let pauses: Vec<_> = pauses.filter(|(from, to)| to.saturating_sub(*from) > long).collect();
        let paused: Duration = pauses.iter().map(|(from, to)| *to - *from).sum();
        let short = length.saturating_sub(paused).mul_f64(SHORT_PAUSE).min(long);
        Self { length: *length, pauses, short }
    }

    /// How long everything is drawn.
    fn shown(&self) -> Duration {
        self.drawn(self.length)
    }

    fn drawn(&self, at: Duration) -> Duration {
        let at = at.min(self.length);
        let mut drawn = at;
        for (from, to) in &self.pauses {
            let inside = at.min(*to).saturating_sub(*from);
            let share = inside.as_secs_f64() / (*to - *from).as_secs_f64();
            drawn = drawn.saturating_sub(inside) + self.short.mul_f64(share);
        }
        drawn
    }

    fn x(&self, at: Duration) -> f64 {
        let shown = self.shown().as_secs_f64().max(1e-3);
        LEFT + (RIGHT - LEFT) * self.drawn(at).as_secs_f64() / shown
    }

    /// The pause that is drawn short, if that was in one.
    fn pause(&self, at: Duration) -> Option<&(Duration, Duration)> {
        self.pauses.iter().find(|(from, to)| *from < at && at < *to)
    }
}

fn badge(svg: &mut String, number: u32, x: f64, y: f64) -> fmt::Result {
    writeln!(
        svg,
        r#"<circle class="o" cx="{x:.1}" cy="{y:.1}" r="9"/><text class="n" x="{x:.1}" y="{:.1}">{number}</text>"#,
        y + 4.0
    )
}

fn y(milliseconds: f64) -> f64 {
    BOTTOM - (BOTTOM - TOP) * milliseconds.clamp(0.0, LARGEST) / LARGEST
}

/// Between two labels of the horizontal axis.
fn step(shown: Duration) -> Duration {
    const STEPS: [u64; 12] = [1, 2, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 14400];
    const DAY: u64 = 86_400;
    let enough = |step: &u64| shown.as_secs() / step <= 9;
    let days = shown.as_secs() / (9 * DAY) + 1;
    Duration::from_secs(STEPS.into_iter().find(enough).unwrap_or(days * DAY))
}

/// Seconds since the beginning, for the axis.
pub(crate) fn seconds(at: Duration) -> String {
    format!("{:.0} s", at.as_secs_f64())
}

/// A duration as people say it.
pub(crate) fn spoken(time: Duration) -> String {
    let (seconds, milliseconds) = (time.as_secs(), time.as_millis());
    match seconds {
        0 => format!("{milliseconds} ms"),
        1..10 => format!("{:.1} s", time.as_secs_f64()),
        10..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

fn shortened(words: &str, letters: usize) -> String {
    if words.chars().count() <= letters {
        return words.into();
    }
    words.chars().take(letters.saturating_sub(1)).chain(['…']).collect()
}

/// Words inside of an element.
fn text(words: &str) -> String {
    words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    };

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn picture() -> Picture {
        let act = |at, title: &str| Act { at: s(at), title: title.into(), cost: "12 ms".into() };
        Picture {
            title: "A <test>".into(),
            dots_are: "An echo".into(),
            length: s(75),
            clock: Box::new(|at| format!("{} s", at.as_secs())),
            dots: vec![
                (s(1), Duration::from_millis(11)),
                (s(2), s(1)),
                (s(40), s(24)),
                (s(70), Duration::from_millis(50)),
            ],
            spans: vec![
                (s(0)..s(29), Some("wifi0".into())),
                (s(29)..s(64), None),
                (s(64)..s(75), Some("lte0".into())),
            ],
            acts: vec![act(29, "underground & alone"), act(64, "back")],
        }
    }

    #[test]
    fn everything_that_happened_is_drawn_and_told() {
        let svg = picture().svg();
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("<title id=\"t\">A &lt;test&gt;</title>"), "{svg}");
        assert!(svg.contains("1: 29 s, underground &amp; alone, 12 ms. 2: 64 s, back, 12 ms."));
        assert!(svg.contains("wifi0, lte0"), "{svg}");
        assert!(svg.contains("prefers-color-scheme:dark"));
        assert_eq!(
            svg.matches("r=\"2\"").count(),
            2,
            "the dots but the late one and the one inside the pause"
        );
        assert_eq!(svg.matches("l4 -7l4 7z").count(), 1, "what took too long for the axis");
        assert_eq!(svg.matches("r=\"9\"").count(), 4, "a number at the plot and one in the list");
    }

    #[test]
    fn a_long_pause_is_drawn_short_and_nothing_else_is() {
        let scale = Scale::new(&picture());
        assert!((scale.x(s(0)) - LEFT).abs() < 1e-6 && (scale.x(s(75)) - RIGHT).abs() < 1e-6);
        let width = |from, to| scale.x(s(to)) - scale.x(s(from));
        assert!((width(0, 10) - width(64, 74)).abs() < 1e-6);
        assert!(width(29, 64) < width(0, 10), "{} {}", width(29, 64), width(0, 10));
        let short = Picture { spans: vec![(s(29)..s(33), None)], ..picture() };
        assert!(Scale::new(&short).pauses.is_empty());
    }

    #[test]
    fn there_are_at_most_ten_labels_on_the_axis() {
        const YEARS: u64 = 8000 * 365 * 86_400;
        for seconds in [1, 8, 44, 75, 600, 86_400, 7 * 86_400, 27 * 86_400, YEARS] {
            assert!(seconds / step(s(seconds)).as_secs() <= 9, "{seconds}");
        }
    }

    /// A machine without a battery for its clock tells of 1970 first.
    #[test]
    fn a_pause_of_many_years_takes_no_longer_to_draw_than_a_short_one() {
        let labels = Arc::new(AtomicUsize::new(0));
        let counted = labels.clone();
        let (years, wifi) = (s(56 * 365 * 86_400), Some("wifi0".to_owned()));
        let spans =
            vec![(s(0)..s(60), wifi.clone()), (s(60)..years, None), (years..years + s(90), wifi)];
        let clock = Box::new(move |_| {
            counted.fetch_add(1, Relaxed);
            String::new()
        });
        let svg = Picture { length: years + s(90), clock, spans, ..picture() }.svg();
        assert!(svg.ends_with("</svg>\n") && labels.load(Relaxed) < 30, "{labels:?}");
    }

    #[test]
    fn a_dot_has_the_colour_of_the_path_in_use_and_a_legend_has_its_bounds() {
        let spans = (0..1000).map(|at| (s(at)..s(at + 1), Some(format!("link{at}")))).collect();
        let dots = vec![(s(2), Duration::ZERO), (s(5), Duration::ZERO)];
        let svg = Picture { length: s(1000), spans, dots, ..picture() }.svg();
        let dots: Vec<_> = svg.lines().filter(|line| line.contains("r=\"2\"")).collect();
        assert!(dots[0].contains("class=\"c2\"") && dots[1].contains("class=\"c1\""), "{dots:?}");
        assert!(svg.matches("height=\"12\"").count() < 10);
    }

    #[test]
    fn a_picture_of_nothing_is_a_picture() {
        let nothing = Picture {
            length: Duration::ZERO,
            dots: Vec::new(),
            spans: Vec::new(),
            acts: Vec::new(),
            ..picture()
        };
        assert!(!nothing.svg().contains("NaN"));
    }

    #[test]
    fn durations_are_spoken() {
        let spoken =
            [90, 2_500, 35_000, 600_000, 8_000_000].map(|it| spoken(Duration::from_millis(it)));
        assert_eq!(spoken, ["90 ms", "2.5 s", "35 s", "10 min", "2 h 13 min"]);
    }
}
