//! Nemotron (Parmar et al. 2024): layer norms with gains stored as their difference from one, and a squared ReLU without gates.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::Normalization;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("nemotron", &["NemotronForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 6144,
    intermediate_size: 24576,
    num_attention_heads: 48,
    vocab_size: 256_000,
    max_position_embeddings: 4096,
    hidden_act: "relu2",
    rope: Some(Rope { partial: Some(0.5), ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    without_gates(&mut config);
    config.norms.kind = Normalization::LN;
    config.norms.eps = json.get_or("norm_eps", 1e-5)?;
    Ok(config)
}

const GAINS: &[Entry] = &[
    entry(Ln1W, "model.layers.{l}.input_layernorm.weight", PlusOne),
    entry(Ln2W, "model.layers.{l}.post_attention_layernorm.weight", PlusOne),
    entry(LnFinalW, "model.norm.weight", PlusOne),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let mlp_biases = entries_if(json.get_or("mlp_bias", false)?, PLAIN_MLP_BIASES);
    let ends = [ENDS[0], ENDS[2]];
    Ok([&ends, ATTENTION, attention_biases(json, false)?, GAINS, NORM_BIASES, PLAIN_MLP, mlp_biases].concat())
}
