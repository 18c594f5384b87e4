//! Commands that a message tells the user to run.

use crate::{host::instance::Instance, wire::foreign::printable};

/// The command that stops a tunnel.
pub(super) fn stops(tunnel: &Instance) -> String {
    let (name, title) = (tunnel.name(), tunnel.title());
    match name == title {
        true => format!("systemctl stop roamd@{name}"),
        false => format!("nmcli connection down {}", quoted(&title)),
    }
}

/// One word for a shell, and harmless on a terminal.
pub(super) fn quoted(word: &str) -> String {
    let is_plain = |it: char| it.is_ascii_alphanumeric() || "._/+-".contains(it);
    if !word.is_empty() && !word.starts_with('-') && word.chars().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", printable(word, usize::MAX).replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_word_for_a_shell() {
        for (word, expected) in [
            ("/etc/roamd/home.toml", "/etc/roamd/home.toml"),
            ("my tunnel.toml", "'my tunnel.toml'"),
            ("$(reboot);`x`", "'$(reboot);`x`'"),
            ("it's", r"'it'\''s'"),
            ("-rf", "'-rf'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(word), expected);
        }
        assert!(!quoted("a\x1b[2J\n").contains(char::is_control));
    }
}
