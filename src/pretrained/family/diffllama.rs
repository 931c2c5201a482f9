//! DiffLlama (Ye et al. 2024; Ma 2025): Llama with differential attention.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("diffllama", &["DiffLlamaForCausalLM"], config, names);

const DEFAULTS: Defaults =
    Defaults { hidden_size: 2048, intermediate_size: 8192, num_hidden_layers: 16, norm_eps: 1e-5, ..LLAMA };

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["lambda_std_dev"]); // of fresh weights
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.differential = true;
    Ok(config)
}

const LAMBDAS: &[Entry] = &[
    entry(LambdaQ1, "model.layers.{l}.self_attn.lambda_q1", AsIs),
    entry(LambdaK1, "model.layers.{l}.self_attn.lambda_k1", AsIs),
    entry(LambdaQ2, "model.layers.{l}.self_attn.lambda_q2", AsIs),
    entry(LambdaK2, "model.layers.{l}.self_attn.lambda_k2", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, LAMBDAS, NORMS, MLP].concat())
}
