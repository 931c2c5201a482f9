//! How texts from outside are made visible: tokens whose characters cannot be seen, or would change what is around them.

/// A token as a label: without its control characters, with a mark for line ends, and for spaces where there is nothing else.
pub(super) fn visible(token: &str) -> String {
    if token.chars().all(|c| c == ' ') {
        return "␣".repeat(token.chars().count());
    }
    let mut text = String::with_capacity(token.len());
    for c in token.chars() {
        match c {
            '\n' => text.push('↵'),
            '\t' => text.push('⇥'),
            c if is_unseen(c) => text.extend(c.escape_unicode()),
            c => text.push(c),
        }
    }
    text
}

/// A token in quotes, for sentences: its spaces can be seen.
pub(super) fn quoted(token: &str) -> String {
    format!("\"{}\"", visible(token).replace('␣', " "))
}

/// Control characters and characters that turn the direction of the text around them.
pub(super) fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text of at most `len` characters.
pub(super) fn cut(text: &str, len: usize) -> String {
    match text.chars().nth(len) {
        None => text.into(),
        Some(_) => text.chars().take(len.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// How wide a text is, in characters of a monospaced font: letters of East Asia and emoji take two.
pub(super) fn width(text: &str) -> f64 {
    let wide = |c: char| {
        matches!(u32::from(c), 0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f
            | 0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1faff | 0x20000..=0x3fffd)
    };
    text.chars().map(|c| if wide(c) { 2.0 } else { 1.0 }).sum()
}

/// A number in few characters: about four digits that count.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        _ if value.is_nan() => "no value".into(),
        _ if value.is_infinite() => if value > 0.0 { "∞" } else { "−∞" }.into(),
        0.0 => "0".into(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.2e}"),
        size if size >= 100.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// A number without the zeros that it ends in.
pub(super) fn short(value: f64) -> String {
    let text = number(value);
    match text.contains('.') && !text.contains('e') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_can_be_seen() {
        let cases = [
            ("", ""),
            ("  ", "␣␣"),
            (" to", " to"),
            ("a\n", "a↵"),
            ("\t", "⇥"),
            ("\u{202e}evil", "\\u{202e}evil"),
            ("\u{0}", "\\u{0}"),
        ];
        for (token, label) in cases {
            assert_eq!(visible(token), label);
        }
        assert_eq!(quoted(" to\n"), "\" to↵\"");
        assert_eq!(cut("abcdef", 4), "abc…");
        assert_eq!(width("日本x"), 5.0);
    }

    #[test]
    fn numbers_keep_about_four_digits() {
        let cases = [
            (0.0, "0"),
            (0.5, "0.5000"),
            (-2.25, "-2.250"),
            (1234.5, "1234.5"),
            (1e-5, "1.00e-5"),
            (f64::NAN, "no value"),
        ];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
        assert_eq!([1.0, 0.25, 100.0, 1e-9].map(short), ["1", "0.25", "100", "1.00e-9"]);
    }
}
