//! BLOOM (Le Scao et al. 2022): ALiBi, and a norm after the embedding.

use super::gpt2_style::{self, Fields, GPT2};
use super::{ConfigJson, Family};
use crate::config::Positions;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
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
    json.expect_only("apply_residual_connection_post_layernorm", false)?;
    json.expect_only("slow_but_exact", false)?;
    let mut config = gpt2_style::config(json, &FIELDS)?;
    json.expect_only("n_inner", config.d_mlp())?;
    config.positions = Positions::alibi(8.0);
    config.norms.after_embedding = true;
    Ok(config)
}

const QKV_W: &str = "transformer.h.{l}.self_attention.query_key_value.weight";
const QKV_B: &str = "transformer.h.{l}.self_attention.query_key_value.bias";

const NAMES: &[Entry] = &[
    entry(WE, "transformer.word_embeddings.weight", AsIs),
    entry(EmbedLnW, "transformer.word_embeddings_layernorm.weight", AsIs),
    entry(EmbedLnB, "transformer.word_embeddings_layernorm.bias", AsIs),
    entry(Ln1W, "transformer.h.{l}.input_layernorm.weight", AsIs),
    entry(Ln1B, "transformer.h.{l}.input_layernorm.bias", AsIs),
    entry(Q, QKV_W, QkvPerHead(0)),
    entry(QB, QKV_B, QkvPerHead(0)),
    entry(K, QKV_W, QkvPerHead(1)),
    entry(KB, QKV_B, QkvPerHead(1)),
    entry(V, QKV_W, QkvPerHead(2)),
    entry(VB, QKV_B, QkvPerHead(2)),
    entry(O, "transformer.h.{l}.self_attention.dense.weight", AsIs),
    entry(OB, "transformer.h.{l}.self_attention.dense.bias", AsIs),
    entry(Ln2W, "transformer.h.{l}.post_attention_layernorm.weight", AsIs),
    entry(Ln2B, "transformer.h.{l}.post_attention_layernorm.bias", AsIs),
    entry(In, "transformer.h.{l}.mlp.dense_h_to_4h.weight", AsIs),
    entry(InB, "transformer.h.{l}.mlp.dense_h_to_4h.bias", AsIs),
    entry(Out, "transformer.h.{l}.mlp.dense_4h_to_h.weight", AsIs),
    entry(OutB, "transformer.h.{l}.mlp.dense_4h_to_h.bias", AsIs),
    entry(LnFinalW, "transformer.ln_f.weight", AsIs),
    entry(LnFinalB, "transformer.ln_f.bias", AsIs),
    entry(U, "lm_head.weight", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok(NAMES.to_vec())
}
