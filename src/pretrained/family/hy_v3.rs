//! Hunyuan 3 (Tencent 2026): Qwen 3's attention, and mixtures with sigmoids and shared experts.

use super::llama_style::{self, *};
use super::mixture_style;
use super::{ConfigJson, Family};
use crate::config::{ChoiceBias, Experts, Normalization, QkNorm, Routing, WeightNorm};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("hy_v3", &["HYV3ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 13312,
    num_hidden_layers: 80,
    num_attention_heads: 64,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    vocab_size: 120_832,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    rope: Some(Rope { theta: 11_158_840.0, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "enable_moe_fp32_combine"]); // only how a sum is rounded
    json.expect_only("mlp_bias", false)?;
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    let width = json.get_or("moe_intermediate_size", 1536)?;
    let routing = Routing {
        choice_bias: Some(ChoiceBias::OnScores),
        normalize: Some(WeightNorm { p: 1.0, min: 1e-20 }),
        scale: json.get_or("router_scaling_factor", 2.826)?,
        ..Routing::sigmoid()
    };
    let n_experts = json.get_any(&["num_experts", "num_local_experts"])?.unwrap_or(192);
    let experts = Experts {
        shared: mixture_style::shared(json.get_or("num_shared_experts", 1)?, width),
        dense: mixture_style::mlp_layer_types(json, &config, |layer| layer == 0)?,
        ..Experts::new(n_experts, json.get_or("num_experts_per_tok", 8)?, routing)
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

const EXPERTS: &[Entry] = &[
    entry(Router, "model.layers.{l}.mlp.router.gate.weight", AsIs),
    entry(ChoiceB, "model.layers.{l}.mlp.expert_bias", AsIs),
    mixture_style::EXPERTS[1],
    mixture_style::EXPERTS[2],
    mixture_style::EXPERTS[3],
    entry(SharedGate, "model.layers.{l}.mlp.shared_mlp.gate_proj.weight", AsIs),
    entry(SharedIn, "model.layers.{l}.mlp.shared_mlp.up_proj.weight", AsIs),
    entry(SharedOut, "model.layers.{l}.mlp.shared_mlp.down_proj.weight", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS, MLP, EXPERTS].concat())
}
