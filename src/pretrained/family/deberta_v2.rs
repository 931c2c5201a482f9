//! DeBERTa 2 and 3 (He et al. 2021, 2023): distances in buckets, compared by the weights that compare tokens.

use super::bert_style::{self, *};
use super::{deberta, deberta_style, ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    // The last two are of embeddings of distances, which a model may lack.
    ignored: &["embeddings.position_ids", "decoder.bias", "encoder.LayerNorm.weight", "encoder.LayerNorm.bias"],
    left_out: deberta_style::left_out,
    ..bert_style::family(
        "deberta-v2",
        &["DebertaV2ForMaskedLM", "DebertaV2ForSequenceClassification", "DebertaV2ForTokenClassification"],
        "deberta.",
        config,
        names,
    )
};

const DEFAULTS: Defaults = Defaults {
    hidden_size: 1536,
    intermediate_size: 6144,
    num_hidden_layers: 24,
    num_attention_heads: 24,
    vocab_size: 128100,
    ..deberta::DEFAULTS
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["conv_act", "conv_groups"]);
    json.expect_only("conv_kernel_size", 0)?; // a convolution after the first block
    let mut config = deberta_style::of(json, &DEFAULTS)?;
    json.expect_only("attention_head_size", config.d_head)?;
    let buckets: i64 = json.get_or("position_buckets", -1)?;
    let buckets = usize::try_from(buckets).ok().filter(|buckets| *buckets > 0);
    let shares_weights = json.get_or("share_att_key", false)?;
    let norm = json.get_or("norm_rel_ebd", "none".to_string())?.to_lowercase().contains("layer_norm");
    let distances = deberta_style::disentangled(json, &config, buckets)?;
    config.attention.disentangled =
        distances.map(|distances| crate::config::Disentangled { shares_weights, norm, ..distances });
    Ok(config)
}

const ATTENTION: &[Entry] = &[
    entry(Q, "deberta.encoder.layer.{l}.attention.self.query_proj.weight", AsIs),
    entry(QB, "deberta.encoder.layer.{l}.attention.self.query_proj.bias", AsIs),
    entry(K, "deberta.encoder.layer.{l}.attention.self.key_proj.weight", AsIs),
    entry(KB, "deberta.encoder.layer.{l}.attention.self.key_proj.bias", AsIs),
    entry(V, "deberta.encoder.layer.{l}.attention.self.value_proj.weight", AsIs),
    entry(VB, "deberta.encoder.layer.{l}.attention.self.value_proj.bias", AsIs),
    entry(DistanceK, "deberta.encoder.layer.{l}.attention.self.pos_key_proj.weight", AsIs),
    entry(DistanceKB, "deberta.encoder.layer.{l}.attention.self.pos_key_proj.bias", AsIs),
    entry(DistanceQ, "deberta.encoder.layer.{l}.attention.self.pos_query_proj.weight", AsIs),
    entry(DistanceQB, "deberta.encoder.layer.{l}.attention.self.pos_query_proj.bias", AsIs),
    entry(DistanceLnW, "deberta.encoder.LayerNorm.weight", AsIs),
    entry(DistanceLnB, "deberta.encoder.LayerNorm.bias", AsIs),
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let others = sublayers!("deberta").into_iter().filter(|it| !matches!(it.part, Q | QB | K | KB | V | VB));
    let all = [ATTENTION, &others.collect::<Vec<_>>(), &deberta_style::ends(config, json)].concat();
    Ok(all.into_iter().filter(|entry| deberta_style::has(config, entry.part)).collect())
}
