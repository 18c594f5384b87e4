//! The drill itself: one link after another.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use anyhow::bail;

use super::{
    plan::{Link, Plan},
    typist::Typist,
};
use crate::{
    cli::{
        interrupt::Interrupt,
        record::{Care, Record, Sample, Watch},
        tally::Tally,
    },
    clock,
    daemon::{
        control::{ControlError, Request},
        status::SwitchStatus,
    },
    host::instance::Instance,
};

/// How long the first echo may take.
const FIRST: Duration = Duration::from_secs(3);
/// How long the tunnel may take to move to a link before it is cut.
const MOVING: Duration = Duration::from_secs(5);
/// How long is typed before each cut, and after it.
const BEFORE: Duration = Duration::from_millis(1500);
const AFTER: Duration = Duration::from_secs(1);
/// How long a link may take after its cut until it works again.
const RETURN: Duration = Duration::from_secs(8);
/// How long one link may carry the tunnel for the sake of a cut, apart from the cut itself: until it carries it, and until the
/// link that was cut works again.
pub(super) const AROUND: Duration =
    MOVING.saturating_add(BEFORE).saturating_add(AFTER).saturating_add(RETURN);
/// The answer to a cut may come so much later than the cut is over.
const PATIENCE: Duration = Duration::from_secs(2);

/// A link that was cut, and what that was like.
pub(super) struct Outcome {
    pub(super) link: Link,
    /// Whether no other link worked.
    pub(super) is_alone: bool,
    pub(super) began: Instant,
    pub(super) ended: Instant,
    /// The longest time without an echo.
    pub(super) stall: Duration,
    /// Keystrokes since the cut began, and how many of them came back.
    pub(super) typed: usize,
    pub(super) echoed: usize,
    /// The link that carried the tunnel when the cut ended, and the median echo over it.
    pub(super) over: Option<String>,
    pub(super) echo: Option<Duration>,
    pub(super) switches: Vec<SwitchStatus>,
    /// What was done about packets that did not arrive.
    pub(super) care: Care,
}

impl Outcome {
    /// Whether the tunnel stayed, although another link worked.
    fn is_failure(&self) -> bool {
        !self.is_alone && self.over.as_ref().is_none_or(|over| *over == self.link.name)
    }
}

/// All that was found out.
pub(super) struct Outcomes {
    pub(super) start: Instant,
    pub(super) end: Instant,
    pub(super) cuts: Vec<Outcome>,
    /// Links to which the tunnel did not move, so that they were not cut.
    pub(super) skipped: Vec<String>,
    pub(super) tally: Tally,
    pub(super) record: Record,
}

impl Outcomes {
    pub(super) fn verdict(&self) -> anyhow::Result<()> {
        let failed = self.cuts.iter().filter(|cut| cut.is_failure());
        let failed: Vec<_> = failed.map(|cut| cut.link.name.as_str()).collect();
        if !failed.is_empty() {
            bail!("the tunnel did not leave {} when it was cut", failed.join(", "));
        }
        if self.cuts.is_empty() {
            bail!("no link was cut");
        }
        Ok(())
    }
}

/// A drill under way.
pub(super) struct Drill<'a> {
    instance: &'a Instance,
    plan: &'a Plan,
    seconds: u32,
    interrupt: &'a Interrupt,
    start: Instant,
    typist: Typist,
    watch: Watch,
    cuts: Vec<Outcome>,
    skipped: Vec<String>,
}

impl<'a> Drill<'a> {
    /// Begins to type, which must be answered.
    pub(super) fn begin(
        instance: &'a Instance,
        plan: &'a Plan,
        seconds: u32,
        interrupt: &'a Interrupt,
    ) -> anyhow::Result<Self> {
        let mut typist = Typist::new(&plan.interface, plan.server, interrupt)?;
        let (start, watch) = (clock::now(), Watch::start(instance.clone())?);
        typist.type_until(start + FIRST, |tally| Ok(tally.echoed() > 0))?;
        if typist.tally.echoed() == 0 && !interrupt.is_set() {
            bail!(
                "{} does not answer a ping through {}, so that nothing can be measured: is it allowed there?",
                plan.server,
                plan.interface
            );
        }
        let (cuts, skipped) = (Vec::new(), Vec::new());
        Ok(Self { instance, plan, seconds, interrupt, start, typist, watch, cuts, skipped })
    }

    /// Cuts one link after another, and tells of each.
    pub(super) fn perform(
        &mut self,
        mut tell: impl FnMut(&Outcome) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let plan = self.plan;
        for (number, link) in plan.links.iter().enumerate() {
            if self.interrupt.is_set() {
                break;
            }
            let is_there = self.use_link(&link.name)?;
            if is_there {
                self.type_for(BEFORE)?;
            }
            if self.interrupt.is_set() {
                break;
            }
            if !is_there {
                self.skipped.push(link.name.clone());
                continue;
            }
            let outcome = self.cut(link)?;
            tell(&outcome)?;
            self.cuts.push(outcome);
            if self.interrupt.is_set() {
                break;
            }
            if number + 1 < plan.links.len() {
                self.await_return(&link.name)?;
            }
        }
        Ok(())
    }

