//! What T5's relatives share: the fields of their `config.json`, and tables of names.

use super::encoder_decoder::OfStacks;
use super::ConfigJson;
use crate::config::{
    AttentionConfig, AttentionDir, CrossAttention, MlpConfig, NormConfig, Normalization, Positions, RelativeBias, Stack,
};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

/// transformers' defaults.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    pub(super) d_model: usize,
    pub(super) d_ff: usize,
    pub(super) num_layers: usize,
    pub(super) num_heads: usize,
    pub(super) vocab_size: usize,
    pub(super) feed_forward_proj: &'static str,
    /// Each layer has a table of relative biases.
    pub(super) own_biases: bool,
}

/// T5's.
pub(super) const T5: Defaults = Defaults {
    d_model: 512,
    d_ff: 2048,
    num_layers: 6,
    num_heads: 8,
    vocab_size: 32128,
    feed_forward_proj: "relu",
    own_biases: false,
};

/// Distances have no bound in transformers. This is as good as none.
const LONGEST: usize = 1 << 20;

/// The two stacks: blocks without biases, whose scores are not scaled.
pub(super) fn config(json: &ConfigJson, default: &Defaults) -> Result<OfStacks<Config>> {
    json.ignore(&["dropout_rate", "initializer_factor", "classifier_dropout", "n_positions"]);
    let heads: usize = json.get_or("num_heads", default.num_heads)?;
    let layers: usize = json.get_or("num_layers", default.num_layers)?;
    let decoder_layers: usize = json.get("num_decoder_layers")?.unwrap_or(layers);
    let d_model: usize = json.get_or("d_model", default.d_model)?;
    let d_vocab = json.get_or("vocab_size", default.vocab_size)?;
    let mut encoder = Config::new(layers, d_model, heads, d_vocab, LONGEST);
    encoder.stack = Stack::Encoder;
    encoder.d_head = json.get_or("d_kv", 64)?;
    encoder.attention = AttentionConfig {
        direction: AttentionDir::Bidirectional,
        scale: Some(1.0),
        relative_bias: Some(RelativeBias {
            buckets: json.get_or("relative_attention_num_buckets", 32)?,
            max_distance: json.get_or("relative_attention_max_distance", 128)?,
            per_layer: default.own_biases,
        }),
        ..AttentionConfig::default()
    };
    encoder.positions = Positions::None;
    encoder.mlp = Some(mlp(json, default)?);
    encoder.norms = NormConfig { eps: json.get_or("layer_norm_epsilon", 1e-6)?, ..NormConfig::new(Normalization::RMS) };
    let attention = AttentionConfig {
        direction: AttentionDir::Causal,
        cross: Some(CrossAttention { d_encoder: d_model }),
        ..encoder.attention.clone()
    };
    let decoder = Config {
        stack: Stack::Decoder,
        n_layers: decoder_layers,
        attention,
        // transformers takes an unembedding that a file has besides, whatever the file says.
        tie_word_embeddings: true,
        ..encoder.clone()
    };
    Ok(OfStacks { encoder, decoder })
}

/// `feed_forward_proj`: a function's name, with `gated-` before it where the MLPs are gated. What a file says beside it counts more.
fn mlp(json: &ConfigJson, default: &Defaults) -> Result<MlpConfig> {
    let d_ff = json.get_or("d_ff", default.d_ff)?;
    let projection: String = json.get_or("feed_forward_proj", default.feed_forward_proj.into())?;
    let (gated, name) = match projection.strip_prefix("gated-") {
        Some("gelu") => (true, "gelu_new"),
        Some(name) => (true, name),
        None => (false, projection.as_str()),
    };
    let activation = match json.get::<String>("dense_act_fn")? {
        Some(name) => json.activation_named("dense_act_fn", &name)?,
        None => json.activation_named("feed_forward_proj", name)?,
    };
    Ok(if json.get_or("is_gated_act", gated)? {
        MlpConfig::gated(d_ff, activation)
    } else {
        MlpConfig::plain(d_ff, activation)
    })
}

