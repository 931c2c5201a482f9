//! ESM (Rives et al. 2021; Lin et al. 2023, "ESM-2"): an encoder of proteins, with norms before the sublayers and at the end.

use super::bert_style::{self, *};
use super::{roberta, ConfigJson, Family};
use crate::config::{Activation, Positions};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    ignored: &["rotary_embeddings.inv_freq", "embeddings.position_ids"],
    left_out,
    ..bert_style::family("esm", &["EsmForMaskedLM"], "esm.", config, names)
};

const DEFAULTS: Defaults = Defaults { max_position_embeddings: 1026, type_vocab_size: None, ..BERT };

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["esmfold_config", "vocab_list"]);
    json.expect_only("is_folding_model", false)?;
    json.require::<usize>("vocab_size")?;
    let mut config = bert_style::shape(json, &DEFAULTS, Activation::Gelu)?;
    norms_before(&mut config);
    config.norms.after_full_embed = json.get_or("emb_layer_norm_before", false)?;
    json.ignore(&["mask_token_id"]);
    if json.get_or("token_dropout", false)? {
        config.embed.token_dropout = Some(json.require("mask_token_id")?);
    }
    match is_rotary(json)? {
        true => config.positions = Positions::rotary(json.rotary(config.d_head, config.n_ctx, Rope::DEFAULT)?),
        false => config.n_ctx = config.n_ctx.saturating_sub(roberta::first_position(json)?),
    }
    Ok(config)
}

/// Whether positions are rotary, and not learned.
fn is_rotary(json: &ConfigJson) -> Result<bool> {
    json.ignore(&["rope_theta"]);
    match json.get_or("position_embedding_type", "absolute".to_string())?.as_str() {
        "rotary" => Ok(true),
        "absolute" => Ok(false),
        other => Err(json.refuse("position_embedding_type", other, "expected rotary or absolute")),
    }
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let [word, positions, _] = embeddings!("esm", RowsFrom(roberta::first_position(json)? as i64));
    let mut all = vec![word];
    if !is_rotary(json)? {
        all.push(positions);
    }
    if config.norms.after_full_embed {
        all.extend(norm!(EmbedLnW, EmbedLnB, "esm.embeddings.layer_norm"));
    }
    let norms = [
        norm!(Ln1W, Ln1B, "esm.encoder.layer.{l}.attention.LayerNorm"),
        norm!(Ln2W, Ln2B, "esm.encoder.layer.{l}.LayerNorm"),
        norm!(LnFinalW, LnFinalB, "esm.encoder.emb_layer_norm_after"),
    ];
    let unembedding = [entry(U, "lm_head.decoder.weight", AsIs), entry(UB, "lm_head.bias", AsIs)];
    Ok([&all[..], &sublayers!("esm"), &norms.concat(), roberta::HEAD, &unembedding].concat())
}

/// Contacts of residues are predicted from patterns, by another head.
fn left_out(_: &ConfigJson, name: &str) -> bool {
    name.starts_with("esm.contact_head.") || name.starts_with("esm.pooler.")
}
