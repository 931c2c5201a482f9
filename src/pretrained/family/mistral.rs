//! Mistral (Jiang et al. 2023): Llama with a window over every layer.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("mistral", &["MistralForCausalLM"], config, names);

/// transformers' defaults.
pub(super) const DEFAULTS: Defaults =
    Defaults { intermediate_size: 14336, num_key_value_heads: Some(8), max_position_embeddings: 4096 * 32, ..LLAMA };

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.reach = window_everywhere(json, Some(4096))?;
    Ok(config)
}

/// Of its successors, too.
pub(super) fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, NORMS, MLP].concat())
}
