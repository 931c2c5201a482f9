//! ERNIE 4.5 (Baidu 2025), dense: Llama with a rotation of neighbouring pairs.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("ernie4_5", &["Ernie4_5ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 1024,
    intermediate_size: 3072,
    num_hidden_layers: 18,
    num_attention_heads: 16,
    num_key_value_heads: Some(2),
    head_dim: Some(128),
    vocab_size: 103_424,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    tie_word_embeddings: true,
    rope: Some(Rope { theta: 500_000.0, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    rotate_adjacent_pairs(&mut config);
    Ok(config)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let has_biases = json.get_or("use_bias", false)?;
    let biases = [entries_if(has_biases, ATTENTION_BIASES), entries_if(has_biases, MLP_BIASES)];
    Ok([ENDS, ATTENTION, NORMS, MLP, biases[0], biases[1]].concat())
}
