//! Markdown as a manual page shows it: a table is a list of terms.

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};
use roff::{Inline, bold, italic, roman};

use super::page::Page;

/// A cell of a table that says that there is nothing.
const NOTHING: &str = "–";

/// Appends the text below the first heading.
pub(crate) fn append(text: &str, page: &mut Page) {
    let mut writer = Writer { page, line: Vec::new(), face: Face::Roman, table: Table::default() };
    let events = Parser::new_ext(text, Options::ENABLE_TABLES);
    for event in events.skip_while(|event| !matches!(event, Event::End(TagEnd::Heading(_)))).skip(1)
    {
        writer.event(event);
    }
}

struct Writer<'a> {
    page: &'a mut Page,
    /// What the line in the making says.
    line: Vec<Inline>,
    face: Face,
    table: Table,
}

enum Face {
    Roman,
    Bold,
    Italic,
    Verbatim,
}

#[derive(Default)]
struct Table {
    head: Vec<Vec<Inline>>,
    row: Vec<Vec<Inline>>,
}

impl Writer<'_> {
    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(&tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) => self.say(&text),
            Event::Code(text) => self.line.push(bold(&*text)),
            Event::SoftBreak | Event::HardBreak => self.line.push(roman(" ")),
            _ => {}
        }
    }

    fn say(&mut self, text: &str) {
        match self.face {
            Face::Roman => self.line.push(roman(text)),
            Face::Bold => self.line.push(bold(text)),
            Face::Italic => self.line.push(italic(text)),
            Face::Verbatim => self.page.verbatim(text),
        }
    }

    fn start(&mut self, tag: &Tag<'_>) {
        match tag {
            Tag::Strong => self.face = Face::Bold,
            Tag::Emphasis => self.face = Face::Italic,
            Tag::CodeBlock(_) => self.face = Face::Verbatim,
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Strong | TagEnd::Emphasis | TagEnd::CodeBlock => self.face = Face::Roman,
            TagEnd::Heading(level) => {
                let (line, mut heading) = (self.take(), String::new());
                line.iter().for_each(|part| heading.push_str(said(part)));
                match level {
                    HeadingLevel::H1 | HeadingLevel::H2 => {
                        self.page.heading(&heading.to_uppercase());
                    }
                    _ => {
                        self.page.roff.control("SS", [heading.as_str()]);
                    }
                }
            }
            TagEnd::Paragraph => {
                let line = self.take();
                self.page.roff.control("PP", []).text(line);
            }
            TagEnd::Item => {
                let line = self.take();
                self.page.roff.control("IP", ["\\(bu", "2"]).text(line);
            }
            TagEnd::TableCell => {
                let cell = self.take();
                self.table.row.push(cell);
            }
            TagEnd::TableHead => self.table.head = std::mem::take(&mut self.table.row),
            TagEnd::TableRow => self.row(),
            _ => {}
        }
    }

    fn take(&mut self) -> Vec<Inline> {
        std::mem::take(&mut self.line)
    }

    /// The first cell is the term, the last one its meaning, and those between are in parentheses behind the term, each
    /// with the heading of its column.
    fn row(&mut self) {
        let mut cells = std::mem::take(&mut self.table.row).into_iter();
        let (term, meaning) =
            (cells.next().unwrap_or_default(), cells.next_back().unwrap_or_default());
        let mut tag: Vec<_> = term.iter().map(|part| bold(said(part))).collect();
        let heads = self.table.head.iter().skip(1);
        let is_nothing = |cell: &[Inline]| matches!(cell, [Inline::Roman(text)] if text == NOTHING);
        let between = heads.zip(cells).filter(|(_, cell)| !is_nothing(cell));
        let mut open = "  (";
        for (head, cell) in between {
            tag.push(roman(open));
            tag.extend(head.iter().cloned());
            tag.push(roman(" "));
            tag.extend(cell);
            open = ", ";
        }
        if open != "  (" {
            tag.push(roman(")"));
        }
        self.page.roff.control("TP", []).text(tag).text(meaning);
    }
}

fn said(part: &Inline) -> &str {
    match part {
        Inline::Roman(text) | Inline::Bold(text) | Inline::Italic(text) => text,
        Inline::LineBreak => " ",
    }
}
