//! Llama 4 (Meta 2025), text: chunks on most layers and no positions on the others, and mixtures whose experts' input is weighed.

use super::llama4_layers::{dense, reach, rotating};
use super::llama_style::{self, *};
use super::mixture_style;
use super::{ConfigJson, Family};
use crate::config::{
    Experts, Normalization, PerLayer, QkNorm, Routing, SharedExpert, Temperature, TemperatureGrowth, MAX_LAYERS,
};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("llama4_text", &["Llama4ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 5120,
    intermediate_size: 8192,
    num_hidden_layers: 48,
    num_attention_heads: 40,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    vocab_size: 202_048,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    rope: Some(Rope { theta: 500_000.0, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef", "router_jitter_noise"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    let n_layers = config.n_layers.min(MAX_LAYERS); // `Config::validate` refuses more
    let rotates = rotating(json, n_layers)?;
    config.attention.reach = reach(json, n_layers, &rotates)?;
    rotate_adjacent_pairs(&mut config);
    rotate_only(&mut config, |layer| rotates[layer]);
    if json.get_or("use_qk_norm", true)? && rotates.contains(&true) {
        config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
        config.attention.qk_norm_after_rotation = true;
        config.attention.qk_norm_where_rotated = true;
    }
    if json.get_or("attn_temperature_tuning", true)? {
        let tuned = Temperature {
            beta: json.get_or("attn_scale", 0.1)?,
            period: json.get_or("floor_scale", 8192.0)?,
            offset: 1,
            growth: TemperatureGrowth::Logarithmic,
        };
        let of_layer = |layer: usize| (!rotates[layer]).then_some(tuned);
        config.attention.temperature = PerLayer::from_layers((0..n_layers).map(of_layer).collect());
    } else {
        json.ignore(&["attn_scale", "floor_scale"]);
    }
    let width = config.d_mlp();
    let routing = Routing { weighs_input: true, ..Routing::sigmoid() };
    let n_experts = json.get_any(&["num_local_experts", "num_experts"])?.unwrap_or(16);
    let experts = Experts {
        shared: Some(SharedExpert { d_mlp: width, gated: false }),
        dense: dense(json, n_layers)?,
        ..Experts::new(n_experts, json.get_or("num_experts_per_tok", 1)?, routing)
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

const FEED_FORWARD: &[Entry] = &[
    entry(Router, "model.layers.{l}.feed_forward.router.weight", AsIs),
    entry(Gate, "model.layers.{l}.feed_forward.experts.gate_up_proj", ExpertHalfTransposed(0)),
    entry(In, "model.layers.{l}.feed_forward.experts.gate_up_proj", ExpertHalfTransposed(1)),
    entry(Out, "model.layers.{l}.feed_forward.experts.down_proj", ExpertTransposed),
    entry(SharedGate, "model.layers.{l}.feed_forward.shared_expert.gate_proj.weight", AsIs),
    entry(SharedIn, "model.layers.{l}.feed_forward.shared_expert.up_proj.weight", AsIs),
    entry(SharedOut, "model.layers.{l}.feed_forward.shared_expert.down_proj.weight", AsIs),
    entry(Gate, "model.layers.{l}.feed_forward.gate_proj.weight", AsIs),
    entry(In, "model.layers.{l}.feed_forward.up_proj.weight", AsIs),
    entry(Out, "model.layers.{l}.feed_forward.down_proj.weight", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, NORMS, FEED_FORWARD].concat())
}
