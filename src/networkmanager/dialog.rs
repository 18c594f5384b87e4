//! What an agent of NetworkManager is to ask a person for: nmcli, GNOME Shell and nm-applet run a VPN's dialog, which here
//! has no window. It reads the connection and answers which secrets to ask for, in words of "external UI mode":
//!
//! ```text
//!  DATA_KEY=private-key-flags            [VPN Plugin UI]
//!  DATA_VAL=2                            Version=2
//!                                  ──▶   Description=A secret is required to connect to home.
//!  SECRET_KEY=...                        Title=...
//!  SECRET_VAL=...
//!                                        [private-key]
//!  DONE                                  ShouldAsk=true ...
//! ```
//!
//! The left side is what `nm_vpn_service_plugin_read_vpn_details()` of libnm reads, the right side is a key file of GLib's.
//! Pure.

use std::iter;

use zeroize::Zeroizing;

use super::secrets::{is_lacking, is_left_out, is_personal};
use crate::{config::Items, wire::foreign::Foreign};

/// The longest connection that is taken, in bytes.
pub(crate) const LONGEST: usize = 256 * 1024;
/// What the plugin has to say to the person, among the hints (`NM_SECRET_TAG_VPN_MSG` of nm-secret-utils.h).
const MESSAGE: &str = "x-vpn-message:";
const TITLE: &str = "VPN secret required";

/// What an agent says beside the connection.
#[derive(Debug, Default)]
pub(crate) struct Question {
    /// What people call the connection.
    pub name: String,
    /// The secrets that the plugin asks for again, and why.
    pub hints: Vec<String>,
    /// Whether there is a person to ask.
    pub may_ask: bool,
    /// Whether what the agent keeps is wrong.
    pub is_again: bool,
}

impl Question {
    /// The answer for this connection.
    pub(crate) fn answer(&self, connection: &str) -> Zeroizing<String> {
        let items = read(connection);
        // As large as it can become: a copy that is left behind would not be wiped.
        let mut answer = Zeroizing::new(String::with_capacity(2 * connection.len() + 4096));
        let message = self.hints.iter().find_map(|hint| hint.strip_prefix(MESSAGE));
        let message = match message.filter(|it| !it.is_empty()) {
            Some(message) => Foreign::from(message),
            None => Foreign::of(format_args!("A secret is required to connect to {}.", self.name)),
        };
        answer.push_str("[VPN Plugin UI]\nVersion=2\nTitle=");
        answer.push_str(TITLE);
        answer.push_str("\nDescription=");
        escape(message.as_str(), &mut answer);
        answer.push('\n');
        for (name, label) in Items::SECRETS {
            let should_ask = self.may_ask && self.wants(&items, name);
            let known = items.secrets.get(name).filter(|_| !should_ask);
            if !should_ask && known.is_none() {
                continue;
            }
            for part in ["\n[", name, "]\nLabel=", label, "\nIsSecret=true\nShouldAsk="] {
                answer.push_str(part);
            }
            answer.push_str(if should_ask { "true\nValue=" } else { "false\nValue=" });
            escape(known.map_or("", |text| text), &mut answer);
            answer.push('\n');
        }
        answer
    }

    fn wants(&self, items: &Items, name: &str) -> bool {
        self.hints.iter().any(|hint| hint == name)
            || self.is_again && is_personal(items, name)
            || is_lacking(items, name) && !is_left_out(items, name)
    }
}

/// Whether these bytes have the line that ends a connection.
pub(crate) fn is_whole(connection: &[u8]) -> bool {
    connection.starts_with(b"DONE\n") || connection.windows(6).any(|it| it == b"\nDONE\n")
}

/// The items of a connection. A line that begins with "=" goes on with the one before.
fn read(connection: &str) -> Items {
    let mut parts: Vec<(&str, Zeroizing<String>)> = Vec::new();
    let mut lines = connection.lines().take_while(|line| *line != "DONE").peekable();
    while let Some(line) = lines.next() {
        let Some((tag, first)) = line.split_once('=') else { continue };
        let more = iter::from_fn(|| lines.next_if(|line| line.starts_with('=')));
        let text: Vec<_> = iter::once(first).chain(more.map(|line| &line[1..])).collect();
        // Joined at once: a text that grows leaves copies behind, which nobody wipes.
        parts.push((tag, text.join("\n").into()));
    }
    let mut items = Items::default();
    for pair in parts.windows(2) {
        let [(of_key, key), (of_text, text)] = pair else { continue };
        match (*of_key, *of_text) {
            ("DATA_KEY", "DATA_VAL") => _ = items.data.insert(key.to_string(), text.to_string()),
            ("SECRET_KEY", "SECRET_VAL") => {
                items.secrets.insert(key.to_string(), text.clone());
            }
            _ => {}
        }
    }
    items
}

