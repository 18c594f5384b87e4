//! `roamd watch`: the tunnel live, in a terminal.

mod history;
mod view;

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use anyhow::{Context as _, bail};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};

use self::history::History;
use super::{
    exit::Exit,
    tunnel::{self, Tunnel},
};
use crate::{clock, daemon::control::ControlError, host::instance::Instance};

/// From one look at the daemon to the next.
const PACE: Duration = Duration::from_millis(500);

/// Shows the tunnel until somebody presses q; with `once`, shows it after a few looks and leaves it on the
/// screen.
pub(crate) fn watch(tunnel: Option<&Tunnel>, once: bool) -> anyhow::Result<()> {
    let instance = tunnel::instance(tunnel)?;
    let mut history = History::default();
    if once {
        return print(&instance, &mut history);
    }
    if !io::stdout().is_terminal() {
        let reason =
            anyhow::anyhow!("watch needs a terminal; roamd watch --once prints one picture");
        return Err(Exit::Usage.because(reason));
    }
    let mut terminal = ratatui::try_init().context("cannot use this terminal")?;
    let watched = run(&mut terminal, &instance, &mut history);
    ratatui::restore();
    watched
}

fn run(
    terminal: &mut ratatui::DefaultTerminal,
    instance: &Instance,
    history: &mut History,
) -> anyhow::Result<()> {
    let (mut due, title) = (clock::now(), instance.title());
    loop {
        if clock::now() >= due {
            let error = history.look(instance)?;
            terminal.draw(|frame| view::draw(frame, &title, history, error.as_deref()))?;
            due += PACE;
        }
        if event::poll(due.saturating_duration_since(clock::now()))?
            && let Event::Key(key) = event::read()?
        {
            let ctrl_c =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            if ctrl_c || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                return Ok(());
            }
        }
    }
}

/// The number of samples in one picture.
const LOOKS: usize = 6;

fn print(instance: &Instance, history: &mut History) -> anyhow::Result<()> {
    for look in 0..LOOKS {
        if look > 0 {
            std::thread::sleep(PACE);
        }
        if let Some(error) = history.look(instance)? {
            bail!(error);
        }
    }
    view::print(&instance.title(), history)
}

impl History {
    /// Asks the daemon. What it cannot say for now is a text; an error is for good.
    fn look(&mut self, instance: &Instance) -> Result<Option<String>, ControlError> {
        match instance.status() {
            Ok(status) => {
                self.add(status, clock::now());
                Ok(None)
            }
            Err(error @ ControlError::NotRunning { .. }) if !self.is_empty() => {
                Ok(Some(error.to_string()))
            }
            Err(error) => Err(error),
        }
    }
}
