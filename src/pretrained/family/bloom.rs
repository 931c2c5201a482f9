//! BLOOM (Le Scao et al. 2022): ALiBi, and a norm after the embedding.

use super::{ConfigJson, Family};
use crate::config::{Activation, PositionalEmbedding};
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    architectures: &["BloomForCausalLM", "bloom"],
    prefix: "transformer.",
    config,
    names,
    ignored: &["lm_head.weight"],
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["attention_dropout", "hidden_dropout", "pretraining_tp"]);
    // How the first implementation computed, not what.
    json.ignore(&["attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi"]);
    json.ignore(&["skip_bias_add", "skip_bias_add_qkv"]);
    json.only("apply_residual_connection_post_layernorm", false)?;
    json.only("slow_but_exact", false)?;
    let d_model: usize = json.any(&["n_embed", "hidden_size"])?.unwrap_or(64);
    json.only("n_inner", 4 * d_model)?;
    let n_heads: usize = json.any(&["num_attention_heads", "n_head"])?.unwrap_or(8);
    let d_vocab = json.or("vocab_size", 250880)?;
    Ok(Config {
        n_layers: json.any(&["num_hidden_layers", "n_layer"])?.unwrap_or(2),
        d_model,
        n_heads,
        d_head: d_model / n_heads.max(1),
        n_key_value_heads: n_heads,
        d_mlp: 4 * d_model,
        d_vocab,
        d_vocab_out: d_vocab,
        n_ctx: json.or("seq_length", 2048)?, // of the first files; ALiBi itself has no bound
        act_fn: Activation::GeluNew,
        eps: json.or("layer_norm_epsilon", 1e-5)?,
        post_embedding_ln: true,
        positional_embedding_type: PositionalEmbedding::Alibi,
        tie_word_embeddings: json.or("tie_word_embeddings", true)?,
        ..Config::default()
    })
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok(vec![
        at(WE, "transformer.word_embeddings.weight", AsIs),
        at(EmbedLnW, "transformer.word_embeddings_layernorm.weight", AsIs),
        at(EmbedLnB, "transformer.word_embeddings_layernorm.bias", AsIs),
        at(Ln1W, "transformer.h.{l}.input_layernorm.weight", AsIs),
        at(Ln1B, "transformer.h.{l}.input_layernorm.bias", AsIs),
        at(Q, "transformer.h.{l}.self_attention.query_key_value.weight", QkvPerHead(0)),
        at(QB, "transformer.h.{l}.self_attention.query_key_value.bias", QkvPerHead(0)),
        at(K, "transformer.h.{l}.self_attention.query_key_value.weight", QkvPerHead(1)),
        at(KB, "transformer.h.{l}.self_attention.query_key_value.bias", QkvPerHead(1)),
        at(V, "transformer.h.{l}.self_attention.query_key_value.weight", QkvPerHead(2)),
        at(VB, "transformer.h.{l}.self_attention.query_key_value.bias", QkvPerHead(2)),
        at(O, "transformer.h.{l}.self_attention.dense.weight", AsIs),
        at(OB, "transformer.h.{l}.self_attention.dense.bias", AsIs),
        at(Ln2W, "transformer.h.{l}.post_attention_layernorm.weight", AsIs),
        at(Ln2B, "transformer.h.{l}.post_attention_layernorm.bias", AsIs),
        at(In, "transformer.h.{l}.mlp.dense_h_to_4h.weight", AsIs),
        at(InB, "transformer.h.{l}.mlp.dense_h_to_4h.bias", AsIs),
        at(Out, "transformer.h.{l}.mlp.dense_4h_to_h.weight", AsIs),
        at(OutB, "transformer.h.{l}.mlp.dense_4h_to_h.bias", AsIs),
        at(LnFinalW, "transformer.ln_f.weight", AsIs),
        at(LnFinalB, "transformer.ln_f.bias", AsIs),
        at(U, if config.tie_word_embeddings { "transformer.word_embeddings.weight" } else { "lm_head.weight" }, AsIs),
    ])
}
