//! Text for desktops that read markup: notifications (their specification, "Markup") and tooltips of tray icons. Pure.

/// Text as it is, for whoever reads markup.
pub(super) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_is_no_markup() {
        let hostile = "<a href=\"https://evil.example\">log in</a> & <b>pay</b>";
        let escaped = escaped(hostile);
        assert!(!escaped.contains(['<', '>']), "{escaped}");
        assert!(
            escaped.starts_with("&lt;a href=\"https://evil.example\"&gt;log in&lt;/a&gt; &amp; ")
        );
    }
}
