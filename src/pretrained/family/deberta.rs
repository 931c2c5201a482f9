//! DeBERTa (He et al. 2021; He et al. 2023, "DeBERTaV3"): BERT whose attention compares tokens with distances as well.

use super::bert_style::{self, *};
use super::deberta_style::{disentangled, ends, has, left_out, of};
use super::{ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    ignored: &["embeddings.position_ids", "decoder.bias"],
    left_out,
    ..bert_style::family(
        "deberta",
        &["DebertaForMaskedLM", "DebertaForSequenceClassification", "DebertaForTokenClassification"],
        "deberta.",
        config,
        names,
    )
};

pub(super) const DEFAULTS: Defaults =
    Defaults { vocab_size: 50265, type_vocab_size: Some(0), layer_norm_eps: 1e-7, ..BERT };

fn config(json: &ConfigJson) -> Result<Config> {
    json.expect_only("talking_head", false)?;
    let mut config = of(json, &DEFAULTS)?;
    config.attention.disentangled = disentangled(json, &config, None)?;
    Ok(config)
}

const ATTENTION: &[Entry] = &[
    entry(Q, "deberta.encoder.layer.{l}.attention.self.in_proj.weight", QkvPerHead(0)),
    entry(K, "deberta.encoder.layer.{l}.attention.self.in_proj.weight", QkvPerHead(1)),
    entry(V, "deberta.encoder.layer.{l}.attention.self.in_proj.weight", QkvPerHead(2)),
    entry(QB, "deberta.encoder.layer.{l}.attention.self.q_bias", AsIs),
    entry(VB, "deberta.encoder.layer.{l}.attention.self.v_bias", AsIs),
    entry(DistanceK, "deberta.encoder.layer.{l}.attention.self.pos_proj.weight", AsIs),
    entry(DistanceQ, "deberta.encoder.layer.{l}.attention.self.pos_q_proj.weight", AsIs),
    entry(DistanceQB, "deberta.encoder.layer.{l}.attention.self.pos_q_proj.bias", AsIs),
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let others = sublayers!("deberta").into_iter().filter(|it| !matches!(it.part, Q | QB | K | KB | V | VB));
    let all = [ATTENTION, &others.collect::<Vec<_>>(), &ends(config, json)].concat();
    Ok(all.into_iter().filter(|entry| has(config, entry.part)).collect())
}
