//! Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases on queries, keys and values, and a window on the later layers.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{PerLayer, Reach};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("qwen2", &["Qwen2ForCausalLM"], config, names);

/// transformers' defaults.
pub(super) const DEFAULTS: Defaults = Defaults {
    intermediate_size: 22016,
    num_key_value_heads: Some(32),
    vocab_size: 151936,
    max_position_embeddings: 32768,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.expect_only("use_mrope", false)?;
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.reach = window_on_later_layers(json, config.n_layers, 28)?;
    Ok(config)
}

/// `use_sliding_window`, from layer `max_window_layers` (or `first`) on unless `layer_types` says which.
pub(super) fn window_on_later_layers(json: &ConfigJson, n_layers: usize, first: usize) -> Result<PerLayer<Reach>> {
    let window = json.get_unless_null("sliding_window", Some(4096))?;
    let window = if json.get_or("use_sliding_window", false)? { window } else { None };
    let first = json.get_or("max_window_layers", first)?;
    layer_types(json, n_layers, window, |layer| window.is_some() && layer >= first)
}

/// Of Qwen 2's successors, too.
pub(super) fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, QKV_BIASES, NORMS, MLP].concat())
}
