//! What BART's relatives share: the fields of their `config.json`, and tables of names.

use super::encoder_decoder::OfStacks;
use super::{biogpt, ConfigJson};
use crate::config::{
    AttentionDir, CrossAttention, MlpConfig, NormConfig, NormPosition, Normalization, Positions, Sinusoids, Stack,
};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

/// transformers' defaults, and where the families differ.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) d_model: usize,
    pub(super) layers: [usize; 2],
    pub(super) ffn_dim: usize,
    pub(super) heads: usize,
    pub(super) n_ctx: usize,
    pub(super) d_vocab: usize,
    pub(super) activation: &'static str,
    pub(super) scale_embedding: bool,
    pub(super) tie_word_embeddings: bool,
    /// Norms before the sublayers and a last norm of each stack, or norms of the stream itself.
    pub(super) norms: NormPosition,
    pub(super) positions: PositionStyle,
    pub(super) embedding_norm: EmbeddingNorm,
    /// Logits have a bias.
    pub(super) logits_bias: bool,
}

/// How positions enter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum PositionStyle {
    /// By a table, from this row on.
    Learned(i64),
    /// By sines and then cosines; the last wavelength is `10000 · 2π / 10000^(2 / d_model)`.
    Sines,
    /// The same, with a last wavelength of `10000 · 2π`, and positions from the one behind the padding token's id on.
    SinesBehindPadding,
}

/// Where a norm of the embeddings stands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum EmbeddingNorm {
    None,
    /// After positions are added.
    OfSum,
    /// In the decoder before positions are added (Blenderbot Small).
    OfTokensInDecoder,
}

/// BART's.
pub(super) const BART: Style = Style {
    d_model: 1024,
    layers: [12, 12],
    ffn_dim: 4096,
    heads: 16,
    n_ctx: 1024,
    d_vocab: 50265,
    activation: "gelu",
    scale_embedding: false,
    tie_word_embeddings: true,
    norms: NormPosition::InStream,
    positions: PositionStyle::Learned(2),
    embedding_norm: EmbeddingNorm::OfSum,
    logits_bias: true,
};

/// The two stacks.
pub(super) fn config(json: &ConfigJson, style: &Style) -> Result<OfStacks<Config>> {
    let encoder = stack(json, style, Stack::Encoder)?;
    let decoder = stack(json, style, Stack::Decoder)?;
    Ok(OfStacks { encoder, decoder })
}

/// A decoder that stands by itself, without cross-attention.
pub(super) fn lone_decoder(json: &ConfigJson, style: &Style) -> Result<Config> {
    json.ignore(&["encoder_layers", "encoder_ffn_dim", "encoder_attention_heads", "num_hidden_layers"]);
    stack(json, style, Stack::Blocks)
}

fn stack(json: &ConfigJson, style: &Style, stack: Stack) -> Result<Config> {
    json.ignore(&["activation_dropout", "attention_dropout", "dropout", "encoder_layerdrop", "decoder_layerdrop"]);
    json.ignore(&["init_std", "classifier_dropout", "num_labels"]);
    let is_encoder = stack == Stack::Encoder;
    let own = if is_encoder { ENCODER_FIELDS } else { DECODER_FIELDS };
    let n_layers = json.get_or(own[0], style.layers[usize::from(!is_encoder)])?;
    if is_encoder {
        json.expect_only("num_hidden_layers", n_layers)?; // another name of the encoder's
    }
    let d_model = json.get_or("d_model", style.d_model)?;
    let n_ctx = json.get_or("max_position_embeddings", style.n_ctx)?;
    let d_vocab = json.get_or("vocab_size", style.d_vocab)?;
    let mut config = Config::new(n_layers, d_model, json.get_or(own[2], style.heads)?, d_vocab, n_ctx);
    config.stack = stack;
    let activation = json.activation(&["activation_function"], style.activation)?;
    config.mlp = Some(MlpConfig::plain(json.get_or(own[1], style.ffn_dim)?, activation));
    config.norms = NormConfig {
        position: style.norms,
        last: (style.norms == NormPosition::InStream).then_some(Normalization::None),
        ..NormConfig::new(Normalization::LN)
    };
    match (style.embedding_norm, is_encoder) {
        (EmbeddingNorm::None, _) => {}
        (EmbeddingNorm::OfTokensInDecoder, false) => config.norms.after_embedding = true,
        _ => config.norms.after_full_embed = true,
    }
    let half = config.d_model / 2;
    config.positions = match style.positions {
        PositionStyle::Learned(_) => Positions::Learned,
        PositionStyle::Sines => Positions::Sinusoidal(Sinusoids { offset: 0, steps: half }),
        PositionStyle::SinesBehindPadding => {
            let offset = json.get_or("pad_token_id", 1usize)?.saturating_add(1);
            Positions::Sinusoidal(Sinusoids { offset, steps: half.saturating_sub(1) })
        }
    };
    match stack {
        Stack::Encoder => config.attention.direction = AttentionDir::Bidirectional,
        Stack::Decoder => config.attention.cross = Some(CrossAttention { d_encoder: d_model }),
        Stack::Blocks => {}
    }
    config.tie_word_embeddings = json.get_or("tie_word_embeddings", style.tie_word_embeddings)? && !is_encoder;
    Ok(config)
}

