//! OPT (Zhang et al. 2022): GPT-2 with ReLU, and position embeddings that begin at the third row.

use super::gpt2_style::{self, Fields, GPT2};
use super::llama_style::when;
use super::{ConfigJson, Family};
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    Family { model_type: "opt", architectures: &["OPTForCausalLM"], prefix: "model.", config, names, ignored: &[] };

const FIELDS: Fields = Fields {
    d_model: (&["hidden_size"], 768),
    n_layers: (&["num_hidden_layers"], 12),
    n_heads: (&["num_attention_heads"], 12),
    n_ctx: (&["max_position_embeddings"], 2048),
    d_vocab: 50272,
    d_mlp: (&["ffn_dim"], Some(3072)),
    activation: (&["activation_function"], "relu"),
    eps: (&[], 1e-5), // transformers has no field for it
    ..GPT2
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["dropout", "attention_dropout", "activation_dropout", "layerdrop", "init_std"]);
    // OPT-350m alone has its norms after the sublayers, around the whole stream, and a narrower embedding.
    json.only("do_layer_norm_before", true)?;
    json.only("_remove_final_layer_norm", false)?;
    let config = gpt2_style::config(json, &FIELDS)?;
    json.only("word_embed_proj_dim", config.d_model)?;
    Ok(config)
}

const MATRICES: &[Entry] = &[
    at(WE, "model.decoder.embed_tokens.weight", AsIs),
    at(WPos, "model.decoder.embed_positions.weight", RowsFrom(2)),
    at(Q, "model.decoder.layers.{l}.self_attn.q_proj.weight", AsIs),
    at(K, "model.decoder.layers.{l}.self_attn.k_proj.weight", AsIs),
    at(V, "model.decoder.layers.{l}.self_attn.v_proj.weight", AsIs),
    at(O, "model.decoder.layers.{l}.self_attn.out_proj.weight", AsIs),
    at(In, "model.decoder.layers.{l}.fc1.weight", AsIs),
    at(Out, "model.decoder.layers.{l}.fc2.weight", AsIs),
    at(U, "lm_head.weight", AsIs),
];

const BIASES: &[Entry] = &[
    at(QB, "model.decoder.layers.{l}.self_attn.q_proj.bias", AsIs),
    at(KB, "model.decoder.layers.{l}.self_attn.k_proj.bias", AsIs),
    at(VB, "model.decoder.layers.{l}.self_attn.v_proj.bias", AsIs),
    at(OB, "model.decoder.layers.{l}.self_attn.out_proj.bias", AsIs),
    at(InB, "model.decoder.layers.{l}.fc1.bias", AsIs),
    at(OutB, "model.decoder.layers.{l}.fc2.bias", AsIs),
];

const GAINS: &[Entry] = &[
    at(Ln1W, "model.decoder.layers.{l}.self_attn_layer_norm.weight", AsIs),
    at(Ln1B, "model.decoder.layers.{l}.self_attn_layer_norm.bias", AsIs),
    at(Ln2W, "model.decoder.layers.{l}.final_layer_norm.weight", AsIs),
    at(Ln2B, "model.decoder.layers.{l}.final_layer_norm.bias", AsIs),
    at(LnFinalW, "model.decoder.final_layer_norm.weight", AsIs),
    at(LnFinalB, "model.decoder.final_layer_norm.bias", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = when(json.or("enable_bias", true)?, BIASES);
    let gains = when(json.or("layer_norm_elementwise_affine", true)?, GAINS);
    Ok([MATRICES, biases, gains].concat())
}
