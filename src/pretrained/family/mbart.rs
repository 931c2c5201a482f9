//! mBART (Liu et al. 2020): BART with norms before the sublayers.

use super::bart_style::{self, Style, BART, EMBEDDINGS, IGNORED, SHARED};
use super::encoder_decoder::{EncoderDecoder, OfStacks};
use super::ConfigJson;
use crate::config::NormPosition;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: EncoderDecoder = EncoderDecoder {
    model_type: "mbart",
    architectures: &["MBartForConditionalGeneration"],
    prefix: "model.",
    config,
    names,
    embeddings: EMBEDDINGS,
    ignored: IGNORED,
    start_token: None,
};

const STYLE: Style = Style { norms: NormPosition::Before, ..BART };

fn config(json: &ConfigJson) -> Result<OfStacks<Config>> {
    bart_style::config(json, &STYLE)
}

fn names(configs: &OfStacks<Config>, json: &ConfigJson) -> Result<OfStacks<Vec<Entry>>> {
    bart_style::names(configs, json, &STYLE, &SHARED)
}
