//! BioGPT (Luo et al. 2022): a scaled embedding, and position embeddings that begin at the third row.

use super::gpt2_style::{self, Fields, GPT2};
use super::{ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    Family { prefix: "biogpt.", ignored: &[], ..gpt2_style::family("biogpt", &["BioGptForCausalLM"], config, names) };

const FIELDS: Fields = Fields {
    d_model: (&["hidden_size"], 1024),
    n_layers: (&["num_hidden_layers"], 24),
    n_heads: (&["num_attention_heads"], 16),
    n_ctx: (&["max_position_embeddings"], 1024),
    d_vocab: 42384,
    d_mlp: (&["intermediate_size"], Some(4096)),
    activation: (&["hidden_act"], "gelu"),
    eps: (&[], 1e-5), // transformers does not use `layer_norm_eps`
    ..GPT2
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["activation_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob", "layerdrop"]);
    json.ignore(&["layer_norm_eps"]);
    gpt2_style::config(json, &FIELDS)
}

/// The blocks and the last norm, of XGLM too; `root` is `biogpt` or `model`.
macro_rules! blocks {
    ($root:literal) => {
        &[
            entry(Q, concat!($root, ".layers.{l}.self_attn.q_proj.weight"), AsIs),
            entry(QB, concat!($root, ".layers.{l}.self_attn.q_proj.bias"), AsIs),
            entry(K, concat!($root, ".layers.{l}.self_attn.k_proj.weight"), AsIs),
            entry(KB, concat!($root, ".layers.{l}.self_attn.k_proj.bias"), AsIs),
            entry(V, concat!($root, ".layers.{l}.self_attn.v_proj.weight"), AsIs),
            entry(VB, concat!($root, ".layers.{l}.self_attn.v_proj.bias"), AsIs),
            entry(O, concat!($root, ".layers.{l}.self_attn.out_proj.weight"), AsIs),
            entry(OB, concat!($root, ".layers.{l}.self_attn.out_proj.bias"), AsIs),
            entry(In, concat!($root, ".layers.{l}.fc1.weight"), AsIs),
            entry(InB, concat!($root, ".layers.{l}.fc1.bias"), AsIs),
            entry(Out, concat!($root, ".layers.{l}.fc2.weight"), AsIs),
            entry(OutB, concat!($root, ".layers.{l}.fc2.bias"), AsIs),
            entry(Ln1W, concat!($root, ".layers.{l}.self_attn_layer_norm.weight"), AsIs),
            entry(Ln1B, concat!($root, ".layers.{l}.self_attn_layer_norm.bias"), AsIs),
            entry(Ln2W, concat!($root, ".layers.{l}.final_layer_norm.weight"), AsIs),
            entry(Ln2B, concat!($root, ".layers.{l}.final_layer_norm.bias"), AsIs),
            entry(LnFinalW, concat!($root, ".layer_norm.weight"), AsIs),
            entry(LnFinalB, concat!($root, ".layer_norm.bias"), AsIs),
        ]
    };
}
pub(super) use blocks;

const BLOCKS: &[Entry] = blocks!("biogpt");

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let scaled = json.get_or("scale_embedding", true)?;
    let ends = [
        entry(WE, "biogpt.embed_tokens.weight", if scaled { TimesSqrtDModel } else { AsIs }),
        entry(WPos, "biogpt.embed_positions.weight", RowsFrom(2)),
        entry(U, "output_projection.weight", AsIs),
    ];
    Ok([&ends, BLOCKS].concat())
}
