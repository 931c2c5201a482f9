//! OPT (Zhang et al. 2022): GPT-2 with ReLU, and position embeddings that begin at the third row.

use super::gpt2_style::{self, Fields, GPT2};
use super::llama_style::entries_if;
use super::{ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    Family { prefix: "model.", ignored: &[], ..gpt2_style::family("opt", &["OPTForCausalLM"], config, names) };

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
    json.expect_only("do_layer_norm_before", true)?;
    json.expect_only("_remove_final_layer_norm", false)?;
    let config = gpt2_style::config(json, &FIELDS)?;
    json.expect_only("word_embed_proj_dim", config.d_model)?;
    Ok(config)
}

const MATRICES: &[Entry] = &[
    entry(WE, "model.decoder.embed_tokens.weight", AsIs),
    entry(WPos, "model.decoder.embed_positions.weight", RowsFrom(2)),
    entry(Q, "model.decoder.layers.{l}.self_attn.q_proj.weight", AsIs),
    entry(K, "model.decoder.layers.{l}.self_attn.k_proj.weight", AsIs),
    entry(V, "model.decoder.layers.{l}.self_attn.v_proj.weight", AsIs),
    entry(O, "model.decoder.layers.{l}.self_attn.out_proj.weight", AsIs),
    entry(In, "model.decoder.layers.{l}.fc1.weight", AsIs),
    entry(Out, "model.decoder.layers.{l}.fc2.weight", AsIs),
    entry(U, "lm_head.weight", AsIs),
];

const BIASES: &[Entry] = &[
    entry(QB, "model.decoder.layers.{l}.self_attn.q_proj.bias", AsIs),
    entry(KB, "model.decoder.layers.{l}.self_attn.k_proj.bias", AsIs),
    entry(VB, "model.decoder.layers.{l}.self_attn.v_proj.bias", AsIs),
    entry(OB, "model.decoder.layers.{l}.self_attn.out_proj.bias", AsIs),
    entry(InB, "model.decoder.layers.{l}.fc1.bias", AsIs),
    entry(OutB, "model.decoder.layers.{l}.fc2.bias", AsIs),
];

const GAINS: &[Entry] = &[
    entry(Ln1W, "model.decoder.layers.{l}.self_attn_layer_norm.weight", AsIs),
    entry(Ln1B, "model.decoder.layers.{l}.self_attn_layer_norm.bias", AsIs),
    entry(Ln2W, "model.decoder.layers.{l}.final_layer_norm.weight", AsIs),
    entry(Ln2B, "model.decoder.layers.{l}.final_layer_norm.bias", AsIs),
    entry(LnFinalW, "model.decoder.final_layer_norm.weight", AsIs),
    entry(LnFinalB, "model.decoder.final_layer_norm.bias", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = entries_if(json.get_or("enable_bias", true)?, BIASES);
    let gains = entries_if(json.get_or("layer_norm_elementwise_affine", true)?, GAINS);
    Ok([MATRICES, biases, gains].concat())
}
