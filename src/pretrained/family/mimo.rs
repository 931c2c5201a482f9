//! MiMo V2 Flash (Xiaomi 2025): twice the keys and values, and sinks, in layers with a window, and values of another width.

use super::llama_style::{self, *};
use super::mixture_style::{self, Mixture, CHOICE_BIAS, EXPERTS};
use super::{ConfigJson, Family};
use crate::config::{Heads, Reach};
use crate::pretrained::parts::{entry, Entry, Part, Part::*, View, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("mimo_v2_flash", &["MiMoV2FlashForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 16384,
    num_hidden_layers: 48,
    num_attention_heads: 64,
    num_key_value_heads: Some(4),
    head_dim: Some(192),
    vocab_size: 152_576,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    rope: None,
    ..LLAMA
};

const MIXTURE: Mixture =
    Mixture { experts: 256, per_token: 8, shared: 0, width: 2048, groups: [1, 1], normalized: true, scale: 1.0 };

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.d_value = Some(json.get_or("v_head_dim", 128)?);
    // The hub's files leave the query's own position out.
    let window = match json.get::<usize>("sliding_window_size")? {
        Some(size) => size.saturating_add(1),
        None => json.get_or("sliding_window", 129)?,
    };
    let global = |layer: usize| layer == 0 || (layer + 1).is_multiple_of(6);
    config.attention.reach = layer_types(json, config.n_layers, Some(window), |layer| !global(layer))?;
    let (query, key_value) = (config.n_heads, config.n_key_value_heads.saturating_mul(2));
    config.attention.heads = config.attention.reach.map(|reach| match reach {
        Reach::Global => None,
        _ => Some(Heads { query, key_value, d_head: None }),
    });
    config.attention.sinks = config.use_local_attn();
    config.attention.sinks_where_local = config.attention.sinks;
    let rope = |theta: f64| Rope { theta, partial: Some(0.334), rounds_up: true, ..Rope::DEFAULT };
    config.positions = rotations_by_reach(json, &config, rope(5e6), rope(10000.0))?;
    let dense = mixture_style::mlp_layer_types(json, &config, |layer| layer == 0)?;
    mixture_style::set_deepseek_experts(json, &mut config, &MIXTURE, dense)?;
    Ok(config)
}

const SINKS: &[Entry] = &[entry(Sinks, "model.layers.{l}.self_attn.attention_sink_bias", AsIs)];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = entries_if(json.get_or("attention_bias", false)?, QKV_BIASES);
    let mut table = [ENDS, ATTENTION, biases, SINKS, NORMS, MLP, EXPERTS, CHOICE_BIAS].concat();
    let factor = super::granite::factor(json, "attention_value_scale", 0.707)?;
    for entry in table.iter_mut().filter(|entry| matches!(entry.part, Part::V | Part::VB) && factor != 1.0) {
        entry.view = View::Times(factor);
    }
    Ok(table)
}
