//! What both versions of DeBERTa share: their distances, ends and heads.

use super::bert_style::{self, *};
use super::{bert, ConfigJson};
use crate::config::{Disentangled, HeadConfig};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

/// What both versions have but for their distances.
pub(super) fn of(json: &ConfigJson, default: &Defaults) -> Result<Config> {
    json.ignore(&["pooler_dropout"]);
    let mut config = bert_style::config(json, default)?;
    if !json.get_or("position_biased_input", true)? {
        config.positions = crate::config::Positions::None;
    }
    let kinds = kinds(json)?.len();
    config.attention.scale = Some((config.d_head as f64 * (1 + kinds) as f64).sqrt());
    json.expect_only("legacy", true)?;
    json.expect_only("embedding_size", config.d_model)?;
    let activation = json.activation(&["pooler_hidden_act"], "gelu")?;
    json.expect_only("pooler_hidden_size", config.d_model)?;
    Task::of(json).apply(json, &mut config, HeadConfig::of_texts(activation))?;
    Ok(config)
}

/// What is compared with distances: `c2p`, `p2c`.
fn kinds(json: &ConfigJson) -> Result<Vec<String>> {
    let text: Option<serde_json::Value> = json.get("pos_att_type")?;
    let kinds: Vec<String> = match &text {
        None => Vec::new(),
        Some(serde_json::Value::String(text)) => text.split('|').map(|kind| kind.trim().to_lowercase()).collect(),
        Some(serde_json::Value::Array(kinds)) => {
            kinds.iter().filter_map(|kind| kind.as_str()).map(String::from).collect()
        }
        Some(other) => return Err(json.refuse("pos_att_type", other, "expected a list")),
    };
    match kinds.iter().find(|kind| !["c2p", "p2c"].contains(&kind.as_str())) {
        Some(other) => Err(json.refuse("pos_att_type", other, "expected c2p and p2c")),
        None => Ok(kinds),
    }
}

/// The comparison with distances, in buckets where there are so many.
pub(super) fn disentangled(json: &ConfigJson, config: &Config, buckets: Option<usize>) -> Result<Option<Disentangled>> {
    let furthest: i64 = json.get_or("max_relative_positions", -1)?;
    let furthest = if furthest < 1 { config.n_ctx } else { furthest as usize };
    let kinds = kinds(json)?;
    if !json.get_or("relative_attention", false)? {
        return Ok(None);
    }
    Ok(Some(Disentangled {
        span: buckets.unwrap_or(furthest),
        bucketed_up_to: buckets.map(|_| furthest),
        content_to_position: kinds.iter().any(|kind| kind == "c2p"),
        position_to_content: kinds.iter().any(|kind| kind == "p2c"),
        shares_weights: false,
        norm: false,
    }))
}

const POOLER: &[Entry] = &[entry(HeadW, "pooler.dense.weight", AsIs), entry(HeadB, "pooler.dense.bias", AsIs)];

/// Embeddings, norms and the head of both versions.
pub(super) fn ends(config: &Config, json: &ConfigJson) -> Vec<Entry> {
    let distances = [entry(WDistance, "deberta.encoder.rel_embeddings.weight", AsIs)];
    let vocabulary = [&head!("cls.predictions.transform")[..], &bert::unembedding(config)].concat();
    let head = Task::of(json).names(&vocabulary, &[POOLER, CLASSIFIER].concat(), CLASSIFIER);
    [&embeddings!("deberta", AsIs)[..], &distances, &norms_in_stream!("deberta"), &head].concat()
}

/// Whether a model of this shape has a part that only some have.
pub(super) fn has(config: &Config, part: crate::pretrained::parts::Part) -> bool {
    let disentangled = config.attention.disentangled;
    match part {
        WPos => config.has_w_pos(),
        WTokenType => config.embed.token_types > 0,
        WDistance => disentangled.is_some(),
        DistanceLnW | DistanceLnB => disentangled.is_some_and(|it| it.norm),
        DistanceK | DistanceKB => disentangled.is_some_and(|it| it.content_to_position && !it.shares_weights),
        DistanceQ | DistanceQB => disentangled.is_some_and(|it| it.position_to_content && !it.shares_weights),
        _ => true,
    }
}

/// The pooler, and the heads of the original files.
pub(super) fn left_out(_: &ConfigJson, name: &str) -> bool {
    ["pooler.", "cls.", "lm_predictions.", "mask_predictions."].iter().any(|start| name.starts_with(start))
}
