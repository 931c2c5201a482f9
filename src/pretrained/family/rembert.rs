//! RemBERT (Chung et al. 2021) and RoFormer (Su et al. 2021): BERT with embeddings of another width; RoFormer's positions are rotary.

use super::bert_style::{self, *};
use super::{bert, ConfigJson, Family};
use crate::config::{HeadConfig, Positions, Rotary};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const REMBERT: Family = Family {
    left_out: bert::left_out,
    ..bert_style::family(
        "rembert",
        &["RemBertForMaskedLM", "RemBertForCausalLM"],
        "rembert.",
        rembert_config,
        rembert_names,
    )
};

pub(super) const ROFORMER: Family = Family {
    ignored: &["encoder.embed_positions.weight", "decoder.bias", "predictions.bias"],
    left_out: bert::left_out,
    ..bert_style::family(
        "roformer",
        &["RoFormerForMaskedLM", "RoFormerForCausalLM"],
        "roformer.",
        roformer_config,
        roformer_names,
    )
};

const REMBERT_DEFAULTS: Defaults = Defaults {
    hidden_size: 1152,
    intermediate_size: 4608,
    num_hidden_layers: 32,
    num_attention_heads: 18,
    vocab_size: 250300,
    tie_word_embeddings: false,
    ..BERT
};

const ROFORMER_DEFAULTS: Defaults = Defaults { vocab_size: 50000, max_position_embeddings: 1536, ..BERT };

fn rembert_config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["classifier_dropout_prob"]);
    let mut config = bert_style::config(json, &REMBERT_DEFAULTS)?;
    config.embed.width = Some(json.get_or("input_embedding_size", 256)?);
    let width = Some(json.get_or("output_embedding_size", 1664)?);
    config.head = config.head.map(|head| HeadConfig { width, ..head });
    Ok(config)
}

fn roformer_config(json: &ConfigJson) -> Result<Config> {
    json.expect_only("rotary_value", false)?;
    let mut config = bert_style::config(json, &ROFORMER_DEFAULTS)?;
    let width = json.get("embedding_size")?.unwrap_or(config.d_model);
    config.embed.width = Some(width).filter(|width| *width != config.d_model);
    config.head = config.head.map(|head| HeadConfig { width: Some(width), ..head });
    config.positions = Positions::rotary(Rotary { adjacent_pairs: true, ..Rotary::new(config.d_head, 10000.0) });
    Ok(config)
}

const REMBERT_PROJECT: &[Entry] = &[
    entry(EmbedProject, "rembert.encoder.embedding_hidden_mapping_in.weight", AsIs),
    entry(EmbedProjectB, "rembert.encoder.embedding_hidden_mapping_in.bias", AsIs),
];

const ROFORMER_PROJECT: &[Entry] = &[
    entry(EmbedProject, "roformer.embeddings_project.weight", AsIs),
    entry(EmbedProjectB, "roformer.embeddings_project.bias", AsIs),
];

const REMBERT_UNEMBEDDING: &[Entry] =
    &[entry(U, "cls.predictions.decoder.weight", AsIs), entry(UB, "cls.predictions.decoder.bias", AsIs)];

fn rembert_names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let norms = norms_in_stream!("rembert");
    let ends = [&head!("cls.predictions")[..], REMBERT_PROJECT, REMBERT_UNEMBEDDING].concat();
    Ok([&embeddings!("rembert", AsIs)[..], &sublayers!("rembert"), &norms, &ends].concat())
}

fn roformer_names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let [word, _, types] = embeddings!("roformer", AsIs);
    let project = if config.embed.width.is_some() { ROFORMER_PROJECT } else { &[] };
    let norms = norms_in_stream!("roformer");
    let ends = [&head!("cls.predictions.transform")[..], project, &bert::unembedding(config)].concat();
    Ok([&[word, types][..], &sublayers!("roformer"), &norms, &ends].concat())
}
