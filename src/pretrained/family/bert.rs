//! BERT (Devlin et al. 2019): an encoder, or with `is_decoder` a decoder, whose stream is normalised after each sublayer.

use super::bert_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    Family { left_out, ..bert_style::family("bert", &["BertForMaskedLM", "BertLMHeadModel"], "bert.", config, names) };

fn config(json: &ConfigJson) -> Result<Config> {
    bert_style::config(json, &BERT)
}

/// The unembedding of BERT and others.
pub(super) fn unembedding(config: &Config) -> [Entry; 2] {
    unembedding!(config, "cls.predictions.decoder.weight", "cls.predictions.bias", "cls.predictions.decoder.bias")
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let norms = norms_in_stream!("bert");
    let head = head!("cls.predictions.transform");
    Ok([&embeddings!("bert", AsIs)[..], &sublayers!("bert"), &norms, &head, &unembedding(config)].concat())
}

/// The pooler and the head that it feeds are of other tasks.
pub(super) fn left_out(_: &ConfigJson, name: &str) -> bool {
    name.contains(".pooler.") || name.starts_with("cls.seq_relationship.")
}
