//! Cohere's Command R7B and A (Cohere 2024, 2025): Command R with a window on most layers, where alone positions enter.

use super::llama_style::{self, *};
use super::{cohere, ConfigJson, Family};
use crate::config::Reach;
use crate::pretrained::parts::Entry;
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("cohere2", &["Cohere2ForCausalLM"], config, names);

/// transformers' defaults.
pub(super) const DEFAULTS: Defaults = Defaults { rope: Some(Rope::DEFAULT), ..cohere::DEFAULTS };

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = cohere::parallel(llama_style::config(json, &DEFAULTS)?);
    json.expect_only("head_dim", config.d_model / config.n_heads.max(1))?;
    let pattern: usize = json.get_or("sliding_window_pattern", 4)?;
    let window = json.get_unless_null("sliding_window", Some(4096))?;
    config.attention.reach = layer_types(json, config.n_layers, window, |layer| (layer + 1) % pattern.max(1) != 0)?;
    rotate_adjacent_pairs(&mut config);
    let reach = config.attention.reach.clone();
    rotate_only(&mut config, |layer| reach.get(layer) != Some(&Reach::Global));
    Ok(config)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    cohere::names_without_qk_norms(json, 0.0625)
}
