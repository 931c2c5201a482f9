//! Blenderbot Small (Roller et al. 2021): BART whose decoder has the norm of embeddings before positions are added.

use super::bart_style::{self, EmbeddingNorm, PositionStyle, Style, BART, EMBEDDINGS, IGNORED, SHARED};
use super::encoder_decoder::{EncoderDecoder, OfStacks};
use super::ConfigJson;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: EncoderDecoder = EncoderDecoder {
    model_type: "blenderbot-small",
    architectures: &["BlenderbotSmallForConditionalGeneration"],
    prefix: "model.",
    config,
    names,
    embeddings: EMBEDDINGS,
    ignored: IGNORED,
    start_token: Some(1),
};

const STYLE: Style = Style {
    d_model: 512,
    layers: [8, 8],
    ffn_dim: 2048,
    n_ctx: 512,
    positions: PositionStyle::Learned(0),
    embedding_norm: EmbeddingNorm::OfTokensInDecoder,
    ..BART
};

fn config(json: &ConfigJson) -> Result<OfStacks<Config>> {
    bart_style::config(json, &STYLE)
}

fn names(configs: &OfStacks<Config>, json: &ConfigJson) -> Result<OfStacks<Vec<Entry>>> {
    bart_style::names(configs, json, &STYLE, &SHARED)
}
