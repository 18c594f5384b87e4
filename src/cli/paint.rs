//! Colours, where a person looks: on a terminal, and unless `NO_COLOR` is set (no-color.org).

use std::{
    env,
    fmt::Display,
    io::{self, IsTerminal as _},
};

use anstyle::Style;

/// Whether there are colours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paint(bool);

impl Paint {
    /// As standard output wants it.
    #[must_use]
    pub(crate) fn for_stdout() -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self(io::stdout().is_terminal() && !refused)
    }

    /// No colours.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self(false)
    }

    /// The text in this style.
    pub(crate) fn paint(self, style: Style, text: impl Display) -> String {
        if self.0 { format!("{style}{text}{style:#}") } else { text.to_string() }
    }
}
