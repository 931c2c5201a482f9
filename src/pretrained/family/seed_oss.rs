//! Seed-OSS (ByteDance 2025): Llama with biases on queries, keys and values, and another field for that of the output.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("seed_oss", &["SeedOssForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 27648,
    num_hidden_layers: 64,
    num_attention_heads: 80,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    vocab_size: 155_136,
    max_position_embeddings: 524_288,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["pretraining_tp", "residual_dropout"]);
    llama_style::config(json, &DEFAULTS)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let qkv = entries_if(json.get_or("attention_bias", true)?, QKV_BIASES);
    let out = entries_if(json.get_or("attention_out_bias", false)?, &ATTENTION_BIASES[3..]);
    let mlp = entries_if(json.get_or("mlp_bias", false)?, MLP_BIASES);
    Ok([ENDS, ATTENTION, qkv, out, NORMS, MLP, mlp].concat())
}
