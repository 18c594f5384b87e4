//! What a drill says: text as it goes on, or one JSON object at its end, and a picture.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    perform::{AROUND, Outcome, Outcomes},
    plan::Plan,
    typist::TYPING,
};
use crate::{
    cli::{
        paint::{BOLD, DIM, GREEN, Paint, YELLOW},
        picture::{Act, Picture, seconds, spoken},
        record::Care,
        tally::UNNOTICED,
    },
    daemon::status::{SCHEMA, milliseconds, rounded},
};

pub(super) struct Report {
    tunnel: String,
    seconds: u32,
    json: bool,
    paint: Paint,
}

/// The drill as JSON; keys as in the status.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Json<'a> {
    schema: u32,
    tunnel: &'a str,
    interface: &'a str,
    server: String,
    /// Milliseconds between two keystrokes.
    interval: u64,
    cuts: Vec<Cut<'a>>,
    left_out: Vec<LeftOut<'a>>,
    interrupted: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Cut<'a> {
    link: &'a str,
    metered: bool,
    /// Whether no other link worked.
    alone: bool,
    /// For how long it was cut.
    seconds: f64,
    /// Milliseconds without an echo.
    stall: f64,
    typed: usize,
    echoed: usize,
    /// The link that carried the tunnel when the cut ended, and the median echo over it in milliseconds.
    over: Option<&'a str>,
    echo: Option<f64>,
    switches: Vec<Switch<'a>>,
}

#[derive(Serialize)]
struct Switch<'a> {
    from: String,
    to: String,
    reason: &'a str,
    gap: f64,
}

#[derive(Serialize)]
struct LeftOut<'a> {
    link: &'a str,
    why: &'a str,
}

impl<'a> Cut<'a> {
    fn new(outcome: &'a Outcome) -> Self {
        let switches = outcome.switches.iter().map(|switch| {
            let (from, to) = switch.ways();
            Switch { from, to, reason: &switch.reason, gap: switch.gap }
        });
        Self {
            link: &outcome.link.name,
            metered: outcome.link.is_metered,
            alone: outcome.is_alone,
            seconds: rounded(outcome.ended - outcome.began),
            stall: milliseconds(outcome.stall),
            typed: outcome.typed,
            echoed: outcome.echoed,
            over: outcome.over.as_deref(),
            echo: outcome.echo.map(milliseconds),
            switches: switches.collect(),
        }
    }
}

impl Report {
    pub(super) fn new(tunnel: &str, seconds: u32, json: bool) -> Self {
        Self { tunnel: tunnel.into(), seconds, json, paint: Paint::for_stdout() }
    }

