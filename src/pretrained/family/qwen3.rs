//! Qwen 3 (Yang et al. 2025): Qwen 2 with norms of queries and keys, head by head, in place of the biases.

use super::llama_style::{self, *};
use super::{qwen2, ConfigJson, Family};
use crate::config::{Normalization, QkNorm};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("qwen3", &["Qwen3ForCausalLM"], config, names);

fn config(json: &ConfigJson) -> Result<Config> {
    let defaults = Defaults { head_dim: Some(128), ..qwen2::DEFAULTS };
    let mut config = llama_style::config(json, &defaults)?;
    config.attention.reach = qwen2::window_on_later_layers(json, config.n_layers, 28)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    Ok(config)
}

/// Qwen 3 VL's, too.
pub(super) fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS, MLP].concat())
}
