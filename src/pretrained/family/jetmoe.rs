//! JetMoE (Shen et al. 2024): a mixture of attention heads that share keys and values, and a mixture of MLPs.

use super::llama_style::{self, *};
use super::mixture_style;
use super::{ConfigJson, Family};
use crate::config::{Experts, HeadExperts, Positions, Routing};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("jetmoe", &["JetMoeForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 5632,
    num_hidden_layers: 12,
    num_key_value_heads: Some(16),
    head_dim: Some(128),
    max_position_embeddings: 4096,
    tie_word_embeddings: true,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    // The number of query heads follows from others, and the width of heads has another name.
    json.ignore(&["output_router_logits", "aux_loss_coef", "num_attention_heads"]);
    let num_experts = json.get_or("num_local_experts", 8)?;
    let experts_per_token = json.get_or("num_experts_per_tok", 2)?;
    let d_head = json.get_any(&["kv_channels", "head_dim"])?.unwrap_or(128);
    let mut config = llama_style::config(json, &Defaults { head_dim: Some(d_head), rope: None, ..DEFAULTS })?;
    config.d_head = d_head;
    config.n_heads = config.n_key_value_heads.saturating_mul(experts_per_token);
    config.positions = Positions::rotary(json.rotary(d_head, config.n_ctx, Rope::DEFAULT)?);
    config.attention.experts = Some(HeadExperts { num_experts, experts_per_token });
    // `rms_norm_eps` is the last norm's.
    (config.norms.last_eps, config.norms.eps) = (Some(config.norms.eps), 1e-6);
    let width = config.d_mlp();
    let experts = Experts::new(num_experts, experts_per_token, Routing::softmax_of_chosen());
    mixture_style::set_experts(&mut config, width, experts);
    if let Some(mlp) = &mut config.mlp {
        mlp.activation = json.activation(&["activation_function"], "silu")?;
    }
    Ok(config)
}

const PARTS: &[Entry] = &[
    entry(HeadRouter, "model.layers.{l}.self_attention.experts.router.layer.weight", AsIs),
    entry(Q, "model.layers.{l}.self_attention.experts.input_linear.weight", HeadExpertRows),
    entry(K, "model.layers.{l}.self_attention.kv_proj.weight", Half(0)),
    entry(V, "model.layers.{l}.self_attention.kv_proj.weight", Half(1)),
    entry(O, "model.layers.{l}.self_attention.experts.output_linear.weight", HeadExpertColumns),
    entry(OB, "model.layers.{l}.self_attention.experts.bias", AsIs),
    entry(Router, "model.layers.{l}.mlp.router.layer.weight", AsIs),
    entry(Gate, "model.layers.{l}.mlp.input_linear.weight", ExpertHalf(0)),
    entry(In, "model.layers.{l}.mlp.input_linear.weight", ExpertHalf(1)),
    entry(Out, "model.layers.{l}.mlp.output_linear.weight", Expert),
    entry(MixtureB, "model.layers.{l}.mlp.bias", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, NORMS, PARTS].concat())
}
