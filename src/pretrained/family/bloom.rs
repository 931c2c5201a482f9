//! BLOOM (Le Scao et al. 2022): ALiBi, and a norm after the embedding.

use super::gpt2_style::{self, Fields, GPT2};
use super::{ConfigJson, Family};
use crate::config::Positions;
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    Family { ignored: &[], ..gpt2_style::family("bloom", &["BloomForCausalLM"], config, names) };

const FIELDS: Fields = Fields {
    d_model: (&["n_embed", "hidden_size"], 64),
    n_layers: (&["num_hidden_layers", "n_layer"], 2),
    n_heads: (&["num_attention_heads", "n_head"], 8),
    n_ctx: (&["seq_length"], 2048), // of the first files; ALiBi itself has no bound
    d_vocab: 250_880,
    d_mlp: (&[], None),
    activation: (&[], "gelu_new"),
    ..GPT2
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["attention_dropout", "hidden_dropout", "pretraining_tp"]);
    // How the first implementation computed, not what.
    json.ignore(&["attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi"]);
    json.ignore(&["skip_bias_add", "skip_bias_add_qkv"]);
    json.only("apply_residual_connection_post_layernorm", false)?;
    json.only("slow_but_exact", false)?;
    let mut config = gpt2_style::config(json, &FIELDS)?;
    json.only("n_inner", config.d_mlp())?;
    config.positions = Positions::Alibi { bias_max: 8.0 };
    config.norms.after_embedding = true;
    Ok(config)
}

const QKV_W: &str = "transformer.h.{l}.self_attention.query_key_value.weight";
const QKV_B: &str = "transformer.h.{l}.self_attention.query_key_value.bias";

const NAMES: &[Entry] = &[
    at(WE, "transformer.word_embeddings.weight", AsIs),
    at(EmbedLnW, "transformer.word_embeddings_layernorm.weight", AsIs),
    at(EmbedLnB, "transformer.word_embeddings_layernorm.bias", AsIs),
    at(Ln1W, "transformer.h.{l}.input_layernorm.weight", AsIs),
    at(Ln1B, "transformer.h.{l}.input_layernorm.bias", AsIs),
    at(Q, QKV_W, QkvPerHead(0)),
    at(QB, QKV_B, QkvPerHead(0)),
    at(K, QKV_W, QkvPerHead(1)),
    at(KB, QKV_B, QkvPerHead(1)),
    at(V, QKV_W, QkvPerHead(2)),
    at(VB, QKV_B, QkvPerHead(2)),
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
    at(U, "lm_head.weight", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok(NAMES.to_vec())
}
