//! AFMoE (Arcee 2025): gates of what the heads have mixed, positions in layers with a window alone, norms before and after the sublayers.

use super::llama_style::{self, *};
use super::mixture_style::{self, SHARED_EXPERTS};
use super::{ConfigJson, Family};
use crate::config::{
    ChoiceBias, Experts, GateFunction, HeadGate, NormPosition, Normalization, QkNorm, Reach, Routing, WeightNorm,
};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("afmoe", &["AfmoeForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 6144,
    num_attention_heads: 16,
    head_dim: Some(128),
    vocab_size: 200_192,
    max_position_embeddings: 16384,
    norm_eps: 1e-5,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    config.attention.gate = Some(HeadGate { per_head: false, function: GateFunction::Sigmoid });
    config.norms.position = NormPosition::BeforeAndAfter;
    let every: usize = json.get_or("global_attn_every_n_layers", 4)?;
    let window = json.get_unless_null("sliding_window", Some(1024))?;
    config.attention.reach = layer_types(json, config.n_layers, window, |layer| (layer + 1) % every.max(1) != 0)?;
    let reach = config.attention.reach.clone();
    rotate_only(&mut config, |layer| reach.get(layer) != Some(&Reach::Global));
    let width = json.get_or("moe_intermediate_size", 1408)?;
    let dense: usize = json.get_or("num_dense_layers", 1)?;
    let routing = Routing {
        choice_bias: Some(ChoiceBias::OnScores),
        normalize: Some(WeightNorm { p: 1.0, min: 1e-20 }),
        scale: json.get_or("route_scale", 1.0)?,
        ..Routing::sigmoid()
    };
    let experts = Experts {
        shared: mixture_style::shared(json.get_or("num_shared_experts", 2)?, width),
        dense: mixture_style::dense_layers(&config, |layer| layer < dense),
        ..Experts::new(json.get_or("num_experts", 64)?, json.get_or("num_experts_per_tok", 6)?, routing)
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

const PARTS: &[Entry] = &[
    entry(HeadGate, "model.layers.{l}.self_attn.gate_proj.weight", AsIs),
    entry(Ln1W, "model.layers.{l}.input_layernorm.weight", AsIs),
    entry(Ln1PostW, "model.layers.{l}.post_attention_layernorm.weight", AsIs),
    entry(Ln2W, "model.layers.{l}.pre_mlp_layernorm.weight", AsIs),
    entry(Ln2PostW, "model.layers.{l}.post_mlp_layernorm.weight", AsIs),
    entry(Router, "model.layers.{l}.mlp.router.gate.weight", AsIs),
    entry(ChoiceB, "model.layers.{l}.mlp.expert_bias", AsIs),
    mixture_style::EXPERTS[1],
    mixture_style::EXPERTS[2],
    mixture_style::EXPERTS[3],
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let mut ends = ENDS.to_vec();
    if json.get_or("mup_enabled", false)? {
        ends[0].view = Times((config.d_model as f64).sqrt());
    }
    let biases = attention_biases(json, false)?;
    Ok([&ends, ATTENTION, biases, QK_NORMS, PARTS, MLP, SHARED_EXPERTS].concat())
}
