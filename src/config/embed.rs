//! [`EmbedConfig`]: what becomes of tokens before the first block, beside positions.

use serde::{Deserialize, Serialize};

/// What becomes of tokens before the first block, beside positions. The default is GPT-2's: their embeddings are as wide as the stream,
/// and nothing else is added.
///
/// ```
/// use tch_lens::{config::EmbedConfig, Config};
/// let embed = EmbedConfig { token_types: 2, width: Some(16), ..EmbedConfig::default() };
/// let config = Config { embed, ..Config::new(2, 64, 4, 100, 32) };
/// assert_eq!(config.d_embed(), 16);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbedConfig {
    /// The width of the embeddings, where it is not `d_model`: a linear map leads from one to the other (ALBERT, ELECTRA).
    pub width: Option<usize>,
    /// How many types tokens can have, each with an embedding that is added (BERT's segments): 0 where there are none.
    pub token_types: usize,
    /// How many tasks there are, of which the embedding of the first is added (ERNIE): 0 where there are none.
    pub task_types: usize,
    /// The token that masks others. Its embedding is zero, and those of a row's other tokens are multiplied by `0.88 / (1 − share of such
    /// tokens)`, as in training every eighth is masked (ESM).
    pub token_dropout: Option<usize>,
}
