//! GPT-2 (Radford et al. 2019), and as Stanford trained it: scores divided by the layer's number.

use super::{ConfigJson, Family};
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    architectures: &["GPT2LMHeadModel", "gpt2"],
    prefix: "transformer.",
    config,
    names,
    ignored: &["attn.bias", "attn.masked_bias", "lm_head.weight"],
};

fn config(json: &ConfigJson) -> Result<Config> {
    let config = config_with(json, "gelu_new")?;
    let scale_attn_by_inverse_layer_idx = json.or("scale_attn_by_inverse_layer_idx", false)?;
    Ok(Config { scale_attn_by_inverse_layer_idx, ..config })
}

/// The fields that GPT-2 and GPTBigCode share, under either of the names that transformers takes.
pub(super) fn config_with(json: &ConfigJson, act_fn: &str) -> Result<Config> {
    json.ignore(&["attn_pdrop", "embd_pdrop", "resid_pdrop", "n_ctx", "reorder_and_upcast_attn"]);
    ignore_summary(json);
    let d_model: usize = json.any(&["hidden_size", "n_embd"])?.unwrap_or(768);
    let n_heads: usize = json.any(&["num_attention_heads", "n_head"])?.unwrap_or(12);
    let d_head = d_model / n_heads.max(1);
    let d_vocab = json.or("vocab_size", 50257)?;
    Ok(Config {
        n_layers: json.any(&["num_hidden_layers", "n_layer"])?.unwrap_or(12),
        d_model,
        n_heads,
        d_head,
        n_key_value_heads: n_heads,
        d_mlp: json.get("n_inner")?.unwrap_or(4 * d_model),
        d_vocab,
        d_vocab_out: d_vocab,
        n_ctx: json.any(&["max_position_embeddings", "n_positions"])?.unwrap_or(1024),
        act_fn: json.activation(&["activation_function"], act_fn)?,
        eps: json.or("layer_norm_epsilon", 1e-5)?,
        attn_scale: if json.or("scale_attn_weights", true)? { (d_head as f64).sqrt() } else { 1.0 },
        tie_word_embeddings: json.or("tie_word_embeddings", true)?,
        ..Config::default()
    })
}

/// The head that summarises a text for a classifier is no part of a language model.
pub(super) fn ignore_summary(json: &ConfigJson) {
    json.ignore(&["summary_activation", "summary_first_dropout", "summary_proj_to_labels"]);
    json.ignore(&["summary_type", "summary_use_proj"]);
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok(vec![
        at(WE, "transformer.wte.weight", AsIs),
        at(WPos, "transformer.wpe.weight", AsIs),
        at(Ln1W, "transformer.h.{l}.ln_1.weight", AsIs),
        at(Ln1B, "transformer.h.{l}.ln_1.bias", AsIs),
        at(Q, "transformer.h.{l}.attn.c_attn.weight", QkvBlockTransposed(0)),
        at(K, "transformer.h.{l}.attn.c_attn.weight", QkvBlockTransposed(1)),
        at(V, "transformer.h.{l}.attn.c_attn.weight", QkvBlockTransposed(2)),
        at(QB, "transformer.h.{l}.attn.c_attn.bias", QkvBlock(0)),
        at(KB, "transformer.h.{l}.attn.c_attn.bias", QkvBlock(1)),
        at(VB, "transformer.h.{l}.attn.c_attn.bias", QkvBlock(2)),
        at(O, "transformer.h.{l}.attn.c_proj.weight", Transposed),
        at(OB, "transformer.h.{l}.attn.c_proj.bias", AsIs),
        at(Ln2W, "transformer.h.{l}.ln_2.weight", AsIs),
        at(Ln2B, "transformer.h.{l}.ln_2.bias", AsIs),
        at(In, "transformer.h.{l}.mlp.c_fc.weight", Transposed),
        at(InB, "transformer.h.{l}.mlp.c_fc.bias", AsIs),
        at(Out, "transformer.h.{l}.mlp.c_proj.weight", Transposed),
        at(OutB, "transformer.h.{l}.mlp.c_proj.bias", AsIs),
        at(LnFinalW, "transformer.ln_f.weight", AsIs),
        at(LnFinalB, "transformer.ln_f.bias", AsIs),
        at(U, if config.tie_word_embeddings { "transformer.wte.weight" } else { "lm_head.weight" }, AsIs),
    ])
}
