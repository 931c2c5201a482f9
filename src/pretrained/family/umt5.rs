//! UMT5 (Chung et al. 2023): mT5 with a table of relative biases in every layer, and scaled logits.

use super::encoder_decoder::{EncoderDecoder, OfStacks};
use super::mt5::MT5;
use super::t5_style::{self, Defaults, EMBEDDINGS, IGNORED};
use super::ConfigJson;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: EncoderDecoder = EncoderDecoder {
    model_type: "umt5",
    architectures: &["UMT5ForConditionalGeneration"],
    prefix: "",
    config,
    names,
    embeddings: EMBEDDINGS,
    ignored: IGNORED,
    start_token: Some(0),
};

/// transformers' defaults.
const UMT5: Defaults = Defaults { own_biases: true, ..MT5 };

fn config(json: &ConfigJson) -> Result<OfStacks<Config>> {
    json.ignore(&["tie_word_embeddings"]); // transformers overwrites it
    t5_style::config(json, &UMT5)
}

fn names(configs: &OfStacks<Config>, _: &ConfigJson) -> Result<OfStacks<Vec<Entry>>> {
    Ok(t5_style::names(configs, true))
}
