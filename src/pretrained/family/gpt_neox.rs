//! GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): attention and MLP in parallel, each after its own
//! norm, or one after the other; a partial rotation.

use super::llama_style::{self, when, Defaults, LLAMA};
use super::{ConfigJson, Family};
use crate::config::{MlpKind, Normalization};
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_neox",
    architectures: &["GPTNeoXForCausalLM"],
    prefix: "gpt_neox.",
    config,
    names,
    ignored: &["attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"],
};

const ROPE: Rope = Rope {
    theta_field: "rotary_emb_base",
    partial: Some(0.25),
    partial_field: "rotary_pct",
    rounds_up: true,
    ..Rope::DEFAULT
};

const DEFAULTS: Defaults = Defaults {
    hidden_size: 6144,
    intermediate_size: 24576,
    num_hidden_layers: 44,
    num_attention_heads: 64,
    vocab_size: 50432,
    hidden_act: "gelu",
    norm_eps: 1e-5,
    rope: Some(ROPE),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["classifier_dropout", "hidden_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    // Fields that transformers knows elsewhere, and not here.
    json.only("head_dim", config.d_model / config.n_heads.max(1))?;
    json.only("num_key_value_heads", config.n_heads)?;
    json.only("rope_theta", json.or(ROPE.theta_field, ROPE.theta)?)?;
    json.only("partial_rotary_factor", json.or(ROPE.partial_field, 0.25)?)?;
    llama_style::set_mlp_kind(&mut config, MlpKind::Plain);
    config.norms.kind = Normalization::LN;
    config.parallel_attn_mlp = json.or("use_parallel_residual", true)?;
    Ok(config)
}

const ATTENTION_BIASES: &[Entry] = &[
    at(QB, "gpt_neox.layers.{l}.attention.query_key_value.bias", QkvPerHead(0)),
    at(KB, "gpt_neox.layers.{l}.attention.query_key_value.bias", QkvPerHead(1)),
    at(VB, "gpt_neox.layers.{l}.attention.query_key_value.bias", QkvPerHead(2)),
    at(OB, "gpt_neox.layers.{l}.attention.dense.bias", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let all = [
        at(WE, "gpt_neox.embed_in.weight", AsIs),
        at(Ln1W, "gpt_neox.layers.{l}.input_layernorm.weight", AsIs),
        at(Ln1B, "gpt_neox.layers.{l}.input_layernorm.bias", AsIs),
        at(Q, "gpt_neox.layers.{l}.attention.query_key_value.weight", QkvPerHead(0)),
        at(K, "gpt_neox.layers.{l}.attention.query_key_value.weight", QkvPerHead(1)),
        at(V, "gpt_neox.layers.{l}.attention.query_key_value.weight", QkvPerHead(2)),
        at(O, "gpt_neox.layers.{l}.attention.dense.weight", AsIs),
        at(Ln2W, "gpt_neox.layers.{l}.post_attention_layernorm.weight", AsIs),
        at(Ln2B, "gpt_neox.layers.{l}.post_attention_layernorm.bias", AsIs),
        at(In, "gpt_neox.layers.{l}.mlp.dense_h_to_4h.weight", AsIs),
        at(InB, "gpt_neox.layers.{l}.mlp.dense_h_to_4h.bias", AsIs),
        at(Out, "gpt_neox.layers.{l}.mlp.dense_4h_to_h.weight", AsIs),
        at(OutB, "gpt_neox.layers.{l}.mlp.dense_4h_to_h.bias", AsIs),
        at(LnFinalW, "gpt_neox.final_layer_norm.weight", AsIs),
        at(LnFinalB, "gpt_neox.final_layer_norm.bias", AsIs),
        at(U, "embed_out.weight", AsIs),
    ];
    Ok([&all, when(json.or("attention_bias", true)?, ATTENTION_BIASES)].concat())
}
