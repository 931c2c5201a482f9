//! Blenderbot (Roller et al. 2021): norms before the sublayers, and positions from the first row of their table on.

use super::bart_style::{self, EmbeddingNorm, PositionStyle, Style, BART, EMBEDDINGS, IGNORED, SHARED};
use super::encoder_decoder::{EncoderDecoder, OfStacks};
use super::ConfigJson;
use crate::config::NormPosition;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: EncoderDecoder = EncoderDecoder {
    model_type: "blenderbot",
    architectures: &["BlenderbotForConditionalGeneration"],
    prefix: "model.",
    config,
    names,
    embeddings: EMBEDDINGS,
    ignored: IGNORED,
    start_token: Some(1),
};

const STYLE: Style = Style {
    d_model: 2560,
    layers: [2, 24],
    ffn_dim: 10240,
    heads: 32,
    n_ctx: 128,
    d_vocab: 8008,
    norms: NormPosition::Before,
    positions: PositionStyle::Learned(0),
    embedding_norm: EmbeddingNorm::None,
    ..BART
};

fn config(json: &ConfigJson) -> Result<OfStacks<Config>> {
    bart_style::config(json, &STYLE)
}

fn names(configs: &OfStacks<Config>, json: &ConfigJson) -> Result<OfStacks<Vec<Entry>>> {
    bart_style::names(configs, json, &STYLE, &SHARED)
}
