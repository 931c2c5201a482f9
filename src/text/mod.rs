//! Texts and tokens: the tokenizer, batches of tokens, and what a model can be run on.

#[cfg(feature = "chat")]
pub(crate) mod chat;
pub(crate) mod input;
pub(crate) mod positions;
pub(crate) mod stream;
pub(crate) mod tokenizer;
