//! Arcee's AFM (2025): Llama with a squared ReLU without gates.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("arcee", &["ArceeForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2560,
    intermediate_size: 18432,
    max_position_embeddings: 4096,
    hidden_act: "relu2",
    norm_eps: 1e-5,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    without_gates(&mut config);
    Ok(config)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let mlp_biases = entries_if(json.get_or("mlp_bias", false)?, PLAIN_MLP_BIASES);
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, NORMS, PLAIN_MLP, mlp_biases].concat())
}
