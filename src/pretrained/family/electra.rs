//! ELECTRA (Clark et al. 2020): BERT with embeddings of another width.

use super::bert_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{Activation, HeadConfig};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    Family { left_out, ..bert_style::family("electra", ARCHITECTURES, "electra.", config, names) };

const ARCHITECTURES: &[&str] = &[
    "ElectraForMaskedLM",
    "ElectraForCausalLM",
    "ElectraForPreTraining",
    "ElectraForSequenceClassification",
    "ElectraForTokenClassification",
];

const DEFAULTS: Defaults = Defaults { hidden_size: 256, intermediate_size: 1024, num_attention_heads: 4, ..BERT };

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj"]);
    let mut config = bert_style::config(json, &DEFAULTS)?;
    let width = json.get_or("embedding_size", 128)?;
    config.embed.width = Some(width).filter(|width| *width != config.d_model);
    let activation = config.act_fn().unwrap_or(Activation::Gelu);
    config.head = Some(HeadConfig { width: Some(width), ..HeadConfig::new(Activation::Gelu) });
    Task::of(json).apply(json, &mut config, HeadConfig::of_texts(Activation::Gelu))?;
    if is_discriminator(json) {
        config.head = Some(HeadConfig { norm: false, ..HeadConfig::new(activation) });
        (config.d_vocab_out, config.tie_word_embeddings) = (1, false);
    }
    Ok(config)
}

/// Whether the head tells replaced tokens from others.
fn is_discriminator(json: &ConfigJson) -> bool {
    json.architecture() == Some("ElectraForPreTraining")
}

const DISCRIMINATOR: &[Entry] = &[
    entry(HeadW, "discriminator_predictions.dense.weight", AsIs),
    entry(HeadB, "discriminator_predictions.dense.bias", AsIs),
    entry(U, "discriminator_predictions.dense_prediction.weight", AsIs),
    entry(UB, "discriminator_predictions.dense_prediction.bias", AsIs),
];

const HEAD: &[Entry] = &[
    entry(HeadW, "generator_predictions.dense.weight", AsIs),
    entry(HeadB, "generator_predictions.dense.bias", AsIs),
    entry(HeadLnW, "generator_predictions.LayerNorm.weight", AsIs),
    entry(HeadLnB, "generator_predictions.LayerNorm.bias", AsIs),
    entry(U, "generator_lm_head.weight", AsIs),
    entry(UB, "generator_lm_head.bias", AsIs),
];

const PROJECT: &[Entry] = &[
    entry(EmbedProject, "electra.embeddings_project.weight", AsIs),
    entry(EmbedProjectB, "electra.embeddings_project.bias", AsIs),
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let norms = norms_in_stream!("electra");
    let project = if config.embed.width.is_some() { PROJECT } else { &[] };
    let vocabulary = if is_discriminator(json) { DISCRIMINATOR } else { HEAD };
    let head = Task::of(json).names(vocabulary, CLASSIFIER_OF_TEXTS, CLASSIFIER);
    Ok([&embeddings!("electra", AsIs)[..], project, &sublayers!("electra"), &norms, &head].concat())
}

/// The heads of other tasks.
fn left_out(_: &ConfigJson, name: &str) -> bool {
    ["discriminator_predictions.", "generator_predictions.", "generator_lm_head."]
        .iter()
        .any(|start| name.starts_with(start))
}
