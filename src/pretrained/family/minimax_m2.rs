//! MiniMax M2 (MiniMax 2025): norms of all queries and keys together, a partial rotation, and a mixture in every layer.

use super::llama_style::{self, *};
use super::mixture_style;
use super::{ConfigJson, Family};
use crate::config::{ChoiceBias, Experts, Normalization, QkNorm, Routing};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("minimax_m2", &["MiniMaxM2ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 3072,
    intermediate_size: 1536,
    num_hidden_layers: 62,
    num_attention_heads: 48,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    vocab_size: 200_064,
    max_position_embeddings: 196_608,
    rope: Some(Rope { theta: 5e6, partial: Some(1.0), rounds_up: true, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef", "router_jitter_noise"]);
    let mut default = DEFAULTS;
    if let (Some(dim), Some(rope)) = (json.get::<f64>("rotary_dim")?, &mut default.rope) {
        rope.partial = Some(dim / json.get_or("head_dim", 128)? as f64);
    }
    let mut config = llama_style::config(json, &default)?;
    config.attention.qk_norm = Some(QkNorm::AllHeads(Normalization::RMS));
    let routing = Routing { choice_bias: Some(ChoiceBias::OnScores), ..Routing::sigmoid().normalized() };
    let n_experts = json.get_any(&["num_local_experts", "num_experts"])?.unwrap_or(256);
    let experts = Experts::new(n_experts, json.get_or("num_experts_per_tok", 8)?, routing);
    let width = config.d_mlp();
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

const EXPERTS: &[Entry] = &[
    entry(Router, "model.layers.{l}.block_sparse_moe.gate.weight", AsIs),
    entry(ChoiceB, "model.layers.{l}.block_sparse_moe.e_score_correction_bias", AsIs),
    entry(Gate, "model.layers.{l}.block_sparse_moe.experts.{e}.w1.weight", AsIs),
    entry(In, "model.layers.{l}.block_sparse_moe.experts.{e}.w3.weight", AsIs),
    entry(Out, "model.layers.{l}.block_sparse_moe.experts.{e}.w2.weight", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, QK_NORMS, NORMS, EXPERTS].concat())
}
