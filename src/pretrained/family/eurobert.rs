//! EuroBERT (Boizard et al. 2025): Llama whose queries see all positions.

use super::llama_style::{self, *};
use super::{llama, ConfigJson, Family};
use crate::config::AttentionDir;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("eurobert", &["EuroBertForMaskedLM"], config, llama::names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 768,
    intermediate_size: 3072,
    num_hidden_layers: 12,
    num_attention_heads: 12,
    vocab_size: 128256,
    max_position_embeddings: 8192,
    norm_eps: 1e-5,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["pretraining_tp", "mask_token_id", "classifier_pooling"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.direction = AttentionDir::Bidirectional;
    Ok(config)
}
