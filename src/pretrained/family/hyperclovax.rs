//! HyperCLOVA X (NAVER 2024): Granite with norms after the sublayers, too.

use super::granite::{factor, multiplied};
use super::llama_style::{self, *};
use super::{llama, ConfigJson, Family};
use crate::config::NormPosition;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("hyperclovax", &["HyperCLOVAXForCausalLM"], config, names);

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &LLAMA)?;
    config.attention.scale = match json.get::<f64>("attention_multiplier")? {
        None => Some(1.0 / (config.d_head as f64).powf(-0.5)),
        Some(_) => Some(1.0 / factor(json, "attention_multiplier", 1.0)?),
    };
    if json.get_or("use_post_norm", true)? {
        config.norms.position = NormPosition::BeforeAndAfter;
    }
    Ok(config)
}

const POST_NORMS: &[Entry] = &[
    entry(Ln1PostW, "model.layers.{l}.post_norm1.weight", AsIs),
    entry(Ln2PostW, "model.layers.{l}.post_norm2.weight", AsIs),
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let after = entries_if(config.norm_position() == NormPosition::BeforeAndAfter, POST_NORMS);
    let logits = factor(json, "logits_scaling", 1.0)?; // multiplies here, and divides in Granite
    multiplied(json, [&llama::names(config, json)?, after].concat(), logits)
}
