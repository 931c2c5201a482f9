//! The language model of Llama 3.2 Vision (Meta 2024), without its layers of cross-attention.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("mllama_text_model", &["MllamaForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 14336,
    num_hidden_layers: 40,
    num_key_value_heads: Some(8),
    vocab_size: 128_256,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    rope: Some(Rope { theta: 500_000.0, ..Rope::DEFAULT }),
    ..LLAMA
};

/// The embedding has so many rows more, for images.
const MORE_ROWS: usize = 8;

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["dropout"]);
    let layers = json.get::<Vec<usize>>("cross_attention_layers")?;
    if !layers.as_ref().is_some_and(Vec::is_empty) {
        let value = layers.map_or("absent".into(), |layers| format!("{layers:?}"));
        return Err(json.refuse("cross_attention_layers", value, "layers that attend to images are not supported"));
    }
    let config = llama_style::config(json, &DEFAULTS)?;
    Ok(Config { d_vocab: config.d_vocab.saturating_add(MORE_ROWS), ..config })
}

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, NORMS, MLP].concat())
}
