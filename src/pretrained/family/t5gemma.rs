//! T5Gemma (Zhang et al. 2025): Gemma 2's blocks in an encoder and a decoder, each with a configuration of its own.

use super::encoder_decoder::{EncoderDecoder, OfStacks};
use super::{gemma2, ConfigJson};
use crate::config::{AttentionDir, CrossAttention, Reach, Stack};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: EncoderDecoder = EncoderDecoder {
    model_type: "t5gemma",
    architectures: &["T5GemmaForConditionalGeneration"],
    prefix: "",
    config,
    names,
    embeddings: &[],
    ignored: &["rotary_emb.inv_freq"],
    start_token: None,
};

fn config(json: &ConfigJson) -> Result<OfStacks<Config>> {
    json.ignore(&["attention_dropout", "dropout_rate", "classifier_dropout_rate", "vocab_size"]);
    let stack = |name: &str, stack: Stack| -> Result<Config> {
        let json = json.object(name)?.unwrap_or_default();
        json.ignore(&["attention_dropout", "dropout_rate", "classifier_dropout_rate", "tie_word_embeddings"]);
        json.expect_only("attention_bias", false)?;
        json.expect_only("is_encoder_decoder", false)?;
        Ok(Config { stack, tie_word_embeddings: false, ..gemma2::config(&json)? })
    };
    let (mut encoder, mut decoder) = (stack("encoder", Stack::Encoder)?, stack("decoder", Stack::Decoder)?);
    encoder.output_logits_soft_cap = None;
    encoder.attention.direction = AttentionDir::Bidirectional;
    // Where attention goes both ways, transformers counts the keys on one side.
    encoder.attention.reach = encoder.attention.reach.map(|reach| match reach {
        Reach::Window(size) => Reach::Window(size.saturating_add(1)),
        other => *other,
    });
    decoder.attention.cross = Some(CrossAttention { d_encoder: encoder.d_model });
    decoder.tie_word_embeddings = json.get_or("tie_word_embeddings", true)?;
    Ok(OfStacks { encoder, decoder })
}

macro_rules! stack {
    ($root:literal) => {
        &[
            entry(WE, concat!($root, ".embed_tokens.weight"), TimesSqrtDModel),
            entry(Q, concat!($root, ".layers.{l}.self_attn.q_proj.weight"), AsIs),
            entry(K, concat!($root, ".layers.{l}.self_attn.k_proj.weight"), AsIs),
            entry(V, concat!($root, ".layers.{l}.self_attn.v_proj.weight"), AsIs),
            entry(O, concat!($root, ".layers.{l}.self_attn.o_proj.weight"), AsIs),
            entry(Gate, concat!($root, ".layers.{l}.mlp.gate_proj.weight"), AsIs),
            entry(In, concat!($root, ".layers.{l}.mlp.up_proj.weight"), AsIs),
            entry(Out, concat!($root, ".layers.{l}.mlp.down_proj.weight"), AsIs),
            entry(Ln1W, concat!($root, ".layers.{l}.pre_self_attn_layernorm.weight"), PlusOne),
            entry(Ln1PostW, concat!($root, ".layers.{l}.post_self_attn_layernorm.weight"), PlusOne),
            entry(Ln2W, concat!($root, ".layers.{l}.pre_feedforward_layernorm.weight"), PlusOne),
            entry(Ln2PostW, concat!($root, ".layers.{l}.post_feedforward_layernorm.weight"), PlusOne),
            entry(LnFinalW, concat!($root, ".norm.weight"), PlusOne),
        ]
    };
}

const ENCODER: &[Entry] = stack!("model.encoder");
const DECODER: &[Entry] = stack!("model.decoder");
const CROSS: &[Entry] = &[
    entry(CrossQ, "model.decoder.layers.{l}.cross_attn.q_proj.weight", AsIs),
    entry(CrossK, "model.decoder.layers.{l}.cross_attn.k_proj.weight", AsIs),
    entry(CrossV, "model.decoder.layers.{l}.cross_attn.v_proj.weight", AsIs),
    entry(CrossO, "model.decoder.layers.{l}.cross_attn.o_proj.weight", AsIs),
    entry(CrossLnW, "model.decoder.layers.{l}.pre_cross_attn_layernorm.weight", PlusOne),
    entry(CrossLnPostW, "model.decoder.layers.{l}.post_cross_attn_layernorm.weight", PlusOne),
    entry(U, "lm_head.out_proj.weight", AsIs),
];

fn names(_: &OfStacks<Config>, _: &ConfigJson) -> Result<OfStacks<Vec<Entry>>> {
    Ok(OfStacks { encoder: ENCODER.to_vec(), decoder: [DECODER, CROSS].concat() })
}
