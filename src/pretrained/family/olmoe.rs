//! OLMoE (Muennighoff et al. 2024): OLMo with norms of queries and keys, whose MLPs are mixtures of experts.

use super::llama_style::{self, *};
use super::{olmo, ConfigJson, Family};
use crate::config::{Experts, MlpKind, Normalization, QkNorm, Routing};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("olmoe", &["OlmoeForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 2048,
    num_hidden_layers: 16,
    num_attention_heads: 16,
    max_position_embeddings: 4096,
    ..olmo::DEFAULTS
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    let num_experts = json.get_any(&["num_local_experts", "num_experts"])?.unwrap_or(64);
    let routing = Routing::softmax().normalized_if(json.get_or("norm_topk_prob", false)?);
    let experts = Experts::new(num_experts, json.get_or("num_experts_per_tok", 8)?, routing);
    llama_style::set_mlp_kind(&mut config, MlpKind::Experts(experts));
    config.attention.qk_norm = Some(QkNorm::AllHeads(Normalization::RMS));
    config.attention.clip_qkv = json.get("clip_qkv")?;
    Ok(config)
}

const EXPERTS: &[Entry] = &[
    entry(Router, "model.layers.{l}.mlp.gate.weight", AsIs),
    entry(Gate, "model.layers.{l}.mlp.experts.{e}.gate_proj.weight", AsIs),
    entry(In, "model.layers.{l}.mlp.experts.{e}.up_proj.weight", AsIs),
    entry(Out, "model.layers.{l}.mlp.experts.{e}.down_proj.weight", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS, EXPERTS].concat())
}