    /// What will be done.
    pub(super) fn plan(&self, out: &mut impl Write, plan: &Plan) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let Self { tunnel, seconds, paint, .. } = self;
        let Plan { interface, server, links, left_out, metered, .. } = plan;
        let title = paint.paint(BOLD, format_args!("roamd drill {tunnel}"));
        writeln!(
            out,
            "{title}  a keystroke every {} ms to {server} through {interface}\n",
            TYPING.as_millis()
        )?;
        for link in links {
            let rtt = link.rtt.map_or_else(|| "works".into(), |rtt| format!("{rtt:.1} ms"));
            let metered = if link.is_metered { ", metered" } else { "" };
            writeln!(out, "   {:<12}{rtt}{metered}", link.name)?;
        }
        for (link, why) in left_out {
            writeln!(out, "   {link:<12}left out: {why}")?;
        }
        if links.len() == 1 && left_out.is_empty() {
            writeln!(out, "\n It is the only link: the tunnel has nowhere to go, and waits.")?;
        }
        if !metered.is_empty() {
            writeln!(
                out,
                "\n While {} carries the tunnel, the drill spends up to {} kB a cut on a metered\n link, and \
                 whatever else is sent through the tunnel then.",
                metered.join(", "),
                Plan::cost(Duration::from_secs((*seconds).into()) + AROUND)
            )?;
        }
        writeln!(out, "\n Each is cut for {seconds} s, as this tunnel alone sees it.\n")?;
        let heading =
            format!(" {:<12}{:>14}   {:<22}{}", "cut", "longest stall", "then over", "came back");
        writeln!(out, "{}", paint.paint(DIM, heading.trim_end()))
    }

    /// What the cut of a link was like.
    pub(super) fn outcome(&self, out: &mut impl Write, outcome: &Outcome) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        let Outcome { link, is_alone, stall, typed, echoed, over, echo, switches, care, .. } =
            outcome;
        let style = if *stall < UNNOTICED || *is_alone { GREEN } else { YELLOW };
        let shown = self.paint.paint(style, format_args!("{:>14}", exact(*stall)));
        let echo = echo.map(|echo| format!(", {:.1} ms", milliseconds(echo))).unwrap_or_default();
        let over = match over {
            _ if *is_alone => "nothing else works".into(),
            Some(over) => format!("{over}{echo}"),
            None => "none".into(),
        };
        writeln!(out, " {:<12}{shown}   {over:<22}{echoed} of {typed}", link.name)?;
        for switch in switches {
            writeln!(out, "      {}", self.paint.paint(DIM, switch.line("")))?;
        }
        if *care != Care::default() {
            writeln!(out, "      {}", self.paint.paint(DIM, care))?;
        }
        out.flush()
    }

    /// What it all came to.
    pub(super) fn summary(
        &self,
        out: &mut impl Write,
        plan: &Plan,
        outcomes: &Outcomes,
        interrupted: bool,
    ) -> io::Result<()> {
        if self.json {
            return self.print_json(out, plan, outcomes, interrupted);
        }
        for link in &outcomes.skipped {
            writeln!(out, " {link:<12}the tunnel did not move there, so that it was not cut")?;
        }
        let others = outcomes.cuts.iter().filter(|cut| !cut.is_alone);
        let worst = others.map(|cut| cut.stall).max();
        let words = match worst {
            _ if interrupted => {
                "Interrupted. Nothing is cut any more; what happened is listed.".into()
            }
            Some(worst) if worst < UNNOTICED => {
                self.paint.paint(GREEN, "Nobody at a terminal would have noticed.")
            }
            Some(worst) => {
                let words = format!("At a terminal that is a hitch of {}.", spoken(worst));
                self.paint.paint(YELLOW, words)
            }
            None if outcomes.cuts.is_empty() => "Nothing was cut.".into(),
            None => "The tunnel waited, and went on when its link was back.".into(),
        };
        writeln!(out, "\n {words}")
    }

    fn print_json(
        &self,
        out: &mut impl Write,
        plan: &Plan,
        outcomes: &Outcomes,
        interrupted: bool,
    ) -> io::Result<()> {
        let skipped = outcomes.skipped.iter().map(|link| (link, "the tunnel did not move there"));
        let left_out = plan.left_out.iter().map(|(link, why)| (link, *why)).chain(skipped);
        let json = Json {
            schema: SCHEMA,
            tunnel: &self.tunnel,
            interface: &plan.interface,
            server: plan.server.to_string(),
            interval: TYPING.as_millis() as u64,
            cuts: outcomes.cuts.iter().map(Cut::new).collect(),
            left_out: left_out.map(|(link, why)| LeftOut { link, why }).collect(),
            interrupted,
        };
        serde_json::to_writer_pretty(&mut *out, &json)?;
        writeln!(out)
    }

    /// The drill as a picture.
    pub(super) fn picture(&self, outcomes: &Outcomes) -> Picture {
        let Outcomes { start, end, cuts, tally, record, .. } = outcomes;
        let since = |at: Instant| at.saturating_duration_since(*start);
        let spans = record.spans(*end).into_iter();
        Picture {
            title: format!("Typing through {} while its links are cut", self.tunnel),
            dots_are: "Each dot: a keystroke, and when its echo was back".into(),
            length: *end - *start,
            clock: Box::new(seconds),
            dots: tally.echoes().map(|(typed, took)| (since(typed), took)).collect(),
            spans: spans.map(|(span, link)| (since(span.start)..since(span.end), link)).collect(),
            acts: cuts
                .iter()
                .map(|cut| Act {
                    at: since(cut.began),
                    title: format!(
                        "{} is cut for {}",
                        cut.link.name,
                        spoken(cut.ended - cut.began)
                    ),
                    cost: spoken(cut.stall),
                })
                .collect(),
        }
    }
}

fn exact(time: Duration) -> String {
    if time < Duration::from_secs(10) {
        format!("{:.0} ms", milliseconds(time))
    } else {
        spoken(time)
    }
}
