//! The language models of Qwen 2 VL and Qwen 2.5 VL (Qwen Team 2024, 2025): Qwen 2. The several positions of a token are one in text.

use super::llama_style::{self, *};
use super::{qwen2, ConfigJson, Family};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    llama_style::family("qwen2_vl_text", &["Qwen2VLForConditionalGeneration"], config, qwen2::names);

pub(super) const FAMILY_2_5: Family =
    llama_style::family("qwen2_5_vl_text", &["Qwen2_5_VLForConditionalGeneration"], config, qwen2::names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 8192,
    intermediate_size: 29568,
    num_hidden_layers: 80,
    num_attention_heads: 64,
    num_key_value_heads: Some(8),
    vocab_size: 152_064,
    norm_eps: 1e-5,
    rope: Some(Rope { theta: 1e6, ..Rope::DEFAULT }),
    ..qwen2::DEFAULTS
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.reach = qwen2::window_on_later_layers(json, config.n_layers, 80)?;
    Ok(config)
}
