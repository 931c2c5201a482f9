//! Cohere's Command R (2024): attention and MLP in parallel after one layer norm without a bias, rotation of neighbouring pairs, and
//! a factor of the logits.

use super::granite::factor;
use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{Normalization, QkNorm};
use crate::pretrained::parts::{Entry, Part, View};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("cohere", &["CohereForCausalLM"], config, names);

/// transformers' defaults.
pub(super) const DEFAULTS: Defaults = Defaults {
    hidden_size: 8192,
    intermediate_size: 22528,
    num_hidden_layers: 40,
    num_attention_heads: 64,
    vocab_size: 256_000,
    max_position_embeddings: 8192,
    norm_eps: 1e-5,
    tie_word_embeddings: true,
    rope: Some(Rope { theta: 500_000.0, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = parallel(llama_style::config(json, &DEFAULTS)?);
    rotate_adjacent_pairs(&mut config);
    config.attention.qk_norm = json.get_or("use_qk_norm", false)?.then_some(QkNorm::PerHead(Normalization::LN));
    Ok(config)
}

/// A block of all of Cohere's models.
pub(super) fn parallel(mut config: Config) -> Config {
    config.norms.kind = Normalization::LN;
    config.parallel_attn_mlp = true;
    config
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let qk_norms = entries_if(config.qk_norm().is_some(), QK_NORMS);
    Ok([&names_without_qk_norms(json, 0.0625)?, qk_norms].concat())
}

/// The table of Cohere 2, with this default of the factor of the logits.
pub(super) fn names_without_qk_norms(json: &ConfigJson, logit_scale: f64) -> Result<Vec<Entry>> {
    let mut table = [ENDS, ATTENTION, attention_biases(json, false)?, ONE_NORM, MLP].concat();
    let scale = factor(json, "logit_scale", logit_scale)?;
    for entry in table.iter_mut().filter(|entry| entry.part == Part::U && scale != 1.0) {
        entry.view = View::Times(scale);
    }
    Ok(table)
}
