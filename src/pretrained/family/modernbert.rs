//! ModernBERT (Warner et al. 2024): an encoder with norms before its sublayers but the first, rotary positions, and windows on both sides of
//! most layers' queries.

use super::bert_style::{Task, CLASSIFIER};
use super::llama_style::{self, entries_if};
use super::{modernbert_decoder, ConfigJson, Family};
use crate::config::{AttentionDir, HeadConfig, Reach};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("modernbert", ARCHITECTURES, config, names);

const ARCHITECTURES: &[&str] =
    &["ModernBertForMaskedLM", "ModernBertForSequenceClassification", "ModernBertForTokenClassification"];

fn config(json: &ConfigJson) -> Result<Config> {
    let task = Task::of(json);
    match task {
        Task::Texts => json.expect_only("classifier_pooling", "cls".to_string())?,
        _ => json.ignore(&["classifier_pooling"]),
    }
    json.ignore(&["deterministic_flash_attn", "sep_token_id"]);
    json.ignore(&["sparse_prediction", "sparse_pred_ignore_index"]); // of training, with labels
    json.ignore(&["reference_compile", "repad_logits_with_grad"]);
    let mut config = modernbert_decoder::config(json)?;
    config.attention.direction = AttentionDir::Bidirectional;
    // So many positions on either side, and the query's own.
    config.attention.reach = config.attention.reach.map(|reach| match reach {
        Reach::Window(side) => Reach::Window(side.saturating_add(1)),
        other => *other,
    });
    // Classifiers have the same neurons before their outputs.
    if let Some(head) = config.head {
        task.apply(json, &mut config, HeadConfig { of_first: true, ..head })?;
        config.head = config.head.or(Some(head));
    }
    Ok(config)
}

const MATRICES: &[Entry] = &[
    entry(Q, "model.layers.{l}.attn.Wqkv.weight", QkvBlock(0)),
    entry(K, "model.layers.{l}.attn.Wqkv.weight", QkvBlock(1)),
    entry(V, "model.layers.{l}.attn.Wqkv.weight", QkvBlock(2)),
    entry(HeadW, "head.dense.weight", AsIs),
    entry(HeadLnW, "head.norm.weight", AsIs),
];

const ATTENTION_BIASES: &[Entry] = &[
    entry(QB, "model.layers.{l}.attn.Wqkv.bias", QkvBlock(0)),
    entry(KB, "model.layers.{l}.attn.Wqkv.bias", QkvBlock(1)),
    entry(VB, "model.layers.{l}.attn.Wqkv.bias", QkvBlock(2)),
];

const HEAD_BIAS: &[Entry] = &[entry(HeadB, "head.dense.bias", AsIs)];
const HEAD_NORM_BIAS: &[Entry] = &[entry(HeadLnB, "head.norm.bias", AsIs)];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    // The decoder has the same names, but for these.
    let classifies = Task::of(json) != Task::Vocabulary;
    let other = |entry: &Entry| match entry.part {
        U | UB => classifies,
        part => matches!(part, Q | K | V | QB | KB | VB | HeadW | HeadB | HeadLnW | HeadLnB),
    };
    let same: Vec<Entry> = modernbert_decoder::names(config, json)?.into_iter().filter(|it| !other(it)).collect();
    let attention_biases = entries_if(json.get_or("attention_bias", false)?, ATTENTION_BIASES);
    let head_bias = entries_if(json.get_or("classifier_bias", false)?, HEAD_BIAS);
    let norm_bias = entries_if(json.get_or("norm_bias", false)?, HEAD_NORM_BIAS);
    Ok([&same, MATRICES, attention_biases, head_bias, norm_bias, entries_if(classifies, CLASSIFIER)].concat())
}
