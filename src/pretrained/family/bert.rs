//! BERT (Devlin et al. 2019): an encoder, or with `is_decoder` a decoder, whose stream is normalised after each sublayer.

use super::bert_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{Activation, HeadConfig};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    Family { left_out, ..bert_style::family("bert", ARCHITECTURES, "bert.", config, names) };

const ARCHITECTURES: &[&str] = &[
    "BertForMaskedLM",
    "BertLMHeadModel",
    "BertForPreTraining",
    "BertForNextSentencePrediction",
    "BertForSequenceClassification",
    "BertForTokenClassification",
];

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = bert_style::config(json, &BERT)?;
    Task::of(json).apply(json, &mut config, HeadConfig::of_texts(Activation::Tanh))?;
    Ok(config)
}

const POOLER: &[Entry] =
    &[entry(HeadW, "bert.pooler.dense.weight", AsIs), entry(HeadB, "bert.pooler.dense.bias", AsIs)];

const NEXT_SENTENCE: &[Entry] =
    &[entry(U, "cls.seq_relationship.weight", AsIs), entry(UB, "cls.seq_relationship.bias", AsIs)];

/// The unembedding of BERT and others.
pub(super) fn unembedding(config: &Config) -> [Entry; 2] {
    unembedding!(config, "cls.predictions.decoder.weight", "cls.predictions.bias", "cls.predictions.decoder.bias")
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let norms = norms_in_stream!("bert");
    let vocabulary = [&head!("cls.predictions.transform")[..], &unembedding(config)].concat();
    let task = Task::of(json);
    let outputs = if task == Task::NextSentence { NEXT_SENTENCE } else { CLASSIFIER };
    let head = task.names(&vocabulary, &[POOLER, outputs].concat(), CLASSIFIER);
    Ok([&embeddings!("bert", AsIs)[..], &sublayers!("bert"), &norms, &head].concat())
}

/// The pooler and the heads of other tasks.
pub(super) fn left_out(json: &ConfigJson, name: &str) -> bool {
    let of_vocabulary = ["cls.predictions.", "lm_head."].iter().any(|start| name.starts_with(start));
    name.contains(".pooler.")
        || name.starts_with("cls.seq_relationship.")
        || (of_vocabulary && Task::of(json) != Task::Vocabulary)
}
