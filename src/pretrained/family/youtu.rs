//! Youtu-LLM (Tencent 2025): a dense Llama with DeepSeek's latent attention.

use super::latent_style::{self, DEEPSEEK};
use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("youtu", &["YoutuForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 6144,
    num_attention_heads: 16,
    vocab_size: 128_256,
    max_position_embeddings: 131_072,
    tie_word_embeddings: true,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["embedding_initializer_range"]);
    latent_style::config(json, &DEFAULTS, DEEPSEEK, json.get_or("rope_interleave", true)?)
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, &latent_style::names(config, json)?, NORMS, MLP].concat())
}
