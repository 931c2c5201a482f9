//! Jais 2 (MBZUAI 2025): layer norms, a squared ReLU without gates, biases everywhere.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::Normalization;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("jais2", &["Jais2ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 3328,
    intermediate_size: 26624,
    num_attention_heads: 26,
    vocab_size: 150_272,
    max_position_embeddings: 8192,
    hidden_act: "relu2",
    norm_eps: 1e-5,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    without_gates(&mut config);
    config.norms.kind = Normalization::LN;
    Ok(config)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let mlp_biases = entries_if(json.get_or("mlp_bias", true)?, PLAIN_MLP_BIASES);
    Ok([ENDS, ATTENTION, attention_biases(json, true)?, NORMS, NORM_BIASES, PLAIN_MLP, mlp_biases].concat())
}
