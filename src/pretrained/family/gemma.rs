//! Gemma (Mesnard et al. 2024): Llama with a scaled embedding, and gains stored as their difference from one.

use super::llama_style::{self, attention_biases, Defaults, ATTENTION, LLAMA, MLP};
use super::{ConfigJson, Family};
use crate::config::Activation;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("gemma", &["GemmaForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 3072,
    intermediate_size: 24576,
    num_hidden_layers: 28,
    num_attention_heads: 16,
    num_key_value_heads: Some(16),
    head_dim: Some(256),
    vocab_size: 256000,
    max_position_embeddings: 8192,
    hidden_act: "gelu_pytorch_tanh",
    tie_word_embeddings: true,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.expect_only("use_bidirectional_attention", false)?;
    let mut config = llama_style::config(json, &DEFAULTS)?;
    let Some(mlp) = &mut config.mlp else { return Ok(config) };
    // The first files say "gelu" and mean its tanh approximation, as transformers knows.
    if mlp.activation == Activation::Gelu {
        mlp.activation = Activation::GeluPytorchTanh;
    }
    // transformers 4 let this field count; 5 does not know it.
    if let Some(newer) = json.get::<String>("hidden_activation")?
        && json.activation(&["hidden_activation"], &newer)? != mlp.activation
    {
        return Err(json.refuse("hidden_activation", newer, "it is not what `hidden_act` says"));
    }
    Ok(config)
}

/// Embedding, last norm, unembedding.
pub(super) const ENDS: &[Entry] = &[
    entry(WE, "model.embed_tokens.weight", TimesSqrtDModel),
    entry(LnFinalW, "model.norm.weight", PlusOne),
    entry(U, "lm_head.weight", AsIs),
];

const NORMS: &[Entry] = &[
    entry(Ln1W, "model.layers.{l}.input_layernorm.weight", PlusOne),
    entry(Ln2W, "model.layers.{l}.post_attention_layernorm.weight", PlusOne),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, NORMS, MLP].concat())
}
