//! IQuest-Coder (2026): Llama with other defaults.

use super::llama_style::{self, *};
use super::{llama, ConfigJson, Family};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    llama_style::family("iquestcoder", &["IQuestCoderForCausalLM", "LlamaForCausalLM"], config, llama::names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 5120,
    intermediate_size: 27648,
    num_hidden_layers: 80,
    num_attention_heads: 40,
    num_key_value_heads: Some(8),
    vocab_size: 76800,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    llama_style::config(json, &DEFAULTS)
}
