//! Mistral (Jiang et al. 2023): Llama with a window over every layer.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    architectures: &["MistralForCausalLM", "mistral"],
    prefix: "",
    config,
    names,
    ignored: &["rotary_emb.inv_freq", "lm_head.weight"],
};

/// What transformers takes where the file is silent.
pub(super) const DEFAULTS: Defaults =
    Defaults { intermediate_size: 14336, num_key_value_heads: Some(8), max_position_embeddings: 4096 * 32, ..LLAMA };

fn config(json: &ConfigJson) -> Result<Config> {
    window_everywhere(json, Some(4096), llama_style::config(json, &DEFAULTS)?)
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([&ends(config), ATTENTION, NORMS, MLP].concat())
}
