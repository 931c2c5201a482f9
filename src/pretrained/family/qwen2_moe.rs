//! Qwen 2 MoE (Yang et al. 2024): Qwen 2 with mixtures and a shared expert that has a gate.

use super::llama_style::{self, *};
use super::mixture_style::{self, EXPERTS, SHARED_EXPERT};
use super::{ConfigJson, Family};
use crate::config::{Experts, Routing, SharedExpert};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("qwen2_moe", &["Qwen2MoeForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 5632,
    num_hidden_layers: 24,
    num_attention_heads: 16,
    num_key_value_heads: Some(16),
    vocab_size: 151_936,
    max_position_embeddings: 32768,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    let windows: bool = json.get_or("use_sliding_window", false)?;
    let window = json.get_unless_null("sliding_window", Some(4096))?.filter(|_| windows);
    let first: usize = json.get_or("max_window_layers", 28)?;
    let local = |layer: usize| windows && layer.is_multiple_of(2) && layer < first;
    config.attention.reach = layer_types(json, config.n_layers, window, local)?;
    let width = json.get_or("moe_intermediate_size", 1408)?;
    let routing = Routing::softmax().normalized_if(json.get_or("norm_topk_prob", false)?);
    let shared = json.get_or("shared_expert_intermediate_size", 5632)?;
    let experts = Experts {
        shared: Some(SharedExpert { d_mlp: shared, gated: true }),
        dense: mixture_style::sparse_steps(json, &config, &[])?,
        ..Experts::new(json.get_or("num_experts", 60)?, json.get_or("num_experts_per_tok", 4)?, routing)
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

const SHARED_GATE: &[Entry] = &[entry(SharedWeight, "model.layers.{l}.mlp.shared_expert_gate.weight", AsIs)];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = entries_if(json.get_or("qkv_bias", true)?, QKV_BIASES);
    Ok([ENDS, ATTENTION, biases, NORMS, MLP, EXPERTS, SHARED_EXPERT, SHARED_GATE].concat())
}
