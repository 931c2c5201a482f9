//! The language model of Llama 3.2 Vision (Meta 2024). Its layers of cross-attention see images only, and text skips them.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::MAX_LAYERS;
use crate::pretrained::parts::Entry;
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    left_out: |json, name| {
        let layers = cross_attention_layers(json).unwrap_or_default();
        layers.iter().any(|layer| name.starts_with(&format!("model.layers.{layer}.")))
    },
    ..llama_style::family("mllama_text_model", &["MllamaForCausalLM"], config, names)
};

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

fn cross_attention_layers(json: &ConfigJson) -> Result<Vec<usize>> {
    json.get_or("cross_attention_layers", vec![3, 8, 13, 18, 23, 28, 33, 38])
}

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["dropout"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    let mut skipped = cross_attention_layers(json)?;
    skipped.sort_unstable();
    skipped.dedup();
    config.n_layers = config.n_layers.saturating_sub(skipped.iter().filter(|layer| **layer < config.n_layers).count());
    config.d_vocab = config.d_vocab.saturating_add(MORE_ROWS);
    Ok(config)
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let skipped = cross_attention_layers(json)?;
    let layers = config.n_layers.min(MAX_LAYERS);
    let numbers: Vec<usize> = (0..).filter(|number| !skipped.contains(number)).take(layers).collect();
    let mut table = ENDS.to_vec();
    let mut start = 0;
    // Blocks that follow each other have numbers that do.
    for run in numbers.chunk_by(|a, b| a + 1 == *b) {
        let of_run = |entry: &Entry| entry.in_blocks(start..start + run.len()).counted_from(run[0] - start);
        table.extend([ATTENTION, NORMS, MLP].concat().iter().map(of_run));
        start += run.len();
    }
    Ok(table)
}
