//! What answers on port 80 of the server's address.

use crate::link::portal::{HOST, is_portal};

/// Reads `data` as that answer.
///
/// A portal is seen only in an answer of HTTP that has the status 511, or leads to another host. In an answer of
/// plain form, all that a line-by-line reading takes for a portal is one.
pub fn portal(data: &[u8]) {
    let found = is_portal(data);
    let text = String::from_utf8_lossy(data);
    // A reader skips empty lines in front (RFC 9112 §2.2).
    let answer = text.trim_start_matches(['\r', '\n']);
    let lines: Vec<_> = answer.split('\n').collect();
    let expected = is_expected(&lines);
    assert!(expected || !found, "taken for a portal: {text:?}");
    if answer.len() == text.len() && is_plain(&lines) {
        assert_eq!(found, expected, "{text:?}");
    }
}

fn is_expected(lines: &[&str]) -> bool {
    let Some(status) = lines[0].strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)) else {
        return false;
    };
    let mut targets = lines[1..].iter().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("location").then(|| value.trim())
    });
    let leads_away = |target: &str| target.starts_with("http") && !target.contains(HOST);
    status == "511"
        || matches!(status, "302" | "303" | "307") && targets.next().is_some_and(leads_away)
}

/// A whole answer whose lines are all of the form that every reader takes (RFC 9112 §4, §5).
fn is_plain(lines: &[&str]) -> bool {
    let [status, headers @ .., "\r", ""] = lines else { return false };
    let is_token = |name: &str| {
        !name.is_empty() && name.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'-')
    };
    let is_visible = |text: &str| text.bytes().all(|it| matches!(it, b' '..=b'~'));
    let is_header = |line: &&str| {
        line.strip_suffix('\r')
            .and_then(|line| line.split_once(": "))
            .is_some_and(|(name, value)| is_token(name) && is_visible(value))
    };
    let is_status = status.strip_suffix('\r').is_some_and(|line| {
        let mut parts = line.splitn(3, ' ');
        matches!(parts.next(), Some("HTTP/1.0" | "HTTP/1.1"))
            && parts
                .next()
                .is_some_and(|code| code.len() == 3 && code.bytes().all(|it| it.is_ascii_digit()))
            && parts.next().is_some_and(is_visible)
    });
    is_status && headers.len() <= 64 && headers.iter().all(is_header)
}
