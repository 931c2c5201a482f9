//! Ministral (Mistral AI 2024): Mistral in which layers may reach every position.

use super::llama_style::{self, *};
use super::{mistral, ConfigJson, Family};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("ministral", &["MinistralForCausalLM"], config, mistral::names);

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &mistral::DEFAULTS)?;
    let window = json.get_unless_null("sliding_window", Some(4096))?;
    config.attention.reach = layer_types(json, config.n_layers, window, |_| window.is_some())?;
    Ok(config)
}