    /// Lets the tunnel choose its link as before.
    pub(super) fn end(self) -> Outcomes {
        let Self { instance, plan, start, typist, watch, cuts, skipped, .. } = self;
        let chosen = plan.chosen.clone().map(|link| Request::Switch { link, pin: false });
        // A link that is gone cannot be chosen again.
        if chosen.is_none_or(|request| instance.tell(&request).is_err()) {
            // A daemon that has ended has nothing to restore.
            let _ = instance.tell(&Request::AutoLink);
        }
        let (end, record) = (clock::now(), watch.record());
        Outcomes { start, end, cuts, skipped, tally: typist.tally, record }
    }

    /// Moves the tunnel to a link; whether it is there.
    fn use_link(&mut self, link: &str) -> anyhow::Result<bool> {
        // Also if it is there: it must not leave before the cut because another link is better.
        let request = Request::Switch { link: link.into(), pin: false };
        match self.instance.tell(&request) {
            // The link may be gone by now.
            Err(ControlError::Refused(_)) => return Ok(false),
            told => told?,
        };
        let (typist, watch, told) = (&mut self.typist, &self.watch, clock::now());
        let is_there = || {
            let sample = watch.last().filter(|sample| sample.at > told);
            sample.and_then(|it| it.link).is_some_and(|it| it == link)
        };
        typist.type_until(told + MOVING, |_| Ok(is_there()))?;
        Ok(is_there())
    }

    fn type_for(&mut self, time: Duration) -> anyhow::Result<()> {
        self.typist.type_until(clock::now() + time, |_| Ok(false))
    }

    fn cut(&mut self, link: &Link) -> anyhow::Result<Outcome> {
        let is_alone = !self.watch.last().is_some_and(|it| it.works_beside(&link.name));
        let began = clock::now();
        let mut cutting = self.instance.cut(&link.name, self.seconds)?;
        let longest = Duration::from_secs(self.seconds.into()) + PATIENCE;
        self.typist.type_until(began + longest, |_| Ok(cutting.is_over()?))?;
        // Interrupted or not, the cut is over.
        drop(cutting);
        let ended = clock::now();
        let over = self.watch.last().and_then(|it| it.link);
        let typed = self.typist.tally.typed();
        if is_alone {
            // The next echo ends the stall.
            self.typist.type_until(ended + RETURN, |tally| Ok(tally.has_echo_since(typed)))?;
        }
        self.type_for(AFTER)?;
        let (now, tally, record) = (clock::now(), &self.typist.tally, self.watch.record());
        let (typed, echoed) = tally.lines_between(began, now - AFTER);
        let switches = record.switches.iter().filter(|switch| (began..ended).contains(&switch.at));
        let switches: Vec<_> = switches.map(|switch| switch.what.clone()).collect();
        let moved = record.switches.iter().rfind(|switch| switch.at < ended).map(|it| it.at);
        let settled = moved.unwrap_or(began).max(began);
        Ok(Outcome {
            link: link.clone(),
            is_alone,
            began,
            ended,
            stall: tally.stall(began, now),
            typed,
            echoed,
            over,
            echo: tally.median_echo_when(|typed| (settled..ended).contains(&typed)),
            switches,
            care: record.care(began, ended),
        })
    }

    /// Waits until a link works again that was cut: it is to step in for the next one.
    fn await_return(&mut self, link: &str) -> anyhow::Result<()> {
        let (instance, request) =
            (self.instance.clone(), Request::Probe { link: Some(link.into()) });
        // The answer is seen in the status.
        thread::spawn(move || instance.tell(&request));
        let (typist, watch) = (&mut self.typist, &self.watch);
        let works = |sample: &Sample| sample.works(link);
        typist.type_until(clock::now() + RETURN, |_| Ok(watch.last().is_some_and(|it| works(&it))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A drill that cut wlan0, after which this link carried the tunnel.
    fn outcomes(is_alone: bool, over: Option<&str>) -> Outcomes {
        let now = clock::now();
        let link = Link { name: "wlan0".into(), is_metered: false, rtt: None };
        let (over, stall) = (over.map(String::from), Duration::ZERO);
        let (switches, care) = (Vec::new(), Care::default());
        let (began, ended, typed, echoed, echo) = (now, now, 0, 0, None);
        let cut = Outcome {
            link,
            is_alone,
            began,
            ended,
            stall,
            typed,
            echoed,
            over,
            echo,
            switches,
            care,
        };
        let (tally, record) = (Tally::default(), Record::default());
        Outcomes { start: now, end: now, cuts: vec![cut], skipped: Vec::new(), tally, record }
    }

    #[test]
    fn a_drill_fails_when_the_tunnel_stayed_although_it_had_another_link_and_when_nothing_was_cut()
    {
        let error = |outcomes: Outcomes| outcomes.verdict().unwrap_err().to_string();
        let stayed = "the tunnel did not leave wlan0 when it was cut";
        assert!(outcomes(false, Some("wwan0")).verdict().is_ok());
        assert!(outcomes(true, Some("wlan0")).verdict().is_ok(), "it had nowhere to go");
        assert_eq!(error(outcomes(false, Some("wlan0"))), stayed);
        assert_eq!(error(outcomes(false, None)), stayed);
        let none = Outcomes { cuts: Vec::new(), ..outcomes(false, None) };
        assert_eq!(error(none), "no link was cut");
    }
}
