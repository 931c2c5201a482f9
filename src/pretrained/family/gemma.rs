//! Gemma (Mesnard et al. 2024): Llama with a scaled embedding, and gains stored as their difference from one.

use super::llama_style::{self, attention_biases, Defaults, ATTENTION, LLAMA, MLP};
use super::{ConfigJson, Family};
use crate::config::Activation;
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    architectures: &["GemmaForCausalLM", "gemma"],
    prefix: "",
    config,
    names,
    ignored: &["rotary_emb.inv_freq", "lm_head.weight"],
};

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
    json.only("use_bidirectional_attention", false)?;
    let config = llama_style::config(json, &DEFAULTS)?;
    // The first files say "gelu" and mean its tanh approximation, as transformers knows.
    let act_fn = match config.act_fn {
        Activation::Gelu => Activation::GeluPytorchTanh,
        other => other,
    };
    // transformers 4 let this field count; 5 does not know it.
    if let Some(newer) = json.get::<String>("hidden_activation")? {
        if json.activation(&["hidden_activation"], &newer)? != act_fn {
            return Err(json.refuse("hidden_activation", newer, "it is not what `hidden_act` says"));
        }
    }
    Ok(Config { act_fn, ..config })
}

/// Embedding, last norm, unembedding.
pub(super) fn ends(config: &Config) -> [Entry; 3] {
    let [_, _, u] = llama_style::ends(config);
    [at(WE, "model.embed_tokens.weight", TimesSqrtDModel), at(LnFinalW, "model.norm.weight", PlusOne), u]
}

const NORMS: &[Entry] = &[
    at(Ln1W, "model.layers.{l}.input_layernorm.weight", PlusOne),
    at(Ln2W, "model.layers.{l}.post_attention_layernorm.weight", PlusOne),
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([&ends(config), ATTENTION, attention_biases(json, false)?, NORMS, MLP].concat())
}
