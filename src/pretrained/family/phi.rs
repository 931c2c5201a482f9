//! Phi 1 to 2 (Gunasekar et al. 2023; Li et al. 2023): attention and MLP in parallel after one norm, biases everywhere.

use super::llama_style::{self, Defaults, LLAMA};
use super::{ConfigJson, Family};
use crate::config::{MlpKind, Normalization, QkNorm};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
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
    config.attention.qk_norm = json.get_or("qk_layernorm", false)?.then_some(QkNorm::PerHead(Normalization::LN));
    Ok(config)
}

const QK_NORMS: &[Entry] = &[
    entry(QNormW, "model.layers.{l}.self_attn.q_layernorm.weight", AsIs),
    entry(QNormB, "model.layers.{l}.self_attn.q_layernorm.bias", AsIs),
    entry(KNormW, "model.layers.{l}.self_attn.k_layernorm.weight", AsIs),
    entry(KNormB, "model.layers.{l}.self_attn.k_layernorm.bias", AsIs),
];

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let all = [
        entry(WE, "model.embed_tokens.weight", AsIs),
        entry(Ln1W, "model.layers.{l}.input_layernorm.weight", AsIs),
        entry(Ln1B, "model.layers.{l}.input_layernorm.bias", AsIs),
        entry(Q, "model.layers.{l}.self_attn.q_proj.weight", AsIs),
        entry(QB, "model.layers.{l}.self_attn.q_proj.bias", AsIs),
        entry(K, "model.layers.{l}.self_attn.k_proj.weight", AsIs),
        entry(KB, "model.layers.{l}.self_attn.k_proj.bias", AsIs),
        entry(V, "model.layers.{l}.self_attn.v_proj.weight", AsIs),
        entry(VB, "model.layers.{l}.self_attn.v_proj.bias", AsIs),
        entry(O, "model.layers.{l}.self_attn.dense.weight", AsIs),
        entry(OB, "model.layers.{l}.self_attn.dense.bias", AsIs),
        entry(Ln2W, "model.layers.{l}.input_layernorm.weight", AsIs),
        entry(Ln2B, "model.layers.{l}.input_layernorm.bias", AsIs),
        entry(In, "model.layers.{l}.mlp.fc1.weight", AsIs),
        entry(InB, "model.layers.{l}.mlp.fc1.bias", AsIs),
        entry(Out, "model.layers.{l}.mlp.fc2.weight", AsIs),
        entry(OutB, "model.layers.{l}.mlp.fc2.bias", AsIs),
        entry(LnFinalW, "model.final_layernorm.weight", AsIs),
        entry(LnFinalB, "model.final_layernorm.bias", AsIs),
        entry(U, "lm_head.weight", AsIs),
        entry(UB, "lm_head.bias", AsIs),
    ];
    Ok([&all, llama_style::entries_if(config.qk_norm().is_some(), QK_NORMS)].concat())
}
