//! Ministral 3 (Mistral AI 2025): Mistral with a stretched rotation, and queries that grow with their position.

use super::llama_style::{self, *};
use super::{mistral, ConfigJson, Family};
use crate::config::{PerLayer, Positions, RopeScaling, Rotary, Temperature, TemperatureGrowth};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("ministral3", &["Ministral3ForCausalLM"], config, mistral::names);

const DEFAULTS: Defaults = Defaults {
    num_hidden_layers: 34,
    head_dim: Some(128),
    vocab_size: 131_072,
    max_position_embeddings: 262_144,
    norm_eps: 1e-5,
    ..mistral::DEFAULTS
};

/// The rotation of a file without `rope_parameters` and `rope_scaling`, whatever its `rope_theta`.
const SCALING: RopeScaling = RopeScaling::Yarn {
    factor: 16.0,
    attention_factor: 1.0,
    beta_fast: 32.0,
    beta_slow: 1.0,
    truncate: true,
    original_max_position_embeddings: 16384,
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.reach = window_everywhere(json, None)?;
    let parameters = match json.object("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => json.object("rope_parameters")?,
    };
    let (beta, trained) = match parameters {
        Some(parameters) => {
            parameters.ignore(&["max_position_embeddings"]);
            let trained: f64 = parameters.require("original_max_position_embeddings")?;
            (parameters.require("llama_4_scaling_beta")?, trained)
        }
        None => {
            config.positions = Positions::rotary(Rotary { scaling: SCALING, ..Rotary::new(config.d_head, 1e6) });
            (0.1, 16384.0)
        }
    };
    config.attention.temperature =
        PerLayer::All(Some(Temperature { beta, period: trained, offset: 0, growth: TemperatureGrowth::Logarithmic }));
    Ok(config)
}