/// Self-attention, its norm, and the last norm of a stack.
macro_rules! stack {
    ($stack:literal, $mlp:literal) => {
        &[
            entry(WE, "shared.weight", AsIs),
            entry(Q, concat!($stack, ".block.{l}.layer.0.SelfAttention.q.weight"), AsIs),
            entry(K, concat!($stack, ".block.{l}.layer.0.SelfAttention.k.weight"), AsIs),
            entry(V, concat!($stack, ".block.{l}.layer.0.SelfAttention.v.weight"), AsIs),
            entry(O, concat!($stack, ".block.{l}.layer.0.SelfAttention.o.weight"), AsIs),
            entry(Ln1W, concat!($stack, ".block.{l}.layer.0.layer_norm.weight"), AsIs),
            entry(Ln2W, concat!($stack, ".block.{l}.layer.", $mlp, ".layer_norm.weight"), AsIs),
            entry(LnFinalW, concat!($stack, ".final_layer_norm.weight"), AsIs),
        ]
    };
}

/// The MLPs of a stack: plain ones, and gated ones.
macro_rules! mlps {
    ($mlp:literal) => {
        [
            &[
                entry(In, concat!($mlp, ".DenseReluDense.wi.weight"), AsIs),
                entry(Out, concat!($mlp, ".DenseReluDense.wo.weight"), AsIs),
            ],
            &[
                entry(Gate, concat!($mlp, ".DenseReluDense.wi_0.weight"), AsIs),
                entry(In, concat!($mlp, ".DenseReluDense.wi_1.weight"), AsIs),
                entry(Out, concat!($mlp, ".DenseReluDense.wo.weight"), AsIs),
            ],
        ]
    };
}

const ENCODER: &[Entry] = stack!("encoder", "1");
const DECODER: &[Entry] = stack!("decoder", "2");
const ENCODER_MLPS: [&[Entry]; 2] = mlps!("encoder.block.{l}.layer.1");
const DECODER_MLPS: [&[Entry]; 2] = mlps!("decoder.block.{l}.layer.2");
const ENCODER_BIAS: Entry =
    entry(RelativeBias, "encoder.block.{l}.layer.0.SelfAttention.relative_attention_bias.weight", AsIs);
const DECODER_BIAS: Entry =
    entry(RelativeBias, "decoder.block.{l}.layer.0.SelfAttention.relative_attention_bias.weight", AsIs);

const CROSS: &[Entry] = &[
    entry(CrossQ, "decoder.block.{l}.layer.1.EncDecAttention.q.weight", AsIs),
    entry(CrossK, "decoder.block.{l}.layer.1.EncDecAttention.k.weight", AsIs),
    entry(CrossV, "decoder.block.{l}.layer.1.EncDecAttention.v.weight", AsIs),
    entry(CrossO, "decoder.block.{l}.layer.1.EncDecAttention.o.weight", AsIs),
    entry(CrossLnW, "decoder.block.{l}.layer.1.layer_norm.weight", AsIs),
];

/// The names of T5's weights; logits are divided by `√d_model` where `scaled`.
pub(super) fn names(configs: &OfStacks<Config>, scaled: bool) -> OfStacks<Vec<Entry>> {
    let own_biases = configs.encoder.attention.relative_bias.is_some_and(|bias| bias.per_layer);
    let with_bias = 0..if own_biases { usize::MAX } else { 1 };
    let gated = usize::from(configs.encoder.gated_mlp());
    let scale = (configs.decoder.d_model as f64).powf(-0.5);
    let unembedding = entry(U, "lm_head.weight", if scaled { Times(scale) } else { AsIs });
    OfStacks {
        encoder: [ENCODER, ENCODER_MLPS[gated], &[ENCODER_BIAS.in_blocks(with_bias.clone())]].concat(),
        decoder: [DECODER, DECODER_MLPS[gated], CROSS, &[DECODER_BIAS.in_blocks(with_bias), unembedding]].concat(),
    }
}

/// Names of the embedding in each stack, which transformers writes beside `shared.weight` in some files.
pub(super) const EMBEDDINGS: &[&str] = &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];

/// Tensors of old files that no model has.
pub(super) const IGNORED: &[&str] = &["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"];
