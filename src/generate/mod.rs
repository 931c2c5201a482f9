//! From logits to the next token: samplers, penalties, conditions that end a continuation, and its text as it grows.
//!
//! The functions that change scores are plain: logits `[batch, d_vocab]` in, scores of the same shape out, and each
//! equals the logits processor of transformers that its docs name. [`SamplingOptions`] chooses among them, and a
//! [`Sampler`] applies them in transformers' order and picks a token for each row. [`GenerateOptions`] adds what ends a
//! continuation; a [`Continuation`] is one row of a batch while it grows: tokens, text and the reason why it ended.
//!
//! Each row has its own random numbers and its own history, so that it gets what it would get alone.

pub(crate) mod continuation;
mod filters;
pub(crate) mod history;
pub(crate) mod options;
mod penalties;
mod random;
pub(crate) mod sampler;
pub(crate) mod sampling_options;
mod stop;

pub use continuation::{Continuation, Progress};
pub use filters::{epsilon_cutoff, eta_cutoff, min_p, temperature, top_k, top_p, typical_p};
pub use history::TokenHistory;
pub use options::GenerateOptions;
pub use penalties::{
    allow_tokens, bias_tokens, forbid_sequences, forbid_tokens, frequency_penalty, no_repeat_ngrams, presence_penalty,
    repetition_penalty,
};
pub use sampler::{Sampler, SequenceState};
pub use sampling_options::SamplingOptions;
pub use stop::{StopReason, StopRules, StopStringMatcher};
