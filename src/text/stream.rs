//! [`TextStream`]: the text of tokens as they come.

use super::tokenizer::Tokenizer;
use crate::Result;

/// The text of tokens as they come, in pieces that never split a character.
///
/// All pieces together are what [`Tokenizer::decode`] makes of all tokens: a character of several tokens appears with its
/// last one, and the space before a word stays where the whole text has it.
///
/// ```
/// use tch_lens::{HookedTransformer, TextStream};
/// let model = HookedTransformer::toy()?;
/// let tokenizer = model.tokenizer()?;
/// let mut stream = TextStream::after(tokenizer, &tokenizer.encode("Mary and", true)?)?;
/// let mut text = String::new();
/// for id in tokenizer.encode(" John went to the shop", false)? {
///     text += &stream.push(id)?;
/// }
/// text += &stream.finish()?;
/// assert_eq!(text, " John went to the shop");
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TextStream {
    tokenizer: Tokenizer,
    /// The last tokens whose text is complete, and those after them.
    window: Vec<i64>,
    /// How many of `window` are complete: decoders look at the token before, some at whether a token is the first.
    complete: usize,
    /// The part of `window`'s text that was handed out, with the complete tokens' text.
    shown: String,
}

impl TextStream {
    /// A stream that begins with the first token of a text.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        TextStream { tokenizer: tokenizer.clone(), window: Vec::new(), complete: 0, shown: String::new() }
    }

    /// A stream that begins after a prompt, whose text is not part of it. A character that the prompt leaves incomplete is.
    ///
    /// # Errors
    ///
    /// [`Error::TokenOutOfRange`](crate::Error::TokenOutOfRange) for an id outside the vocabulary.
    pub fn after(tokenizer: &Tokenizer, prompt: &[i64]) -> Result<Self> {
        let mut stream = TextStream::new(tokenizer);
        for &id in prompt {
            stream.push(id)?;
        }
        Ok(stream)
    }

    /// Whether an id lies within the tokenizer's vocabulary.
    pub(crate) fn knows(&self, id: i64) -> bool {
        usize::try_from(id).is_ok_and(|id| id < self.tokenizer.vocab_size())
    }

    /// Adds a token, and gives the text that is certain with it: empty while a character is incomplete.
    ///
    /// # Errors
    ///
    /// [`Error::TokenOutOfRange`](crate::Error::TokenOutOfRange) for an id outside the vocabulary.
    pub fn push(&mut self, id: i64) -> Result<String> {
        if !self.tokenizer.has_token(id)? {
            return Ok(String::new()); // a gap in the vocabulary: it has no text, and decoders do not see it
        }
        self.window.push(id);
        // Consecutive bytes are decoded together: the next one can still change what they mean.
        if self.tokenizer.is_byte(id)? {
            return Ok(String::new());
        }
        let text = self.tokenizer.decode(&self.window)?;
        // The bytes of an incomplete character decode to one replacement character at the end.
        let certain = text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&text);
        let new = self.show(certain);
        if certain.len() == text.len() && !new.is_empty() {
            self.window.drain(..self.complete);
            self.complete = self.window.len();
            self.shown = self.tokenizer.decode(&self.window)?;
        }
        Ok(new)
    }

    /// The text that the next tokens could still change, as it would be without them; incomplete characters left out.
    pub(crate) fn tentative(&self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window)?;
        Ok(self.clone().show(text.trim_end_matches(char::REPLACEMENT_CHARACTER)))
    }

    /// The text that is left, as no token follows: U+FFFD for an incomplete character. The stream can go on with another text.
    ///
    /// # Errors
    ///
    /// None but the tokenizer's own.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.window)?;
        let new = self.show(&text);
        self.window.clear();
        self.complete = 0;
        self.shown.clear();
        Ok(new)
    }

    /// What `text`, the window's, adds to what was shown.
    fn show(&mut self, text: &str) -> String {
        let common = self.shown.chars().zip(text.chars()).take_while(|(old, new)| old == new);
        let new = text[common.map(|(old, _)| old.len_utf8()).sum()..].to_string();
        if text.len() >= self.shown.len() {
            self.shown = text.to_string();
        }
        new
    }
}
