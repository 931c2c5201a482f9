//! GLM-4 of 2024 (GLM Team 2024): Llama with gate and linear part in one matrix, and a rotation of neighbouring pairs of half a head.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("glm", &["GlmForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 13696,
    num_hidden_layers: 40,
    num_key_value_heads: Some(2),
    head_dim: Some(128),
    vocab_size: 151_552,
    max_position_embeddings: 131_072,
    norm_eps: 1.5625e-7,
    rope: Some(Rope { partial: Some(0.5), ..Rope::DEFAULT }),
    ..LLAMA
};

/// GLM 4's of 2025, too.
pub(super) fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    rotate_adjacent_pairs(&mut config);
    Ok(config)
}

/// GLM 4's of 2025, too, but for the norms after its sublayers.
pub(super) fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = entries_if(json.get_or("attention_bias", true)?, QKV_BIASES);
    Ok([ENDS, ATTENTION, biases, NORMS, FUSED_MLP].concat())
}
