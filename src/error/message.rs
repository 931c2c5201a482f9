//! Texts from outside as parts of a sentence.

/// Text from outside, such that a message with it stays readable.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

/// The first line of an error. libtorch appends its C++ backtrace to every message; a user wants the message.
pub(crate) fn first_line(error: &impl ToString) -> String {
    let text = error.to_string();
    let text = text.strip_prefix("Internal torch error: ").unwrap_or(&text);
    text.lines().next().unwrap_or_default().to_string()
}
