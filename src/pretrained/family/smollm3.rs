//! SmolLM 3 (Hugging Face 2025): Llama in which every fourth layer is blind to positions.

use super::llama_style::{self, *};
use super::{llama, ConfigJson, Family};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("smollm3", &["SmolLM3ForCausalLM"], config, llama::names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    num_hidden_layers: 36,
    num_attention_heads: 16,
    num_key_value_heads: Some(4),
    vocab_size: 128_256,
    max_position_embeddings: 32768,
    tie_word_embeddings: true,
    rope: Some(Rope { theta: 2e6, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    let n_layers = config.n_layers;
    let interval: usize = json.get_or("no_rope_layer_interval", 4)?;
    let rotates = match json.get::<Vec<i64>>("no_rope_layers")? {
        // Despite the field's name, 1 means that the layer rotates.
        Some(layers) if layers.len() == n_layers => layers.iter().map(|rotates| *rotates != 0).collect(),
        Some(layers) => {
            let why = format!("it must have one entry for each of the {n_layers} layers");
            return Err(json.refuse("no_rope_layers", format!("a list of {}", layers.len()), &why));
        }
        None => {
            let layers = 0..n_layers.min(crate::config::MAX_LAYERS); // `Config::validate` refuses more
            layers.map(|layer| (layer + 1) % interval.max(1) != 0).collect::<Vec<bool>>()
        }
    };
    rotate_only(&mut config, |layer| rotates.get(layer).copied().unwrap_or(true));
    let window: Option<usize> = json.get("sliding_window")?;
    let has_windows = json.get_or("use_sliding_window", false)? && window.is_some();
    let blind = |layer: usize| !rotates.get(layer).copied().unwrap_or(true);
    config.attention.reach = layer_types(json, n_layers, window, |layer| has_windows && blind(layer))?;
    Ok(config)
}
