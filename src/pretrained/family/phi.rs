//! Phi 1 to 2 (Gunasekar et al. 2023; Li et al. 2023): attention and MLP in parallel after one norm, biases everywhere.

use super::llama_style::{self, Defaults, LLAMA};
use super::{ConfigJson, Family};
use crate::config::{MlpKind, Normalization, QkNorm};
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("phi", &["PhiForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 8192,
    num_hidden_layers: 24,
    vocab_size: 51200,
    hidden_act: "gelu_new",
    norm_eps: 1e-5,
    rope: Some(Rope { partial: Some(0.5), ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["embd_pdrop", "resid_pdrop"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    llama_style::set_mlp_kind(&mut config, MlpKind::Plain);
    config.norms.kind = Normalization::LN;
    config.parallel_attn_mlp = true;
    config.attention.qk_norm = json.or("qk_layernorm", false)?.then_some(QkNorm::PerHead(Normalization::LN));
    Ok(config)
}

const QK_NORMS: &[Entry] = &[
    at(QNormW, "model.layers.{l}.self_attn.q_layernorm.weight", AsIs),
    at(QNormB, "model.layers.{l}.self_attn.q_layernorm.bias", AsIs),
    at(KNormW, "model.layers.{l}.self_attn.k_layernorm.weight", AsIs),
    at(KNormB, "model.layers.{l}.self_attn.k_layernorm.bias", AsIs),
];

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let all = [
        at(WE, "model.embed_tokens.weight", AsIs),
        at(Ln1W, "model.layers.{l}.input_layernorm.weight", AsIs),
        at(Ln1B, "model.layers.{l}.input_layernorm.bias", AsIs),
        at(Q, "model.layers.{l}.self_attn.q_proj.weight", AsIs),
        at(QB, "model.layers.{l}.self_attn.q_proj.bias", AsIs),
        at(K, "model.layers.{l}.self_attn.k_proj.weight", AsIs),
        at(KB, "model.layers.{l}.self_attn.k_proj.bias", AsIs),
        at(V, "model.layers.{l}.self_attn.v_proj.weight", AsIs),
        at(VB, "model.layers.{l}.self_attn.v_proj.bias", AsIs),
        at(O, "model.layers.{l}.self_attn.dense.weight", AsIs),
        at(OB, "model.layers.{l}.self_attn.dense.bias", AsIs),
        at(Ln2W, "model.layers.{l}.input_layernorm.weight", AsIs),
        at(Ln2B, "model.layers.{l}.input_layernorm.bias", AsIs),
        at(In, "model.layers.{l}.mlp.fc1.weight", AsIs),
        at(InB, "model.layers.{l}.mlp.fc1.bias", AsIs),
        at(Out, "model.layers.{l}.mlp.fc2.weight", AsIs),
        at(OutB, "model.layers.{l}.mlp.fc2.bias", AsIs),
        at(LnFinalW, "model.final_layernorm.weight", AsIs),
        at(LnFinalB, "model.final_layernorm.bias", AsIs),
        at(U, "lm_head.weight", AsIs),
        at(UB, "lm_head.bias", AsIs),
    ];
    Ok([&all, llama_style::when(config.qk_norm().is_some(), QK_NORMS)].concat())
}
