//! On which line of the file each key stands.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table};

use super::problem::ConfigErrors;

/// The line, from 1, of every key and every list element by its path.
#[derive(Debug)]
pub(super) struct Lines {
    /// Where each line of the file ends, in bytes from its beginning.
    ends: Vec<usize>,
    lines: HashMap<String, usize>,
}

impl Lines {
    /// Parses `text`; gives what is in it as well.
    pub(super) fn new(path: &Path, text: &str) -> Result<(Self, Table), ConfigErrors> {
        let syntax = |error: toml::de::Error| {
            let (line, column) = position(text, error.span());
            let message = one_line(error.message());
            ConfigErrors::Syntax { path: path.into(), line, column, message }
        };
        let root = DeTable::parse(text).map_err(syntax)?;
        // Numbers are looked into only here.
        let table = toml::from_str(text).map_err(syntax)?;
        let ends = text.match_indices('\n').map(|(end, _)| end).collect();
        let mut lines = Self { ends, lines: HashMap::new() };
        lines.add_table("", root.get_ref());
        Ok((lines, table))
    }

    /// The line of `key`, or else of the nearest table around it; and whether it is set there.
    pub(super) fn of(&self, key: &str) -> (Option<usize>, bool) {
        let mut path = key;
        loop {
            if let Some(line) = self.lines.get(path) {
                // A single text is a list of one, whose element has no line of its own.
                let is_set = path == key || key[path.len()..].starts_with('[');
                return (Some(*line), is_set);
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return (None, false),
            }
        }
    }

    fn add_table(&mut self, path: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = join(path, key.get_ref());
            self.add(path.clone(), key.span());
            self.add_inside(&path, value);
        }
    }

    fn add_inside(&mut self, path: &str, value: &Spanned<DeValue<'_>>) {
        if let Some(table) = value.get_ref().as_table() {
            self.add_table(path, table);
        }
        for (index, element) in value.get_ref().as_array().into_iter().flatten().enumerate() {
            let path = format!("{path}[{index}]");
            self.add(path.clone(), element.span());
            self.add_inside(&path, element);
        }
    }

    fn add(&mut self, path: String, span: Range<usize>) {
        let before = self.ends.partition_point(|end| *end < span.start);
        self.lines.insert(path, before + 1);
    }
}

/// The path of a key in the table at `path`; quoted, as in TOML, where it is no bare key.
pub(super) fn join(path: &str, key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let key = match !key.is_empty() && key.chars().all(is_bare) {
        true => key.to_owned(),
        false => format!("{key:?}"),
    };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

fn position(text: &str, span: Option<Range<usize>>) -> (usize, usize) {
    let start = span.map_or(0, |span| span.start).min(text.len());
    let before = text.get(..start).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or(before);
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

fn one_line(message: &str) -> String {
    message.lines().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "role = 'server'\n[tun]\naddresses = [\n  'a',\n  'b',\n]\n\
                        [[peer]]\nname = 'x'\n[[peer]]\nname = 'y'\n";

    #[test]
    fn keys_and_elements_are_on_their_own_lines() {
        let (lines, _) = Lines::new(Path::new("x"), TEXT).unwrap();
        for (key, line) in
            [("role", 1), ("tun.addresses", 3), ("tun.addresses[1]", 5), ("peer[1].name", 10)]
        {
            assert_eq!(lines.of(key), (Some(line), true), "{key}");
        }
    }

    #[test]
    fn a_missing_key_is_reported_on_the_line_of_its_table() {
        let (lines, _) = Lines::new(Path::new("x"), TEXT).unwrap();
        assert_eq!(lines.of("tun.mtu"), (Some(2), false));
        assert_eq!(lines.of("peer[1].public-key"), (Some(9), false));
        assert_eq!(lines.of("listen"), (None, false));
    }

    #[test]
    fn a_single_text_is_the_element_of_its_list() {
        let (lines, _) = Lines::new(Path::new("x"), "a = 'b'").unwrap();
        assert_eq!(lines.of("a[0]"), (Some(1), true));
    }

    #[test]
    fn a_number_that_is_too_large_is_reported_with_its_line() {
        let text = "[tun]\nmtu = 99999999999999999999\n";
        let error = Lines::new(Path::new("x"), text).unwrap_err();
        assert!(matches!(error, ConfigErrors::Syntax { line: 2, .. }), "{error}");
    }

    #[test]
    fn columns_count_characters() {
        let error = Lines::new(Path::new("x"), "a = 1\n\"é\" = = 2\n").unwrap_err();
        assert!(matches!(error, ConfigErrors::Syntax { line: 2, column: 7, .. }), "{error}");
    }
}
