//! Apertus (Swiss AI 2025): Llama with norms of queries and keys, and a plain MLP with a trained activation function.

use super::llama_style::{self, attention_biases, Defaults, ATTENTION, ENDS, LLAMA, QK_NORMS};
use super::{ConfigJson, Family};
use crate::config::{MlpKind, Normalization, QkNorm, RopeScaling};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
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

/// The scaling of a file without rotary fields.
static LLAMA3: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 8192,
};

fn config(json: &ConfigJson) -> Result<Config> {
    // Fields of the first files, which transformers does not know.
    json.expect_only("qk_norm", true)?;
    json.expect_only("post_norm", false)?;
    json.expect_only("mlp_bias", false)?;
    let mut config = llama_style::config(json, &DEFAULTS)?;
    llama_style::set_mlp_kind(&mut config, MlpKind::Plain);
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    Ok(config)
}

const NORMS: &[Entry] = &[
    entry(Ln1W, "model.layers.{l}.attention_layernorm.weight", AsIs),
    entry(Ln2W, "model.layers.{l}.feedforward_layernorm.weight", AsIs),
];

const MLP: &[Entry] = &[
    entry(In, "model.layers.{l}.mlp.up_proj.weight", AsIs),
    entry(Out, "model.layers.{l}.mlp.down_proj.weight", AsIs),
    entry(XieluAlphaP, "model.layers.{l}.mlp.act_fn.alpha_p", AsIs),
    entry(XieluAlphaN, "model.layers.{l}.mlp.act_fn.alpha_n", AsIs),
    entry(XieluBeta, "model.layers.{l}.mlp.act_fn.beta", AsIs),
    entry(XieluEps, "model.layers.{l}.mlp.act_fn.eps", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS, MLP].concat())
}
