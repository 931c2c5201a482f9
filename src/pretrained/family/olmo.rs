//! OLMo (Groeneveld et al. 2024): Llama with layer norms that have neither gain nor bias.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{NormConfig, Normalization};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("olmo", &["OlmoForCausalLM"], config, names);

/// transformers' defaults.
pub(super) const DEFAULTS: Defaults = Defaults { vocab_size: 50304, norm_eps: 1e-5, ..LLAMA };

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.norms = NormConfig::new(Normalization::LNPre); // of 1e-5: transformers has no field for it
    config.attention.clip_qkv = json.get("clip_qkv")?;
    Ok(config)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([&[ENDS[0], ENDS[2]], ATTENTION, attention_biases(json, false)?, MLP].concat())
}
