//! Helium (Kyutai 2025): Llama with a rotation of neighbouring pairs.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("helium", &["HeliumForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2560,
    intermediate_size: 7040,
    num_hidden_layers: 24,
    num_attention_heads: 20,
    num_key_value_heads: Some(20),
    head_dim: Some(128),
    vocab_size: 48000,
    max_position_embeddings: 4096,
    norm_eps: 1e-8,
    rope: Some(Rope { theta: 100_000.0, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    rotate_adjacent_pairs(&mut config);
    Ok(config)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = entries_if(json.get_or("attention_bias", false)?, QKV_BIASES);
    let mlp_biases = entries_if(json.get_or("mlp_bias", false)?, MLP_BIASES);
    Ok([ENDS, ATTENTION, biases, NORMS, MLP, mlp_biases].concat())
}
