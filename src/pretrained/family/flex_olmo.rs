//! FlexOlmo (Shi et al. 2025): OLMo 2, whose norms stand after the sublayers, with OLMoE's experts.

use super::llama_style::{self, *};
use super::mixture_style::{self, EXPERTS};
use super::{ConfigJson, Family};
use crate::config::{Experts, NormPosition, Normalization, QkNorm, Routing};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("flex_olmo", &["FlexOlmoForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    vocab_size: 100_352,
    max_position_embeddings: 4096,
    rope: Some(Rope { theta: 500_000.0, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.norms.position = NormPosition::After;
    config.attention.qk_norm = Some(QkNorm::AllHeads(Normalization::RMS));
    let routing = Routing::softmax().normalized_if(json.get_or("norm_topk_prob", false)?);
    let n_experts = json.get_any(&["num_local_experts", "num_experts"])?.unwrap_or(7);
    let experts = Experts::new(n_experts, json.get_or("num_experts_per_tok", 5)?, routing);
    let width = config.d_mlp();
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

const NORMS_AFTER: &[Entry] = &[
    entry(Ln1W, "model.layers.{l}.post_attention_layernorm.weight", AsIs),
    entry(Ln2W, "model.layers.{l}.post_feedforward_layernorm.weight", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS_AFTER, EXPERTS].concat())
}
