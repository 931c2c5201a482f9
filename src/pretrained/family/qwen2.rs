//! Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases on queries, keys and values, and a window on the later layers.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    architectures: &["Qwen2ForCausalLM", "qwen2"],
    prefix: "",
    config,
    names,
    ignored: &["rotary_emb.inv_freq", "lm_head.weight"],
};

/// What transformers takes where the file is silent.
pub(super) const DEFAULTS: Defaults = Defaults {
    intermediate_size: 22016,
    num_key_value_heads: Some(32),
    vocab_size: 151936,
    max_position_embeddings: 32768,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.only("use_mrope", false)?;
    window_on_later_layers(json, llama_style::config(json, &DEFAULTS)?)
}

/// `use_sliding_window`, from layer `max_window_layers` on unless `layer_types` says which.
pub(super) fn window_on_later_layers(json: &ConfigJson, config: Config) -> Result<Config> {
    let window = json.unless_null("sliding_window", Some(4096))?;
    let window_size = if json.or("use_sliding_window", false)? { window } else { None };
    let first = json.or("max_window_layers", 28)?;
    let attn_types = layer_types(json, config.n_layers, |layer| window_size.is_some() && layer >= first)?;
    Ok(Config { window_size, attn_types, ..config })
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([&ends(config), ATTENTION, QKV_BIASES, NORMS, MLP].concat())
}
