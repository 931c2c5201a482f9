//! CWM (Meta FAIR 2025): Llama with a window on three layers of four.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{Positions, RopeScaling, Rotary};
use crate::pretrained::parts::Entry;
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("cwm", &["CwmForCausalLM"], config, names);

/// The rotation of a file without `rope_parameters` and `rope_scaling`, whatever its `rope_theta`.
const SCALING: RopeScaling = RopeScaling::Llama3 {
    factor: 16.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 8192,
};

const DEFAULTS: Defaults = Defaults {
    hidden_size: 6144,
    intermediate_size: 21504,
    num_hidden_layers: 64,
    num_attention_heads: 48,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    vocab_size: 128_256,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    rope: Some(Rope { theta: 1e6, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["pretraining_tp"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    if !json.has_any(&["rope_parameters", "rope_scaling"]) {
        config.positions = Positions::rotary(Rotary { scaling: SCALING, ..Rotary::new(config.d_head, 1e6) });
    }
    let window = json.get_unless_null("sliding_window", Some(8192))?.filter(|window| *window > 0);
    config.attention.reach = layer_types(json, config.n_layers, window, |layer| layer % 4 != 0)?;
    Ok(config)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let mlp_biases = entries_if(json.get_or("mlp_bias", false)?, MLP_BIASES);
    Ok([ENDS, ATTENTION, NORMS, MLP, mlp_biases].concat())
}
