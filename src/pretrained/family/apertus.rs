//! Apertus (Swiss AI 2025): Llama with norms of queries and keys, and a plain MLP with a trained activation function.

use super::llama_style::{self, attention_biases, Defaults, ATTENTION, ENDS, LLAMA, QK_NORMS};
use super::{ConfigJson, Family};
use crate::config::{MlpKind, Normalization, QkNorm, RopeScaling};
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("apertus", &["ApertusForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 14336,
    vocab_size: 131_072,
    max_position_embeddings: 65536,
    hidden_act: "xielu",
    norm_eps: 1e-5,
    rope: Some(Rope { theta: 12e6, scaling: Some(&LLAMA3), ..Rope::DEFAULT }),
    ..LLAMA
};

/// The stretch of a file that has none.
static LLAMA3: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 8192,
};

fn config(json: &ConfigJson) -> Result<Config> {
    // Fields of the first files, which transformers does not know.
    json.only("qk_norm", true)?;
    json.only("post_norm", false)?;
    json.only("mlp_bias", false)?;
    let mut config = llama_style::config(json, &DEFAULTS)?;
    llama_style::set_mlp_kind(&mut config, MlpKind::Plain);
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    Ok(config)
}

const NORMS: &[Entry] = &[
    at(Ln1W, "model.layers.{l}.attention_layernorm.weight", AsIs),
    at(Ln2W, "model.layers.{l}.feedforward_layernorm.weight", AsIs),
];

const MLP: &[Entry] = &[
    at(In, "model.layers.{l}.mlp.up_proj.weight", AsIs),
    at(Out, "model.layers.{l}.mlp.down_proj.weight", AsIs),
    at(XieluAlphaP, "model.layers.{l}.mlp.act_fn.alpha_p", AsIs),
    at(XieluAlphaN, "model.layers.{l}.mlp.act_fn.alpha_n", AsIs),
    at(XieluBeta, "model.layers.{l}.mlp.act_fn.beta", AsIs),
    at(XieluEps, "model.layers.{l}.mlp.act_fn.eps", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS, MLP].concat())
}
