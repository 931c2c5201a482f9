//! Granite (IBM 2024): Llama with factors of the embedding, of what each sublayer adds, of the scores and of the logits.

use super::llama_style::{self, *};
use super::{llama, ConfigJson, Family};
use crate::pretrained::parts::{Entry, Part, View};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("granite", &["GraniteForCausalLM"], config, names);

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &LLAMA)?;
    config.attention.scale = Some(1.0 / factor(json, "attention_multiplier", 1.0)?);
    Ok(config)
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    multiplied(json, llama::names(config, json)?, divides_logits(json)?)
}

/// A factor that can be divided by.
pub(super) fn factor(json: &ConfigJson, field: &str, default: f64) -> Result<f64> {
    let factor: f64 = json.get_or(field, default)?;
    match factor.is_normal() {
        true => Ok(factor),
        false => Err(json.refuse(field, factor, "it must be a number other than zero")),
    }
}

/// The factor of logits that `logits_scaling` divides.
pub(super) fn divides_logits(json: &ConfigJson) -> Result<f64> {
    Ok(1.0 / factor(json, "logits_scaling", 1.0)?)
}

/// A table whose weights have the factors of the embedding, of the sublayers and of the logits.
pub(super) fn multiplied(json: &ConfigJson, table: Vec<Entry>, logits: f64) -> Result<Vec<Entry>> {
    let embedding = factor(json, "embedding_multiplier", 1.0)?;
    let residual = factor(json, "residual_multiplier", 1.0)?;
    Ok(times(table, embedding, residual, logits))
}

/// A table whose weights have these factors of the embedding, of what each sublayer adds and of the logits. Where norms stand after
/// the sublayers, the norms' gains have them. A mixture's experts have them in the weights that the router gives them.
pub(super) fn times(mut table: Vec<Entry>, embedding: f64, residual: f64, logits: f64) -> Vec<Entry> {
    use Part::{Ln1PostW, Ln2PostW, Out, OutB, SharedOut, SharedOutB, O, OB, U, UB, WE};
    let norms_after = table.iter().any(|entry| entry.part == Ln1PostW);
    for entry in &mut table {
        let factor = match entry.part {
            WE => embedding,
            U | UB => logits,
            Ln1PostW | Ln2PostW => residual,
            O | OB | Out | OutB | SharedOut | SharedOutB if !norms_after && !entry.is_per_expert() => residual,
            _ => 1.0,
        };
        if factor != 1.0 {
            entry.view = View::Times(factor);
        }
    }
    table
}
