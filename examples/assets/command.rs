//! Pages of commands (section 8, system administration).

use std::path::Path;

use clap::{Arg, Command};
use roff::{Inline, bold, italic, roman};

use super::page::Page;

const SECTION: &str = "8";

const FILES: [(&str, &str); 6] = [
    ("/etc/roamd/NAME.toml", "The configuration of the tunnel NAME, see roamd.toml(5)."),
    ("/etc/roamd/NAME.key", "Its private key, mode 0600."),
    ("/run/roamd/NAME.sock", "The control socket of its daemon, for root and the group roamd."),
    (
        "/run/roamd/NAME.state",
        "What the daemon has changed on this host, for the next one to undo.",
    ),
    ("/var/lib/roamd/NAME.usage", "What the links of a client carried, for roamd-usage(8)."),
    ("/usr/lib/systemd/system/roamd@.service", "The unit: roamd@NAME runs the tunnel NAME."),
];

const ENVIRONMENT: [(&str, &str); 6] = [
    (
        "ROAMD_CONFIG_DIR",
        "Where configurations are that are named without a path, instead of /etc/roamd.",
    ),
    ("ROAMD_RUNTIME_DIR", "Where daemons have their sockets, instead of /run/roamd."),
    ("HTTPS_PROXY, NO_PROXY", "The proxy of a client without server.proxy."),
    ("NO_COLOR", "No colours when it is set and not empty (no-color.org)."),
    ("TERM", "No colours when it is missing or dumb."),
    ("STATE_DIRECTORY, CREDENTIALS_DIRECTORY", "Set by systemd, see systemd.exec(5)."),
];

/// A page for the command and for each of its own, at any depth.
pub(crate) fn pages(command: &Command, folder: &Path) -> anyhow::Result<()> {
    let mut all = Vec::new();
    collect(command, "roamd", &mut all);
    for (name, command) in &all {
        let mut page = Page::new(name, SECTION, &text(command.get_about()));
        synopsis(&mut page, command);
        description(&mut page, command);
        options(&mut page, command);
        more(&mut page, command, name == "roamd");
        let others = all.iter().map(|(name, _)| (name.as_str(), SECTION));
        // Each page leads to the first one, and that one to all.
        let others = others.filter(|(other, _)| name == "roamd" || *other == "roamd");
        page.see_also(others.chain([("roamd.toml", "5"), ("systemctl", "1"), ("journalctl", "1")]));
        page.write(folder)?;
    }
    Ok(())
}

fn collect<'a>(command: &'a Command, name: &str, all: &mut Vec<(String, &'a Command)>) {
    all.push((name.to_owned(), command));
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        collect(inner, &format!("{name}-{}", inner.get_name()), all);
    }
}

fn text(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

/// The usage that clap prints, with every option.
fn synopsis(page: &mut Page, command: &Command) {
    page.heading("SYNOPSIS");
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    if let Some(usage) = command.clone().get_overridden_usage() {
        return page
            .verbatim(&usage.to_string().lines().map(str::trim).collect::<Vec<_>>().join("\n"));
    }
    let mut line = vec![bold(name)];
    if command.has_subcommands() {
        line.extend([roman(" "), italic("COMMAND")]);
    }
    let (named, placed): (Vec<_>, Vec<_>) = shown(command).partition(|arg| !arg.is_positional());
    for arg in named.into_iter().chain(placed) {
        let (open, close) = if arg.is_required_set() { (" ", "") } else { (" [", "]") };
        line.push(roman(open));
        line.extend(spelled(arg, arg.get_long().is_none()));
        line.push(roman(close));
    }
    page.roff.text(line);
}

/// What the command takes, but for --help.
fn shown(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_id() != "help")
}

/// The option with its value; with its short form, too.
fn spelled(arg: &Arg, short: bool) -> Vec<Inline> {
    let mut words = Vec::new();
    if let Some(letter) = arg.get_short().filter(|_| short) {
        words.push(bold(format!("-{letter}")));
    }
    if let Some(long) = arg.get_long() {
        if !words.is_empty() {
            words.push(roman(", "));
        }
        words.push(bold(format!("--{long}")));
    }
    if arg.is_positional() || arg.get_action().takes_values() {
        let names = arg.get_value_names().unwrap_or_default();
        let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
        if !words.is_empty() {
            words.push(roman(" "));
        }
        words.push(italic(names.join(" ")));
    }
    words
}

fn options(page: &mut Page, command: &Command) {
    if shown(command).next().is_some() {
        page.heading("OPTIONS");
    }
    for arg in shown(command) {
        page.roff.control("TP", []).text(spelled(arg, true));
        page.roff.text([roman(text(arg.get_help()))]);
    }
}

/// What it does, and its commands.
fn description(page: &mut Page, command: &Command) {
    page.section("DESCRIPTION", &[&format!("{}.", text(command.get_about()))]);
    for said in paragraphs(command).iter().filter(|it| headed(it).is_none()) {
        page.paragraph(said);
    }
    if command.has_subcommands() {
        page.heading("COMMANDS");
    }
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        page.term(inner.get_name(), &text(inner.get_about()));
    }
}

fn paragraphs(command: &Command) -> Vec<String> {
    let after = text(command.get_after_help());
    after.split("\n\n").filter(|it| !it.is_empty()).map(str::to_owned).collect()
}

/// The section of its own that a paragraph of the help makes, and what is below it.
fn headed(paragraph: &str) -> Option<(&'static str, &str)> {
    if let Some(examples) = paragraph.strip_prefix("Examples:\n") {
        return Some(("EXAMPLES", examples));
    }
    if let Some(statuses) = paragraph.strip_prefix("Exit status: ") {
        return Some(("EXIT STATUS", statuses));
    }
    paragraph.starts_with("The environment").then_some(("ENVIRONMENT", paragraph))
}

/// Examples, files, environment and exit status; a command's own page points to roamd(8) for the last three.
fn more(page: &mut Page, command: &Command, is_first: bool) {
    let said = paragraphs(command);
    let said: Vec<_> = said.iter().filter_map(|it| headed(it)).collect();
    for (_, examples) in said.iter().filter(|(heading, _)| *heading == "EXAMPLES") {
        page.heading("EXAMPLES");
        let lines: Vec<_> = examples.lines().map(|line| line.trim_start()).collect();
        page.verbatim(&lines.join("\n"));
    }
    if !is_first {
        page.section("FILES, ENVIRONMENT, EXIT STATUS", &["See roamd(8)."]);
        return;
    }
    page.heading("FILES");
    for (file, meaning) in FILES {
        page.term(file, meaning);
    }
    for (heading, text) in said.iter().filter(|(heading, _)| *heading != "EXAMPLES") {
        page.section(heading, &[text]);
        if *heading == "ENVIRONMENT" {
            for (variable, meaning) in ENVIRONMENT {
                page.term(variable, meaning);
            }
        }
    }
}
