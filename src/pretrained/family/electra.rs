//! ELECTRA (Clark et al. 2020): BERT with embeddings of another width.

use super::bert_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{Activation, HeadConfig};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    left_out,
    ..bert_style::family("electra", &["ElectraForMaskedLM", "ElectraForCausalLM"], "electra.", config, names)
};

const DEFAULTS: Defaults = Defaults { hidden_size: 256, intermediate_size: 1024, num_attention_heads: 4, ..BERT };

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["summary_activation", "summary_last_dropout", "summary_type", "summary_use_proj"]);
    let mut config = bert_style::config(json, &DEFAULTS)?;
    let width = json.get_or("embedding_size", 128)?;
    config.embed.width = Some(width).filter(|width| *width != config.d_model);
    config.head = Some(HeadConfig { width: Some(width), ..HeadConfig::new(Activation::Gelu) });
    Ok(config)
}

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

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let norms = norms_in_stream!("electra");
    let project = if config.embed.width.is_some() { PROJECT } else { &[] };
    Ok([&embeddings!("electra", AsIs)[..], project, &sublayers!("electra"), &norms, HEAD].concat())
}

/// The head of the discriminator is of another task.
fn left_out(_: &ConfigJson, name: &str) -> bool {
    name.starts_with("discriminator_predictions.")
}
