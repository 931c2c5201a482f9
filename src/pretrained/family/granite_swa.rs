//! Granite with windows (IBM 2026): attention sinks, a window on most layers, and a rotation for each layer.

use super::granite::{divides_logits, factor, multiplied};
use super::llama_style::{self, *};
use super::{llama, ConfigJson, Family};
use crate::config::{PerLayer, Positions, Rotary};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("granite_swa", &["GraniteSWAForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2560,
    intermediate_size: 8192,
    num_hidden_layers: 24,
    num_attention_heads: 20,
    num_key_value_heads: Some(4),
    vocab_size: 100_352,
    max_position_embeddings: 8192,
    norm_eps: 1e-5,
    tie_word_embeddings: true,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.scale = Some(1.0 / factor(json, "attention_multiplier", 1.0)?);
    with_windows(json, config)
}

/// The model with its windows, sinks and rotations.
pub(super) fn with_windows(json: &ConfigJson, mut config: Config) -> Result<Config> {
    config.attention.sinks = true;
    config.attention.sinks_after_pattern = true;
    let window = json.get_unless_null("sliding_window", Some(128))?;
    config.attention.reach = layer_types(json, config.n_layers, window, |layer| layer % 4 != 0)?;
    if let (Some(bases), Some(rotary)) = (json.get::<Vec<f64>>("layer_rope_theta")?, config.rotary().cloned()) {
        if bases.len() != config.n_layers {
            let why = format!("it must have one entry for each of the {} layers", config.n_layers);
            return Err(json.refuse("layer_rope_theta", format!("a list of {}", bases.len()), &why));
        }
        // A base of zero means no rotation.
        let of_base = |base: f64| (base != 0.0).then(|| Rotary { base, ..rotary.clone() });
        let rotations: Vec<_> = bases.into_iter().map(of_base).collect();
        config.positions = match rotations.iter().all(Option::is_none) {
            true => Positions::None,
            false => Positions::Rotary(PerLayer::from_layers(rotations)),
        };
    }
    Ok(config)
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let sinks = entry(Sinks, "model.layers.{l}.self_attn.sinks", AsIs);
    multiplied(json, [llama::names(config, json)?, vec![sinks]].concat(), divides_logits(json)?)
}
