//! What every manual page has (man-pages(7)).

use std::{fs, path::Path};

use roff::{Roff, bold, roman};

/// A page in the making.
pub(crate) struct Page {
    name: String,
    section: &'static str,
    pub(crate) roff: Roff,
}

impl Page {
    /// The page `name(section)`, which says in a line what its subject is.
    pub(crate) fn new(name: &str, section: &'static str, about: &str) -> Self {
        let mut page = Self { name: name.to_owned(), section, roff: Roff::new() };
        let version = concat!("roamd ", env!("CARGO_PKG_VERSION"));
        page.roff.control("TH", [name, section, "", version, ""]);
        page.heading("NAME");
        page.roff.text([roman(format!("{name} - {about}"))]);
        page
    }

    pub(crate) fn heading(&mut self, heading: &str) {
        self.roff.control("SH", [heading]);
    }

    /// A heading with paragraphs below.
    pub(crate) fn section(&mut self, heading: &str, paragraphs: &[&str]) {
        self.heading(heading);
        for paragraph in paragraphs {
            self.paragraph(paragraph);
        }
    }

    pub(crate) fn paragraph(&mut self, text: &str) {
        self.roff.control("PP", []).text([roman(text)]);
    }

    /// A term and what it means.
    pub(crate) fn term(&mut self, term: &str, meaning: &str) {
        self.roff.control("TP", []).text([bold(term)]).text([roman(meaning)]);
    }

    /// Lines as they are.
    pub(crate) fn verbatim(&mut self, text: &str) {
        self.roff.control("PP", []).control("nf", []).control("RS", ["4"]);
        for line in text.lines() {
            self.roff.text([roman(line)]);
        }
        self.roff.control("RE", []).control("fi", []);
    }

    /// Other pages, each with its section.
    pub(crate) fn see_also<'a>(&mut self, pages: impl IntoIterator<Item = (&'a str, &'a str)>) {
        self.heading("SEE ALSO");
        let own = (self.name.clone(), self.section);
        let mut line = Vec::new();
        for (name, section) in pages.into_iter().filter(|it| *it != (&own.0, own.1)) {
            if !line.is_empty() {
                line.push(roman(", "));
            }
            line.extend([bold(name), roman(format!("({section})"))]);
        }
        self.roff.text(line);
    }

    pub(crate) fn write(&self, folder: &Path) -> std::io::Result<()> {
        fs::write(folder.join(format!("{}.{}", self.name, self.section)), self.roff.to_roff())
    }
}
