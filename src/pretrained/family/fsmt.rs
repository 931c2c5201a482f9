//! FSMT (Ng et al. 2019): fairseq's translation models, with a vocabulary for each language and sines for positions.

use super::bart_style::{self, EmbeddingNorm, Ends, PositionStyle, Style, APART, BART, IGNORED};
use super::encoder_decoder::{EncoderDecoder, OfStacks};
use super::ConfigJson;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: EncoderDecoder = EncoderDecoder {
    model_type: "fsmt",
    architectures: &["FSMTForConditionalGeneration"],
    prefix: "model.",
    config,
    names,
    embeddings: &[],
    ignored: IGNORED,
    start_token: Some(2),
};

const STYLE: Style = Style {
    d_vocab: 42024,
    activation: "relu",
    scale_embedding: true,
    tie_word_embeddings: false,
    positions: PositionStyle::SinesBehindPadding,
    embedding_norm: EmbeddingNorm::None,
    logits_bias: false,
    ..BART
};

const ENDS: Ends = Ends { unembedding: "model.decoder.output_projection.weight", ..APART };

fn config(json: &ConfigJson) -> Result<OfStacks<Config>> {
    json.ignore(&["langs", "decoder", "max_length", "num_beams", "length_penalty", "early_stopping"]);
    let mut configs = bart_style::config(json, &STYLE)?;
    configs.encoder.d_vocab = json.get_or("src_vocab_size", STYLE.d_vocab)?;
    let d_vocab = json.get_or("tgt_vocab_size", STYLE.d_vocab)?;
    (configs.decoder.d_vocab, configs.decoder.d_vocab_out) = (d_vocab, d_vocab);
    Ok(configs)
}

fn names(configs: &OfStacks<Config>, json: &ConfigJson) -> Result<OfStacks<Vec<Entry>>> {
    bart_style::names(configs, json, &STYLE, &ENDS)
}
