//! Pegasus (Zhang et al. 2020): mBART with sines for positions, and without a norm of the embeddings.

use super::bart_style::{self, EmbeddingNorm, PositionStyle, Style, BART, EMBEDDINGS, IGNORED, SHARED};
use super::encoder_decoder::{EncoderDecoder, OfStacks};
use super::ConfigJson;
use crate::config::NormPosition;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: EncoderDecoder = EncoderDecoder {
    model_type: "pegasus",
    architectures: &["PegasusForConditionalGeneration"],
    prefix: "model.",
    config,
    names,
    embeddings: EMBEDDINGS,
    ignored: IGNORED,
    start_token: Some(0),
};

const STYLE: Style =
    Style { norms: NormPosition::Before, positions: PositionStyle::Sines, embedding_norm: EmbeddingNorm::None, ..BART };

fn config(json: &ConfigJson) -> Result<OfStacks<Config>> {
    bart_style::config(json, &STYLE)
}

fn names(configs: &OfStacks<Config>, json: &ConfigJson) -> Result<OfStacks<Vec<Entry>>> {
    bart_style::names(configs, json, &STYLE, &SHARED)
}
