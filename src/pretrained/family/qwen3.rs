//! Qwen 3 (Yang et al. 2025): Qwen 2 with norms of queries and keys, head by head, in place of the biases.

use super::llama_style::{self, *};
use super::{qwen2, ConfigJson, Family};
use crate::config::{Normalization, QkNorm};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    architectures: &["Qwen3ForCausalLM", "qwen3"],
    prefix: "",
    config,
    names,
    ignored: &["rotary_emb.inv_freq", "lm_head.weight"],
};

fn config(json: &ConfigJson) -> Result<Config> {
    let defaults = Defaults { head_dim: Some(128), ..qwen2::DEFAULTS };
    let config = qwen2::window_on_later_layers(json, llama_style::config(json, &defaults)?)?;
    Ok(Config { qk_norm: Some(QkNorm::PerHead(Normalization::RMS)), ..config })
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([&ends(config), ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS, MLP].concat())
}
