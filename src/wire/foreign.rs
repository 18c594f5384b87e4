//! Text of foreign origin: from another host, a packet or another program. It is made printable and short
//! where it enters, so that it can neither end a log line, nor move a terminal's cursor, nor be an assignment
//! of sd_notify(3). Pure.

use std::fmt;

use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use serde::{Deserialize, Serialize};

/// The most characters that are kept: a reason in full, with quinn's words around it.
pub(crate) const LIMIT: usize = 200;

/// Printable text of at most [`LIMIT`] characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct Foreign(String);

impl Foreign {
    /// The text of a foreign error or value.
    #[must_use]
    pub fn of(value: impl fmt::Display) -> Self {
        Self(printable(&value.to_string(), LIMIT))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Foreign {
    fn from(text: &str) -> Self {
        Self(printable(text, LIMIT))
    }
}

impl From<String> for Foreign {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<&[u8]> for Foreign {
    fn from(text: &[u8]) -> Self {
        Self::of(String::from_utf8_lossy(text))
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<C> Encode<C> for Foreign {
    fn encode<W: encode::Write>(
        &self,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), encode::Error<W::Error>> {
        encoder.str(&self.0)?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Foreign {
    fn decode(decoder: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        Ok(decoder.str()?.into())
    }
}

/// Whether a terminal only shows this character. The standard library also escapes control characters, line
/// separators, characters without width, and those that change the direction of text.
#[must_use]
pub(crate) fn is_printable(c: char) -> bool {
    matches!(c, '\\' | '\'' | '"') || c.escape_debug().len() == 1
}

/// The text with all characters that are not printable escaped, cut to `limit` characters.
#[must_use]
pub(crate) fn printable(text: &str, limit: usize) -> String {
    let mut safe = String::with_capacity(text.len().min(limit));
    // Where to cut, should it be too long: before the last character that leaves room for the ellipsis.
    let (mut length, mut cut) = (0, 0);
    for c in text.chars() {
        if length < limit {
            cut = safe.len();
        }
        if is_printable(c) {
            safe.push(c);
            length += 1;
        } else {
            safe.extend(c.escape_debug());
            length += c.escape_debug().len();
        }
        if length > limit {
            safe.truncate(cut);
            safe.push('…');
            break;
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        for (text, shown) in [
            ("x\nFDSTOREREMOVE=1", "x\\nFDSTOREREMOVE=1"),
            ("\x1b[31mred\x07", "\\u{1b}[31mred\\u{7}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("abc\u{202e}def", "abc\\u{202e}def"),
            ("zero\u{200b}width\u{feff}", "zero\\u{200b}width\\u{feff}"),
            ("a\u{2028}b\u{2066}", "a\\u{2028}b\\u{2066}"),
            (
                "roamd 0.1.0, a \"name\" and a back\\slash",
                "roamd 0.1.0, a \"name\" and a back\\slash",
            ),
            ("Grüße, 日本 ✓", "Grüße, 日本 ✓"),
        ] {
            assert_eq!(Foreign::from(text).as_str(), shown);
        }
    }

    #[test]
    fn bytes_that_are_not_utf_8_are_escaped() {
        assert_eq!(Foreign::from(&b"a\xff\nb"[..]).as_str(), "a\u{fffd}\\nb");
    }

    #[test]
    fn truncated_text_is_marked_as_truncated() {
        assert_eq!(printable("abcdef", 6), "abcdef");
        assert_eq!(printable("abcdefg", 6), "abcde…");
        assert_eq!(printable("abcd\nefg", 6), "abcd…");
        assert_eq!(printable("abcd\n", 5), "abcd…");
        assert_eq!(Foreign::from("日".repeat(5000)).as_str().chars().count(), LIMIT);
    }

    proptest! {
        #[test]
        fn any_text_becomes_one_short_printable_line(text in any::<String>(), limit in 1..300usize) {
            let safe = printable(&text, limit);
            prop_assert!(safe.chars().count() <= limit);
            prop_assert!(safe.chars().all(|c| !c.is_control() && is_printable(c)), "{safe:?}");
        }

        #[test]
        fn safe_text_stays_as_it_is(text in any::<String>()) {
            let safe = Foreign::from(text);
            prop_assert_eq!(Foreign::from(safe.as_str()), safe.clone());
            let bytes = minicbor::to_vec(&safe).unwrap();
            prop_assert_eq!(minicbor::decode::<Foreign>(&bytes).unwrap(), safe);
        }
    }
}
