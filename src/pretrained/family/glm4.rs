//! GLM-4 of 2025 (0414): GLM with norms after the sublayers, too.

use super::llama_style;
use super::{glm, ConfigJson, Family};
use crate::config::NormPosition;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("glm4", &["Glm4ForCausalLM"], config, names);

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = glm::config(json)?;
    config.norms.position = NormPosition::BeforeAndAfter;
    Ok(config)
}

const NORMS_AFTER: &[Entry] = &[
    entry(Ln1PostW, "model.layers.{l}.post_self_attn_layernorm.weight", AsIs),
    entry(Ln2PostW, "model.layers.{l}.post_mlp_layernorm.weight", AsIs),
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([&glm::names(config, json)?, NORMS_AFTER].concat())
}
