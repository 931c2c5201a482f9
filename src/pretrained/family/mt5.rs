//! mT5 (Xue et al. 2021): T5 1.1 for a hundred languages.

use super::encoder_decoder::{EncoderDecoder, OfStacks};
use super::t5_style::{self, Defaults, EMBEDDINGS, IGNORED, T5};
use super::ConfigJson;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: EncoderDecoder = EncoderDecoder {
    model_type: "mt5",
    architectures: &["MT5ForConditionalGeneration"],
    prefix: "",
    config,
    names,
    embeddings: EMBEDDINGS,
    ignored: IGNORED,
    start_token: Some(0),
};

/// transformers' defaults.
pub(super) const MT5: Defaults =
    Defaults { d_ff: 1024, num_layers: 8, num_heads: 6, vocab_size: 250_112, feed_forward_proj: "gated-gelu", ..T5 };

fn config(json: &ConfigJson) -> Result<OfStacks<Config>> {
    json.ignore(&["tie_word_embeddings"]); // transformers overwrites it
    t5_style::config(json, &MT5)
}

fn names(configs: &OfStacks<Config>, _: &ConfigJson) -> Result<OfStacks<Vec<Entry>>> {
    Ok(t5_style::names(configs, false))
}
