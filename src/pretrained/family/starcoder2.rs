//! StarCoder 2 (Lozhkov et al. 2024): layer norms, an MLP without gates, biases everywhere, and a window over every layer.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::Normalization;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("starcoder2", &["Starcoder2ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 3072,
    intermediate_size: 12288,
    num_hidden_layers: 30,
    num_attention_heads: 24,
    num_key_value_heads: Some(2),
    vocab_size: 49152,
    max_position_embeddings: 4096,
    hidden_act: "gelu_pytorch_tanh",
    tie_word_embeddings: true,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["residual_dropout", "embedding_dropout"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    without_gates(&mut config);
    config.norms.kind = Normalization::LN;
    config.norms.eps = json.get_or("norm_epsilon", 1e-5)?;
    config.attention.reach = window_everywhere(json, None)?;
    Ok(config)
}

const MLP: &[Entry] =
    &[entry(In, "model.layers.{l}.mlp.c_fc.weight", AsIs), entry(Out, "model.layers.{l}.mlp.c_proj.weight", AsIs)];

const MLP_BIASES: &[Entry] =
    &[entry(InB, "model.layers.{l}.mlp.c_fc.bias", AsIs), entry(OutB, "model.layers.{l}.mlp.c_proj.bias", AsIs)];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let has_biases = json.get_or("use_bias", true)?;
    let biases = [entries_if(has_biases, ATTENTION_BIASES), entries_if(has_biases, MLP_BIASES)];
    Ok([ENDS, ATTENTION, NORMS, NORM_BIASES, MLP, biases[0], biases[1]].concat())
}
