//! [`Continuation`]: one row while it grows.

use std::sync::Arc;

use super::history::TokenHistory;
use super::sampler::SequenceState;
use super::stop::{StopReason, StopRules, StopStringMatcher};
use crate::text::stream::TextStream;
use crate::text::tokenizer::Tokenizer;
use crate::{Result, TokenizerError};

/// One row of a batch while it is continued: its tokens, its text, its random numbers, and why it ended.
///
/// Made by [`GenerateOptions::start`](super::GenerateOptions::start), where the example is. A [`Sampler`](super::Sampler)
/// takes a slice of continuations, or of mutable references to those that have not ended.
#[derive(Clone, Debug)]
pub struct Continuation {
    state: SequenceState,
    rules: Arc<StopRules>,
    stream: Option<TextStream>,
    matcher: StopStringMatcher,
    text: String,
    reason: Option<StopReason>,
}

/// What one more token did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The text that became certain: empty while a character is incomplete or a stop string may have begun. Without a
    /// tokenizer it is always empty.
    pub text: String,
    /// Why the continuation ended, if it did.
    pub stop: Option<StopReason>,
}

impl Continuation {
    /// A row that nothing was added to yet. It has ended at once where the prompt fills the context.
    pub(super) fn new(state: SequenceState, rules: &Arc<StopRules>, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        if tokenizer.is_none() && !rules.strings().is_empty() {
            return Err(TokenizerError::Missing.into());
        }
        let prompt = state.history().ids();
        let known = |tokenizer: &Tokenizer| {
            let len = tokenizer.vocab_size() as i64;
            prompt.iter().copied().filter(|&id| id < len).collect::<Vec<_>>()
        };
        let stream = tokenizer.map(|tokenizer| TextStream::after(tokenizer, &known(tokenizer))).transpose()?;
        let reason = rules.length_reached(prompt.len(), 0);
        let (matcher, rules) = (rules.matcher(), rules.clone());
        Ok(Continuation { state, rules, stream, matcher, text: String::new(), reason })
    }

    /// Adds the token that was chosen. Nothing changes where the continuation has ended. A token that only the model has, as
    /// where its vocabulary is padded to a round number, adds no text.
    ///
    /// # Errors
    ///
    /// [`TokenizerError`] if the tokenizer cannot decode the tokens.
    pub fn push(&mut self, id: i64) -> Result<Progress> {
        if self.reason.is_some() {
            return Ok(Progress { text: String::new(), stop: self.reason.clone() });
        }
        let stop_token = self.rules.is_stop_token(id);
        let (mut text, mut found) = (String::new(), None);
        let without_text = stop_token || self.stream.as_ref().is_some_and(|stream| !stream.knows(id));
        if let (Some(stream), false) = (&mut self.stream, without_text) {
            (text, found) = self.matcher.push(&stream.push(id)?);
            // A stop string ends the row with its last token, also where the next one could still change what bytes mean.
            if found.is_none() && !self.rules.strings().is_empty() {
                let (before, string) = self.matcher.clone().push(&stream.tentative()?);
                if string.is_some() {
                    text += &before;
                    found = string;
                }
            }
        }
        self.state.push(id);
        let (new, all) = (self.state.history().new_ids().len(), self.ids().len());
        self.reason = match found {
            _ if stop_token => Some(StopReason::StopToken(id)),
            Some(string) => Some(StopReason::StopString(string)),
            None => self.rules.length_reached(all - new, new),
        };
        if let (Some(stream), Some(StopReason::StopToken(_) | StopReason::MaxNewTokens | StopReason::ContextFull)) =
            (&mut self.stream, &self.reason)
        {
            // What was held back belongs to the text.
            let (rest, found) = self.matcher.push(&stream.finish()?);
            text += &rest;
            text += &self.matcher.finish();
            self.reason = found.map(StopReason::StopString).or(self.reason.take());
        }
        self.text += &text;
        Ok(Progress { text, stop: self.reason.clone() })
    }

    /// All tokens: the prompt's and those added.
    pub fn ids(&self) -> &[i64] {
        self.state.history().ids()
    }

    /// The tokens added after the prompt.
    pub fn new_ids(&self) -> &[i64] {
        self.state.history().new_ids()
    }

    /// How many more tokens there can be.
    pub(crate) fn room(&self) -> usize {
        let new = self.new_ids().len();
        self.rules.room(self.ids().len() - new).saturating_sub(new)
    }

    /// The text so far, without the prompt's. It ends before a stop string or stop token.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Why the continuation ended; `None` while it goes on.
    pub fn stop_reason(&self) -> Option<&StopReason> {
        self.reason.as_ref()
    }
}

impl AsRef<TokenHistory> for Continuation {
    fn as_ref(&self) -> &TokenHistory {
        self.state.history()
    }
}

impl AsMut<SequenceState> for Continuation {
    fn as_mut(&mut self) -> &mut SequenceState {
        &mut self.state
    }
}
