//! ALBERT (Lan et al. 2020): BERT whose layers share weights, with embeddings of another width.

use super::bert_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{Activation, HeadConfig};
use crate::pretrained::parts::{entry, Entry, Part::*, Shared, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    Family { left_out, ..bert_style::family("albert", ARCHITECTURES, "albert.", config, names) };

const ARCHITECTURES: &[&str] =
    &["AlbertForMaskedLM", "AlbertForPreTraining", "AlbertForSequenceClassification", "AlbertForTokenClassification"];

const DEFAULTS: Defaults = Defaults {
    hidden_size: 4096,
    intermediate_size: 16384,
    num_attention_heads: 64,
    vocab_size: 30000,
    hidden_act: "gelu_new",
    ..BERT
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["classifier_dropout_prob", "down_scale_factor", "gap_size"]);
    json.ignore(&["net_structure_type", "num_memory_blocks"]);
    let mut config = bert_style::config(json, &DEFAULTS)?;
    let width = json.get_or("embedding_size", 128)?;
    config.embed.width = Some(width);
    config.head = config.head.map(|head| HeadConfig { width: Some(width), ..head });
    Task::of(json).apply(json, &mut config, HeadConfig::of_texts(Activation::Tanh))?;
    config.n_layers = config.n_layers.saturating_mul(shared(json)?.of_group);
    Ok(config)
}

/// Which layers share their weights.
fn shared(json: &ConfigJson) -> Result<Shared> {
    let positive = |field: &str, default: usize| match json.get_or(field, default)? {
        0 => Err(json.refuse(field, 0, "it must be at least 1")),
        value => Ok(value),
    };
    let (runs, groups) =
        (positive("num_hidden_layers", DEFAULTS.num_hidden_layers)?, positive("num_hidden_groups", 1)?);
    Ok(Shared { runs, groups, of_group: positive("inner_group_num", 1)? })
}

/// The names of a layer, `{g}` being its group and `{i}` its number in the group.
macro_rules! layer {
    ($($part:ident, $name:literal;)+) => {
        [$(entry($part, concat!("albert.encoder.albert_layer_groups.{g}.albert_layers.{i}.", $name), AsIs),)+]
    };
}

const LAYER: [Entry; 16] = layer! {
    Q, "attention.query.weight"; QB, "attention.query.bias";
    K, "attention.key.weight"; KB, "attention.key.bias";
    V, "attention.value.weight"; VB, "attention.value.bias";
    O, "attention.dense.weight"; OB, "attention.dense.bias";
    Ln1W, "attention.LayerNorm.weight"; Ln1B, "attention.LayerNorm.bias";
    In, "ffn.weight"; InB, "ffn.bias";
    Out, "ffn_output.weight"; OutB, "ffn_output.bias";
    Ln2W, "full_layer_layer_norm.weight"; Ln2B, "full_layer_layer_norm.bias";
};

const ENDS: &[Entry] = &[
    entry(EmbedLnW, "albert.embeddings.LayerNorm.weight", AsIs),
    entry(EmbedLnB, "albert.embeddings.LayerNorm.bias", AsIs),
    entry(EmbedProject, "albert.encoder.embedding_hidden_mapping_in.weight", AsIs),
    entry(EmbedProjectB, "albert.encoder.embedding_hidden_mapping_in.bias", AsIs),
];

const POOLER: &[Entry] = &[entry(HeadW, "albert.pooler.weight", AsIs), entry(HeadB, "albert.pooler.bias", AsIs)];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let shared = shared(json)?;
    let layers: Vec<Entry> = LAYER.iter().map(|entry| entry.shared(shared)).collect();
    let unembedding =
        unembedding!(config, "predictions.decoder.weight", "predictions.bias", "predictions.decoder.bias");
    let vocabulary = [&head!("predictions")[..], &unembedding].concat();
    let head = Task::of(json).names(&vocabulary, &[POOLER, CLASSIFIER].concat(), CLASSIFIER);
    Ok([&embeddings!("albert", AsIs)[..], ENDS, &layers, &head].concat())
}

/// The pooler and what it feeds are of other tasks.
fn left_out(_: &ConfigJson, name: &str) -> bool {
    ["albert.pooler.", "sop_classifier.", "predictions."].iter().any(|start| name.starts_with(start))
}
