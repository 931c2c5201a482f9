//! Mixtral (Jiang et al. 2024): Mistral whose MLPs are mixtures of experts.

use super::llama_style::{self, *};
use super::{mistral, ConfigJson, Family};
use crate::config::{Experts, MlpKind, Routing};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("mixtral", &["MixtralForCausalLM"], config, names);

const DEFAULTS: Defaults =
    Defaults { norm_eps: 1e-5, rope: Some(Rope { theta: 1e6, ..Rope::DEFAULT }), ..mistral::DEFAULTS };

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef", "router_jitter_noise"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.reach = window_everywhere(json, None)?;
    let num_experts = json.get_any(&["num_experts", "num_local_experts"])?.unwrap_or(8);
    let per_token = json.get_or("num_experts_per_tok", 2)?;
    let experts = Experts::new(num_experts, per_token, Routing::softmax().normalized());
    llama_style::set_mlp_kind(&mut config, MlpKind::Experts(experts));
    Ok(config)
}

const EXPERTS: &[Entry] = &[
    entry(Router, "model.layers.{l}.block_sparse_moe.gate.weight", AsIs),
    entry(Gate, "model.layers.{l}.block_sparse_moe.experts.{e}.w1.weight", AsIs),
    entry(In, "model.layers.{l}.block_sparse_moe.experts.{e}.w3.weight", AsIs),
    entry(Out, "model.layers.{l}.block_sparse_moe.experts.{e}.w2.weight", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, NORMS, EXPERTS].concat())
}
