//! Laguna (Poolside 2026): numbers of heads, windows and rotations that differ from layer to layer, and gates of what heads have mixed.

use super::llama_style::{self, *};
use super::mixture_style::{self, EXPERTS, SHARED_EXPERT};
use super::{ConfigJson, Family};
use crate::config::{
    ChoiceBias, Experts, GateFunction, HeadGate, Heads, Normalization, PerLayer, QkNorm, Routing, SharedExpert,
};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("laguna", &["LagunaForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 8192,
    num_hidden_layers: 40,
    num_attention_heads: 48,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    vocab_size: 100_352,
    max_position_embeddings: 131_072,
    rope: None,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef"]);
    json.expect_only("moe_apply_router_weight_on_input", false)?;
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    config.attention.gate = Some(HeadGate { per_head: gates_heads(json)?, function: GateFunction::Softplus });
    if let Some(heads) = json.get::<Vec<usize>>("num_attention_heads_per_layer")? {
        let key_value = config.n_key_value_heads;
        let own = |query: usize| (query != config.n_heads).then_some(Heads { query, key_value, d_head: None });
        if heads.len() != config.n_layers {
            let why = format!("it must have one entry for each of the {} layers", config.n_layers);
            return Err(json.refuse("num_attention_heads_per_layer", format!("a list of {}", heads.len()), &why));
        }
        config.attention.heads = PerLayer::from_layers(heads.into_iter().map(own).collect());
    }
    let window = json.get_or("sliding_window", 512)?;
    config.attention.reach = layer_types(json, config.n_layers, Some(window), |_| false)?;
    let global = Rope { theta: 500_000.0, partial: Some(0.5), rounds_up: true, ..Rope::DEFAULT };
    let local = Rope { partial: Some(1.0), rounds_up: true, ..Rope::DEFAULT };
    config.positions = rotations_by_reach(json, &config, global, local)?;
    let cap: f64 = json.get_or("moe_router_logit_softcapping", 0.0)?;
    let routing = Routing {
        logits_soft_cap: (cap > 0.0).then_some(cap),
        choice_bias: Some(ChoiceBias::OnScores),
        scale: json.get_or("moe_routed_scaling_factor", 1.0)?,
        ..Routing::sigmoid().normalized()
    };
    let shared = json.get_or("shared_expert_intermediate_size", 512)?;
    let experts = Experts {
        shared: Some(SharedExpert { d_mlp: shared, gated: false }),
        dense: mixture_style::mlp_layer_types(json, &config, |layer| layer == 0)?,
        ..Experts::new(json.get_or("num_experts", 256)?, json.get_or("num_experts_per_tok", 8)?, routing)
    };
    mixture_style::set_experts(&mut config, json.get_or("moe_intermediate_size", 512)?, experts);
    Ok(config)
}

/// Whether there is one gate for each head.
fn gates_heads(json: &ConfigJson) -> Result<bool> {
    let gating: serde_json::Value = json.get_or("gating", true.into())?;
    Ok(gating == true || gating == "per-head")
}

const PARTS: &[Entry] = &[
    entry(HeadGate, "model.layers.{l}.self_attn.g_proj.weight", AsIs),
    entry(ChoiceB, "model.layers.{l}.mlp.experts.e_score_correction_bias", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let attention = [ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, PARTS].concat();
    Ok([&attention, NORMS, MLP, EXPERTS, SHARED_EXPERT].concat())
}