/// Writes a value as GLib's key files have it.
fn escape(text: &str, to: &mut String) {
    let inner = text.trim_start_matches(' ');
    (inner.len()..text.len()).for_each(|_| to.push_str("\\s"));
    for c in inner.chars() {
        match c {
            '\\' => to.push_str("\\\\"),
            '\n' => to.push_str("\\n"),
            '\r' => to.push_str("\\r"),
            '\t' => to.push_str("\\t"),
            c => to.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(hints: &[&str]) -> Question {
        let hints = hints.iter().map(|hint| (*hint).to_owned()).collect();
        Question { name: "home".into(), hints, may_ask: true, is_again: false }
    }

    const HEAD: &str = "[VPN Plugin UI]\nVersion=2\nTitle=VPN secret required\nDescription=";
    const ASKS: &str =
        "\n[private-key]\nLabel=Private key\nIsSecret=true\nShouldAsk=true\nValue=\n";
    const UNSAVED: &str = "DATA_KEY=private-key-flags\nDATA_VAL=2\n\nDONE\nQUIT\n";
    const KNOWN: &str = "DATA_KEY=private-key-flags\nDATA_VAL=1\n\n\
                         SECRET_KEY=private-key\nSECRET_VAL= k\\\n=e\n\nDONE\n\n";

    #[test]
    fn a_secret_that_lacks_is_asked_for() {
        let answer = question(&[]).answer(UNSAVED);
        assert_eq!(*answer, format!("{HEAD}A secret is required to connect to home.\n{ASKS}"));
        // An agent that may not ask is told of nothing.
        let silent = Question { may_ask: false, ..question(&[]) }.answer(UNSAVED);
        assert!(silent.ends_with("home.\n"), "{}", *silent);
    }

    #[test]
    fn what_an_agent_keeps_is_taken_until_the_plugin_asks_for_another() {
        let answer = question(&[]).answer(KNOWN);
        assert!(answer.ends_with("ShouldAsk=false\nValue=\\sk\\\\\\ne\n"), "{}", *answer);
        let hints = ["private-key", "x-vpn-message:no [[peer]] has it\u{1b}"];
        let answer = question(&hints).answer(KNOWN);
        assert_eq!(*answer, format!("{HEAD}no [[peer]] has it\\\\u{{1b}}\n{ASKS}"));
        let again = Question { is_again: true, ..question(&[]) }.answer(KNOWN);
        assert!(again.ends_with(ASKS), "{}", *again);
    }

    #[test]
    fn a_secret_that_networkmanager_keeps_to_itself_is_not_asked_for() {
        let kept = UNSAVED.replace("=2", "=4");
        assert!(question(&[]).answer(&kept).ends_with("home.\n"));
        assert!(question(&["private-key"]).answer(&kept).ends_with(ASKS));
    }

    #[test]
    fn all_that_lacks_is_asked_for_at_once() {
        let both = "DATA_KEY=server.proxy-flags\nDATA_VAL=2\n\nDONE\n\n";
        let answer = question(&["x-vpn-message:"]).answer(both);
        let groups: Vec<_> = answer.lines().filter(|line| line.starts_with('[')).collect();
        assert_eq!(groups, ["[VPN Plugin UI]", "[private-key]", "[server.proxy]"]);
        assert!(answer.contains("connect to home."), "{}", *answer);
    }

    #[test]
    fn neither_a_name_nor_a_hint_adds_a_secret_or_a_line() {
        let name = "home\n[private-key]".to_owned();
        let answer = Question { name, ..question(&["tun.name", "[x]\n[y]"]) }.answer("DONE\n");
        let groups: Vec<_> = answer.lines().filter(|line| line.starts_with('[')).collect();
        assert_eq!(groups, ["[VPN Plugin UI]", "[private-key]"]);
        assert_eq!(answer.lines().count(), 10, "{}", *answer);
    }

    #[test]
    fn a_connection_ends_with_a_line() {
        for (read, is_whole_now) in
            [("DONE\n", true), ("DATA_KEY=DONE\n", false), ("A=b\nDONE", false), (KNOWN, true)]
        {
            assert_eq!(is_whole(read.as_bytes()), is_whole_now, "{read}");
        }
    }
}
