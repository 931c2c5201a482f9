//! M2M-100 (Fan et al. 2021) and NLLB (NLLB Team 2022): norms before the sublayers, sines for positions, and scaled embeddings.

use super::bart_style::{self, EmbeddingNorm, PositionStyle, Style, BART, EMBEDDINGS, IGNORED, SHARED};
use super::encoder_decoder::{EncoderDecoder, OfStacks};
use super::ConfigJson;
use crate::config::NormPosition;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: EncoderDecoder = EncoderDecoder {
    model_type: "m2m_100",
    architectures: &["M2M100ForConditionalGeneration"],
    prefix: "model.",
    config,
    names,
    embeddings: EMBEDDINGS,
    ignored: IGNORED,
    start_token: Some(2),
};

const STYLE: Style = Style {
    d_vocab: 128_112,
    activation: "relu",
    scale_embedding: true,
    norms: NormPosition::Before,
    positions: PositionStyle::SinesBehindPadding,
    embedding_norm: EmbeddingNorm::None,
    logits_bias: false,
    ..BART
};

fn config(json: &ConfigJson) -> Result<OfStacks<Config>> {
    bart_style::config(json, &STYLE)
}

fn names(configs: &OfStacks<Config>, json: &ConfigJson) -> Result<OfStacks<Vec<Entry>>> {
    bart_style::names(configs, json, &STYLE, &SHARED)
}
