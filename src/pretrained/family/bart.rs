//! BART (Lewis et al. 2020).

use super::bart_style::{self, Style, BART, EMBEDDINGS, IGNORED, SHARED};
use super::encoder_decoder::{EncoderDecoder, OfStacks};
use super::ConfigJson;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: EncoderDecoder = EncoderDecoder {
    model_type: "bart",
    architectures: &["BartForConditionalGeneration"],
    prefix: "model.",
    config,
    names,
    embeddings: EMBEDDINGS,
    ignored: IGNORED,
    start_token: Some(2),
};

const STYLE: Style = BART;

fn config(json: &ConfigJson) -> Result<OfStacks<Config>> {
    bart_style::config(json, &STYLE)
}

fn names(configs: &OfStacks<Config>, json: &ConfigJson) -> Result<OfStacks<Vec<Entry>>> {
    bart_style::names(configs, json, &STYLE, &SHARED)
}
