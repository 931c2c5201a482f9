//! Flint (2026): Qwen 3 MoE with attention sinks, positions in layers with a window alone, and sigmoids in the router.

use super::llama_style::{self, *};
use super::mixture_style::{self, EXPERTS, SHARED_EXPERT};
use super::{ConfigJson, Family};
use crate::config::{Experts, Normalization, QkNorm, Reach, Routing, SharedExpert};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("flint", &["FlintForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 6144,
    num_hidden_layers: 49,
    num_key_value_heads: Some(4),
    head_dim: Some(128),
    vocab_size: 150_144,
    max_position_embeddings: 262_144,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    config.attention.sinks = true;
    let (n_layers, window) = (config.n_layers, json.get_or("sliding_window", 513)?);
    let global = |layer: usize| layer < 2 || layer % 4 == 1 || layer + 1 == n_layers;
    config.attention.reach = layer_types(json, n_layers, Some(window), |layer| !global(layer))?;
    let reach = config.attention.reach.clone();
    rotate_only(&mut config, |layer| reach.get(layer) != Some(&Reach::Global));
    let routing = Routing::sigmoid().normalized_if(json.get_or("norm_topk_prob", true)?);
    let shared = json.get_or("shared_expert_intermediate_size", 1024)?;
    let experts = Experts {
        shared: Some(SharedExpert { d_mlp: shared, gated: false }),
        dense: mixture_style::sparse_steps(json, &config, &[0, 1])?,
        ..Experts::new(json.get_or("num_experts", 256)?, json.get_or("num_experts_per_tok", 6)?, routing)
    };
    mixture_style::set_experts(&mut config, json.get_or("moe_intermediate_size", 512)?, experts);
    Ok(config)
}

const SINKS: &[Entry] = &[entry(Sinks, "model.layers.{l}.self_attn.softmax_offset", AsIs)];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let attention = [ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, SINKS].concat();
    Ok([&attention, NORMS, MLP, EXPERTS, SHARED_EXPERT].concat())
}
