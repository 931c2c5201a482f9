//! Gemma 2 (Riviere et al. 2024): Gemma with norms after the sublayers, too, soft caps, and a window on every second layer.

use super::llama_style::{self, attention_biases, layer_types, Defaults, ATTENTION, LLAMA, MLP};
use super::{gemma, ConfigJson, Family};
use crate::config::NormPosition;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("gemma2", &["Gemma2ForCausalLM"], config, names);

/// transformers' defaults.
pub(super) const DEFAULTS: Defaults = Defaults {
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    vocab_size: 256000,
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    ..LLAMA
};

pub(super) fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = like_gemma2(json, &DEFAULTS, |layer| layer % 2 == 0)?;
    config.attention.scores_soft_cap = json.get_unless_null("attn_logit_softcapping", Some(50.0))?;
    config.output_logits_soft_cap = json.get_unless_null("final_logit_softcapping", Some(30.0))?;
    Ok(config)
}

/// What Gemma 2 and 3 share, with a window on these layers unless `layer_types` says which.
pub(super) fn like_gemma2(json: &ConfigJson, default: &Defaults, local: impl Fn(usize) -> bool) -> Result<Config> {
    json.ignore(&["hidden_act"]); // `hidden_activation` is the field that counts
    json.expect_only("use_bidirectional_attention", false)?;
    let mut config = llama_style::config(json, default)?;
    let activation = json.activation(&["hidden_activation"], "gelu_pytorch_tanh")?;
    config.mlp.iter_mut().for_each(|mlp| mlp.activation = activation);
    config.norms.position = NormPosition::BeforeAndAfter;
    config.attention.scale = Some(json.get_or::<f64>("query_pre_attn_scalar", 256.0)?.sqrt());
    let window = json.get_unless_null("sliding_window", Some(4096))?;
    config.attention.reach = layer_types(json, config.n_layers, window, local)?;
    Ok(config)
}

/// The gains of the norms around attention and MLP.
pub(super) const NORMS: &[Entry] = &[
    entry(Ln1W, "model.layers.{l}.input_layernorm.weight", PlusOne),
    entry(Ln1PostW, "model.layers.{l}.post_attention_layernorm.weight", PlusOne),
    entry(Ln2W, "model.layers.{l}.pre_feedforward_layernorm.weight", PlusOne),
    entry(Ln2PostW, "model.layers.{l}.post_feedforward_layernorm.weight", PlusOne),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([gemma::ENDS, ATTENTION, attention_biases(json, false)?, NORMS, MLP].concat())
}
