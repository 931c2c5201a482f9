//! OLMoE (Muennighoff et al. 2024): OLMo with norms of queries and keys, whose MLPs are mixtures of experts.

use super::llama_style::{self, *};
use super::{olmo, ConfigJson, Family};
use crate::config::{self, ExpertGate, Moe, Normalization, QkNorm};
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    architectures: &["OlmoeForCausalLM", "olmoe"],
    prefix: "",
    config,
    names,
    ignored: &["rotary_emb.inv_freq", "lm_head.weight"],
};

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
    let config = llama_style::config(json, &DEFAULTS)?;
    let moe = Moe {
        num_experts: json.any(&["num_local_experts", "num_experts"])?.unwrap_or(64),
        experts_per_token: json.or("num_experts_per_tok", 8)?,
        router: match json.or("norm_topk_prob", false)? {
            true => config::Router::SoftmaxRenormalized,
            false => config::Router::Softmax,
        },
        gate: ExpertGate::Plain,
    };
    let qk_norm = Some(QkNorm::AllHeads(Normalization::RMS));
    Ok(Config { moe: Some(moe), qk_norm, clip_qkv: json.get("clip_qkv")?, ..config })
}

const EXPERTS: &[Entry] = &[
    at(Router, "model.layers.{l}.mlp.gate.weight", AsIs),
    at(Gate, "model.layers.{l}.mlp.experts.{e}.gate_proj.weight", AsIs),
    at(In, "model.layers.{l}.mlp.experts.{e}.up_proj.weight", AsIs),
    at(Out, "model.layers.{l}.mlp.experts.{e}.down_proj.weight", AsIs),
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([&ends(config), ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS, EXPERTS].concat())
}
