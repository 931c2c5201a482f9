//! CTRL (Keskar et al. 2019): sines and cosines for positions, and a scaled embedding.

use super::gpt2_style::{self, Fields, GPT2};
use super::{ConfigJson, Family};
use crate::config::{Positions, Sinusoids};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    Family { ignored: &[], ..gpt2_style::family("ctrl", &["CTRLLMHeadModel"], config, names) };

const FIELDS: Fields = Fields {
    d_model: (&["hidden_size", "n_embd"], 1280),
    n_layers: (&["num_hidden_layers", "n_layer"], 48),
    n_heads: (&["num_attention_heads", "n_head"], 16),
    n_ctx: (&["max_position_embeddings", "n_positions"], 256),
    d_vocab: 246_534,
    d_mlp: (&["dff"], Some(8192)),
    activation: (&[], "relu"),
    eps: (&[], 1e-6), // of the blocks: transformers has no field for it
    ..GPT2
};

fn config(json: &ConfigJson) -> Result<Config> {
    gpt2_style::ignore_training(json);
    json.ignore(&["n_ctx"]);
    let mut config = gpt2_style::config(json, &FIELDS)?;
    config.norms.last_eps = Some(json.get_or("layer_norm_epsilon", 1e-6)?);
    config.positions = Positions::Sinusoidal(Sinusoids { offset: 0, steps: config.d_model / 2 });
    Ok(config)
}

const NAMES: &[Entry] = &[
    entry(WE, "transformer.w.weight", TimesSqrtDModel),
    entry(Ln1W, "transformer.h.{l}.layernorm1.weight", AsIs),
    entry(Ln1B, "transformer.h.{l}.layernorm1.bias", AsIs),
    entry(Q, "transformer.h.{l}.multi_head_attention.Wq.weight", AsIs),
    entry(QB, "transformer.h.{l}.multi_head_attention.Wq.bias", AsIs),
    entry(K, "transformer.h.{l}.multi_head_attention.Wk.weight", AsIs),
    entry(KB, "transformer.h.{l}.multi_head_attention.Wk.bias", AsIs),
    entry(V, "transformer.h.{l}.multi_head_attention.Wv.weight", AsIs),
    entry(VB, "transformer.h.{l}.multi_head_attention.Wv.bias", AsIs),
    entry(O, "transformer.h.{l}.multi_head_attention.dense.weight", AsIs),
    entry(OB, "transformer.h.{l}.multi_head_attention.dense.bias", AsIs),
    entry(Ln2W, "transformer.h.{l}.layernorm2.weight", AsIs),
    entry(Ln2B, "transformer.h.{l}.layernorm2.bias", AsIs),
    entry(In, "transformer.h.{l}.ffn.0.weight", AsIs),
    entry(InB, "transformer.h.{l}.ffn.0.bias", AsIs),
    entry(Out, "transformer.h.{l}.ffn.2.weight", AsIs),
    entry(OutB, "transformer.h.{l}.ffn.2.bias", AsIs),
    entry(LnFinalW, "transformer.layernorm.weight", AsIs),
    entry(LnFinalB, "transformer.layernorm.bias", AsIs),
    entry(U, "lm_head.weight", AsIs),
    entry(UB, "lm_head.bias", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok(NAMES.to_vec())
}
