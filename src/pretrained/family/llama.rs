//! Llama 1 to 3.x (Touvron et al. 2023; Grattafiori et al. 2024).

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("llama", &["LlamaForCausalLM"], config, names);

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["pretraining_tp"]);
    llama_style::config(json, &LLAMA)
}

/// Of models that are Llama but for their defaults, too.
pub(super) fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let mlp_biases = entries_if(json.get_or("mlp_bias", false)?, MLP_BIASES);
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, NORMS, MLP, mlp_biases].concat())
}
