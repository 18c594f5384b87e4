//! Colours, where a person looks: on a terminal that can show them, unless `NO_COLOR` is set and not empty (no-color.org).

use std::{
    env,
    fmt::Display,
    io::{self, IsTerminal as _},
};

use anstyle::{AnsiColor, Style};

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const RED: Style = AnsiColor::Red.on_default();
pub(crate) const GREEN: Style = AnsiColor::Green.on_default();
pub(crate) const YELLOW: Style = AnsiColor::Yellow.on_default();

/// Whether there are colours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint(bool);

impl Paint {
    /// As standard output wants it.
    #[must_use]
    pub(crate) fn for_stdout() -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        // terminfo(5) calls a terminal so that has no escape sequences.
        let is_able = env::var_os("TERM").is_some_and(|term| term != "dumb");
        Self(io::stdout().is_terminal() && is_able && !refused)
    }

    /// No colours.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(false)
    }

    #[cfg(feature = "demo")]
    pub(crate) fn has_colours(self) -> bool {
        self.0
    }

    /// The text in this style.
    pub(crate) fn paint(self, style: Style, text: impl Display) -> String {
        if self.0 { format!("{style}{text}{style:#}") } else { text.to_string() }
    }
}
