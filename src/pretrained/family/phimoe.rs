//! Phi-3.5 MoE (Abdin et al. 2024): Mixtral with layer norms, biases, and a router that chooses experts one by one.

use super::llama_style::{self, *};
use super::mixture_style;
use super::{ConfigJson, Family};
use crate::config::{Experts, Normalization, PerLayer, Positions, RopeScaling, Routing, Scores};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("phimoe", &["PhimoeForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 6400,
    num_key_value_heads: Some(8),
    vocab_size: 32064,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    rope: Some(Rope { theta: 1e6, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef", "input_jitter_noise"]); // noise of training
    json.expect_only("num_experts_per_tok", 2)?; // the router chooses two, whatever the file says
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.norms.kind = Normalization::LN;
    config.attention.reach = window_everywhere(json, None)?;
    if let Positions::Rotary(PerLayer::All(Some(rotary))) = &mut config.positions {
        match &mut rotary.scaling {
            RopeScaling::None => {}
            RopeScaling::LongRope { attention_factor, .. } => *attention_factor = mscale(json)?,
            other => {
                let why = "only default and longrope are supported here";
                return Err(json.refuse("rope_type", other.rope_type(), why));
            }
        }
    }
    let jitter = json.get_or("router_jitter_noise", 0.01)?;
    let routing = Routing { scores: Scores::SparseMixer { jitter }, ..Routing::softmax() };
    let n_experts = json.get_any(&["num_local_experts", "num_experts"])?.unwrap_or(16);
    let width = config.d_mlp();
    mixture_style::set_experts(&mut config, width, Experts::new(n_experts, 2, routing));
    Ok(config)
}

/// The factor of cosine and sine within the trained context and past it, which must be one.
fn mscale(json: &ConfigJson) -> Result<f64> {
    let parameters = json.object("rope_scaling")?.or(json.object("rope_parameters")?).unwrap_or_default();
    let (short, long): (f64, f64) = (parameters.require("short_mscale")?, parameters.require("long_mscale")?);
    match short == long {
        true => Ok(short),
        false => Err(parameters.refuse("long_mscale", long, "it must be short_mscale, as one factor is supported")),
    }
}

const PARTS: &[Entry] = &[
    entry(Ln1B, "model.layers.{l}.input_layernorm.bias", AsIs),
    entry(Ln2B, "model.layers.{l}.post_attention_layernorm.bias", AsIs),
    entry(LnFinalB, "model.norm.bias", AsIs),
    entry(Router, "model.layers.{l}.block_sparse_moe.gate.weight", AsIs),
    entry(Gate, "model.layers.{l}.block_sparse_moe.experts.{e}.w1.weight", AsIs),
    entry(In, "model.layers.{l}.block_sparse_moe.experts.{e}.w3.weight", AsIs),
    entry(Out, "model.layers.{l}.block_sparse_moe.experts.{e}.w2.weight", AsIs),
];

const HEAD_BIAS: &[Entry] = &[entry(UB, "lm_head.bias", AsIs)];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let head_bias = entries_if(json.get_or("lm_head_bias", false)?, HEAD_BIAS);
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, NORMS, PARTS, head_bias].concat())
}
