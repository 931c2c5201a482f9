//! Marian (Junczys-Dowmunt et al. 2018): BART with sines for positions, and without a norm of the embeddings. The stacks may have
//! vocabularies of their own.

use super::bart_style::{self, EmbeddingNorm, PositionStyle, Style, APART, BART, EMBEDDINGS, IGNORED, SHARED};
use super::encoder_decoder::{EncoderDecoder, OfStacks};
use super::ConfigJson;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: EncoderDecoder = EncoderDecoder {
    model_type: "marian",
    architectures: &["MarianMTModel"],
    prefix: "model.",
    config,
    names,
    embeddings: EMBEDDINGS,
    ignored: IGNORED,
    start_token: Some(58100),
};

const STYLE: Style =
    Style { d_vocab: 58101, positions: PositionStyle::Sines, embedding_norm: EmbeddingNorm::None, ..BART };

fn config(json: &ConfigJson) -> Result<OfStacks<Config>> {
    let mut configs = bart_style::config(json, &STYLE)?;
    let own: Option<usize> = json.get("decoder_vocab_size")?;
    if let (Some(own), false) = (own, shares_embeddings(json)?) {
        (configs.decoder.d_vocab, configs.decoder.d_vocab_out) = (own, own);
    }
    Ok(configs)
}

fn names(configs: &OfStacks<Config>, json: &ConfigJson) -> Result<OfStacks<Vec<Entry>>> {
    let ends = if shares_embeddings(json)? { &SHARED } else { &APART };
    bart_style::names(configs, json, &STYLE, ends)
}

fn shares_embeddings(json: &ConfigJson) -> Result<bool> {
    json.get_or("share_encoder_decoder_embeddings", true)
}