const ENCODER_FIELDS: [&str; 3] = ["encoder_layers", "encoder_ffn_dim", "encoder_attention_heads"];
const DECODER_FIELDS: [&str; 3] = ["decoder_layers", "decoder_ffn_dim", "decoder_attention_heads"];

/// The blocks of a stack, and its last norm.
const ENCODER: &[Entry] = biogpt::blocks!("model.encoder");
const DECODER: &[Entry] = biogpt::blocks!("model.decoder");

/// Positions, and the norm of embeddings.
macro_rules! embeddings {
    ($root:literal) => {
        [
            entry(WPos, concat!($root, ".embed_positions.weight"), AsIs),
            entry(EmbedLnW, concat!($root, ".layernorm_embedding.weight"), AsIs),
            entry(EmbedLnB, concat!($root, ".layernorm_embedding.bias"), AsIs),
        ]
    };
}
const ENCODER_EMBEDDINGS: [Entry; 3] = embeddings!("model.encoder");
const DECODER_EMBEDDINGS: [Entry; 3] = embeddings!("model.decoder");

const CROSS: &[Entry] = &[
    entry(CrossQ, "model.decoder.layers.{l}.encoder_attn.q_proj.weight", AsIs),
    entry(CrossQB, "model.decoder.layers.{l}.encoder_attn.q_proj.bias", AsIs),
    entry(CrossK, "model.decoder.layers.{l}.encoder_attn.k_proj.weight", AsIs),
    entry(CrossKB, "model.decoder.layers.{l}.encoder_attn.k_proj.bias", AsIs),
    entry(CrossV, "model.decoder.layers.{l}.encoder_attn.v_proj.weight", AsIs),
    entry(CrossVB, "model.decoder.layers.{l}.encoder_attn.v_proj.bias", AsIs),
    entry(CrossO, "model.decoder.layers.{l}.encoder_attn.out_proj.weight", AsIs),
    entry(CrossOB, "model.decoder.layers.{l}.encoder_attn.out_proj.bias", AsIs),
    entry(CrossLnW, "model.decoder.layers.{l}.encoder_attn_layer_norm.weight", AsIs),
    entry(CrossLnB, "model.decoder.layers.{l}.encoder_attn_layer_norm.bias", AsIs),
];

/// Where the token embeddings and the unembedding lie.
pub(super) struct Ends {
    pub(super) embeddings: [&'static str; 2],
    pub(super) unembedding: &'static str,
}

/// Of one embedding for both stacks.
pub(super) const SHARED: Ends = Ends { embeddings: ["model.shared.weight"; 2], unembedding: "lm_head.weight" };

/// Of an embedding for each stack.
pub(super) const APART: Ends = Ends {
    embeddings: ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"],
    unembedding: "lm_head.weight",
};

/// The places that an embedding may have.
pub(super) const EMBEDDINGS: &[&str] = &[SHARED.embeddings[0], APART.embeddings[0], APART.embeddings[1]];

/// Tables that are computed, and copies that no part is read from.
pub(super) const IGNORED: &[&str] = &["embed_positions.weight", "embed_positions.weights", "lm_head.bias"];

pub(super) fn names(
    configs: &OfStacks<Config>,
    json: &ConfigJson,
    style: &Style,
    ends: &Ends,
) -> Result<OfStacks<Vec<Entry>>> {
    // Where nothing is tied, transformers has three embeddings, and uses the stacks' own.
    let apart = Ends { embeddings: APART.embeddings, ..*ends };
    let ends = if configs.decoder.tie_word_embeddings { ends } else { &apart };
    let encoder = of_stack(&configs.encoder, json, style, ends)?;
    let mut decoder = of_stack(&configs.decoder, json, style, ends)?;
    decoder.extend(CROSS);
    Ok(OfStacks { encoder, decoder })
}

/// The names of one stack, without cross-attention.
pub(super) fn of_stack(config: &Config, json: &ConfigJson, style: &Style, ends: &Ends) -> Result<Vec<Entry>> {
    let is_encoder = config.stack == Stack::Encoder;
    let (blocks, embeddings) = if is_encoder { (ENCODER, ENCODER_EMBEDDINGS) } else { (DECODER, DECODER_EMBEDDINGS) };
    let has_last_norm = config.norms.last() != Normalization::None;
    let mut all: Vec<Entry> =
        blocks.iter().filter(|entry| has_last_norm || !matches!(entry.part, LnFinalW | LnFinalB)).copied().collect();
    let [positions, gain, bias] = embeddings;
    if let PositionStyle::Learned(first) = style.positions {
        all.push(Entry { view: if first == 0 { AsIs } else { RowsFrom(first) }, ..positions });
    }
    if config.post_embedding_ln() {
        all.extend([gain, bias]);
    }
    let scaled = json.get_or("scale_embedding", style.scale_embedding)?;
    let embedding = ends.embeddings[usize::from(!is_encoder)];
    all.push(entry(WE, embedding, if scaled { TimesSqrtDModel } else { AsIs }));
    if !is_encoder {
        all.push(entry(U, ends.unembedding, AsIs));
        if style.logits_bias {
            all.push(entry(UB, "final_logits_bias", OnlyRow));
        }
    }
    Ok(all)
}
