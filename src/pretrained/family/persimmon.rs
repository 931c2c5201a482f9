//! Persimmon (Adept 2023): layer norms, a squared ReLU without gates, half of a head rotates, and queries and keys have norms with
//! biases.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{Normalization, QkNorm};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("persimmon", &["PersimmonForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 16384,
    num_hidden_layers: 36,
    num_attention_heads: 64,
    vocab_size: 262_144,
    max_position_embeddings: 16384,
    hidden_act: "relu2",
    norm_eps: 1e-5,
    rope: Some(Rope { partial: Some(0.5), ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["hidden_dropout"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    // Fields that transformers knows elsewhere, and not here.
    json.expect_only("head_dim", config.d_model / config.n_heads.max(1))?;
    json.expect_only("num_key_value_heads", config.n_heads)?;
    without_gates(&mut config);
    config.norms.kind = Normalization::LN;
    config.attention.qk_norm = json.get_or("qk_layernorm", true)?.then_some(QkNorm::PerHead(Normalization::LN));
    Ok(config)
}

const QK_NORMS: &[Entry] = &[
    entry(QNormW, "model.layers.{l}.self_attn.q_layernorm.weight", AsIs),
    entry(QNormB, "model.layers.{l}.self_attn.q_layernorm.bias", AsIs),
    entry(KNormW, "model.layers.{l}.self_attn.k_layernorm.weight", AsIs),
    entry(KNormB, "model.layers.{l}.self_attn.k_layernorm.bias", AsIs),
];

const QKV_W: &str = "model.layers.{l}.self_attn.query_key_value.weight";
const QKV_B: &str = "model.layers.{l}.self_attn.query_key_value.bias";

const REST: &[Entry] = &[
    entry(Q, QKV_W, QkvPerHead(0)),
    entry(K, QKV_W, QkvPerHead(1)),
    entry(V, QKV_W, QkvPerHead(2)),
    entry(QB, QKV_B, QkvPerHead(0)),
    entry(KB, QKV_B, QkvPerHead(1)),
    entry(VB, QKV_B, QkvPerHead(2)),
    entry(O, "model.layers.{l}.self_attn.dense.weight", AsIs),
    entry(OB, "model.layers.{l}.self_attn.dense.bias", AsIs),
    entry(In, "model.layers.{l}.mlp.dense_h_to_4h.weight", AsIs),
    entry(InB, "model.layers.{l}.mlp.dense_h_to_4h.bias", AsIs),
    entry(Out, "model.layers.{l}.mlp.dense_4h_to_h.weight", AsIs),
    entry(OutB, "model.layers.{l}.mlp.dense_4h_to_h.bias", AsIs),
    entry(LnFinalW, "model.final_layernorm.weight", AsIs),
    entry(LnFinalB, "model.final_layernorm.bias", AsIs),
];

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let qk_norms = entries_if(config.qk_norm().is_some(), QK_NORMS);
    Ok([&[ENDS[0], ENDS[2]], REST, NORMS, &NORM_BIASES[..2], qk_norms].concat())
}
