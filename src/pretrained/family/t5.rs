//! T5 (Raffel et al. 2020), T5 1.1 and Flan-T5, whose MLPs are gated and whose logits are not scaled.

use super::encoder_decoder::{EncoderDecoder, OfStacks};
use super::t5_style::{self, EMBEDDINGS, IGNORED, T5};
use super::ConfigJson;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: EncoderDecoder = EncoderDecoder {
    model_type: "t5",
    architectures: &["T5ForConditionalGeneration", "T5WithLMHeadModel"],
    prefix: "",
    config,
    names,
    embeddings: EMBEDDINGS,
    ignored: IGNORED,
    start_token: Some(0),
};

fn config(json: &ConfigJson) -> Result<OfStacks<Config>> {
    t5_style::config(json, &T5)
}

fn names(configs: &OfStacks<Config>, json: &ConfigJson) -> Result<OfStacks<Vec<Entry>>> {
    // Files of transformers 5 say whether logits are scaled. Before, they are unless embeddings are said not to be tied.
    let tied = json.get_or("tie_word_embeddings", true)?;
    let scaled = json.get_or("scale_decoder_outputs", tied)?;
    Ok(t5_style::names(configs, scaled))
}
