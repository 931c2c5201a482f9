//! [`UnknownWord`]: a part of a text without a token.

use std::fmt;

/// A part of a text that a tokenizer has no token for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownWord {
    /// The part.
    pub word: String,
    /// Where it begins, in characters of the text.
    pub position: usize,
    /// The token that it becomes; `None` where the tokenizer leaves it out.
    pub becomes: Option<String>,
}

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let UnknownWord { word, position, becomes } = self;
        write!(f, "`{word}`, at character {position} of the text, is not in the tokenizer's vocabulary and would ")?;
        match becomes {
            Some(token) => write!(f, "become `{token}`"),
            None => f.write_str("be left out"),
        }
    }
}
