//! BitNet b1.58 (Ma et al. 2024), with its weights in floating point: a gated squared ReLU, and norms before `W_O` and `W_out`.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::Normalization;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("bitnet", &["BitNetForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2560,
    intermediate_size: 6912,
    num_hidden_layers: 30,
    num_attention_heads: 20,
    num_key_value_heads: Some(5),
    vocab_size: 128_256,
    hidden_act: "relu2",
    norm_eps: 1e-5,
    rope: Some(Rope { theta: 500_000.0, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.z_norm = Some(Normalization::RMS);
    config.mlp.iter_mut().for_each(|mlp| mlp.norm = Some(Normalization::RMS));
    Ok(config)
}

const SUB_NORMS: &[Entry] = &[
    entry(ZNormW, "model.layers.{l}.self_attn.attn_sub_norm.weight", AsIs),
    entry(MlpLnW, "model.layers.{l}.mlp.ffn_sub_norm.weight", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, SUB_NORMS, NORMS, MLP].concat())
}
