//! GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): attention and MLP in parallel, each after its own
//! norm, or one after the other; a partial rotation.

use super::llama_style::{self, entries_if, Defaults, LLAMA};
use super::{ConfigJson, Family};
use crate::config::{MlpKind, Normalization};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_neox",
    architectures: &["GPTNeoXForCausalLM"],
    prefix: "gpt_neox.",
    config,
    names,
    ignored: &["attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"],
    left_out: super::nothing,
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
    json.expect_only("head_dim", config.d_model / config.n_heads.max(1))?;
    json.expect_only("num_key_value_heads", config.n_heads)?;
    json.expect_only("rope_theta", json.get_or(ROPE.theta_field, ROPE.theta)?)?;
    json.expect_only("partial_rotary_factor", json.get_or(ROPE.partial_field, 0.25)?)?;
    llama_style::set_mlp_kind(&mut config, MlpKind::Plain);
    config.norms.kind = Normalization::LN;
    config.parallel_attn_mlp = json.get_or("use_parallel_residual", true)?;
    Ok(config)
}

const ATTENTION_BIASES: &[Entry] = &[
    entry(QB, "gpt_neox.layers.{l}.attention.query_key_value.bias", QkvPerHead(0)),
    entry(KB, "gpt_neox.layers.{l}.attention.query_key_value.bias", QkvPerHead(1)),
    entry(VB, "gpt_neox.layers.{l}.attention.query_key_value.bias", QkvPerHead(2)),
    entry(OB, "gpt_neox.layers.{l}.attention.dense.bias", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let all = [
        entry(WE, "gpt_neox.embed_in.weight", AsIs),
        entry(Ln1W, "gpt_neox.layers.{l}.input_layernorm.weight", AsIs),
        entry(Ln1B, "gpt_neox.layers.{l}.input_layernorm.bias", AsIs),
        entry(Q, "gpt_neox.layers.{l}.attention.query_key_value.weight", QkvPerHead(0)),
        entry(K, "gpt_neox.layers.{l}.attention.query_key_value.weight", QkvPerHead(1)),
        entry(V, "gpt_neox.layers.{l}.attention.query_key_value.weight", QkvPerHead(2)),
        entry(O, "gpt_neox.layers.{l}.attention.dense.weight", AsIs),
        entry(Ln2W, "gpt_neox.layers.{l}.post_attention_layernorm.weight", AsIs),
        entry(Ln2B, "gpt_neox.layers.{l}.post_attention_layernorm.bias", AsIs),
        entry(In, "gpt_neox.layers.{l}.mlp.dense_h_to_4h.weight", AsIs),
        entry(InB, "gpt_neox.layers.{l}.mlp.dense_h_to_4h.bias", AsIs),
        entry(Out, "gpt_neox.layers.{l}.mlp.dense_4h_to_h.weight", AsIs),
        entry(OutB, "gpt_neox.layers.{l}.mlp.dense_4h_to_h.bias", AsIs),
        entry(LnFinalW, "gpt_neox.final_layer_norm.weight", AsIs),
        entry(LnFinalB, "gpt_neox.final_layer_norm.bias", AsIs),
        entry(U, "embed_out.weight", AsIs),
    ];
    Ok([&all, entries_if(json.get_or("attention_bias", true)?, ATTENTION_BIASES)].concat())
}
