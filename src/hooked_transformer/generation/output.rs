//! [`Generated`]: what a generation gives, and [`GenerationStep`], what one step of it gives.

use tch::Tensor;

use crate::cache::ActivationCache;
use crate::generate::{Continuation, StopReason};
use crate::model::KeyValueStore;
use crate::text::input::Tokens;
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result, TokenizerError};

/// What one step of a generation gives: the next token of each row that went on.
#[derive(Debug)]
pub struct GenerationStep {
    /// The number of tokens that were generated before.
    pub step: usize,
    /// The rows that went on, in order.
    pub rows: Vec<RowStep>,
    /// What their tokens were chosen from, before sampling options: `[row, d_vocab_out]`, if asked for.
    pub logits: Option<Tensor>,
}

/// The next token of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowStep {
    /// The row of the batch.
    pub row: usize,
    /// The token.
    pub id: i64,
    /// The text that became certain: empty while a character is incomplete or a stop string may have begun.
    pub text: String,
    /// Why the row ended, if it did.
    pub stop: Option<StopReason>,
    /// The entropy of the model's distribution in nats, if asked for.
    pub entropy: Option<f64>,
}

/// What a generation gives.
#[derive(Debug)]
pub struct Generated {
    /// The rows: their tokens, their text and why they ended. Those of the first prompt come first.
    pub rows: Vec<Continuation>,
    /// Prompts and continuations: `[row, column]`. Padding stands where the prompts have it, and after a row's end.
    pub tokens: Tokens,
    /// Each row's logits, before sampling options: `[new token, d_vocab_out]`, if asked for.
    pub logits: Option<Vec<Tensor>>,
    /// The entropy of the model's distribution at each new token of each row, in nats, if asked for.
    pub entropies: Option<Vec<Vec<f64>>>,
    /// The activations of all positions, if asked for.
    pub cache: Option<ActivationCache>,
    /// Keys and values of the positions that were run, unless `use_past_kv_cache` is off: all but the last one, or all if a cache was asked for.
    pub past: Option<KeyValueStore>,
    /// How many times the model was run.
    pub runs: usize,
    pub(super) tokenizer: Option<Tokenizer>,
}

impl Generated {
    /// A token as text; without a tokenizer, and for ids that it does not know, as `<id 7>`.
    #[cfg(feature = "view")]
    pub(crate) fn token_text(&self, id: i64) -> String {
        self.tokenizer.as_ref().map_or_else(|| format!("<id {id}>"), |tokenizer| tokenizer.text_or_number(id))
    }

    /// The whole text of a row: its prompt and what was generated, special tokens included.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`]; [`Error::SliceOutOfRange`] if there is no such row.
    pub fn text(&self, row: usize) -> Result<String> {
        let tokenizer = self.tokenizer.as_ref().ok_or(TokenizerError::Missing)?;
        match self.rows.get(row) {
            Some(row) => tokenizer.decode(row.ids()),
            None => {
                let len = self.rows.len() as i64;
                Err(Error::SliceOutOfRange { slice: format!("index {row}"), axis: "batch", len })
            }
        }
    }
}
