//! DeepSeek 3.2 (DeepSeek-AI 2025): DeepSeek 3 with an indexer that chooses the keys of each query.

use super::latent_style::{self, Widths, DEEPSEEK};
use super::llama_style::{self, *};
use super::mixture_style::{self, Mixture, DEEPSEEK_V3};
use super::{deepseek_v3, ConfigJson, Family};
use crate::config::{Indexer, PerLayer};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("deepseek_v32", &["DeepseekV32ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 7168,
    intermediate_size: 18432,
    num_hidden_layers: 61,
    num_attention_heads: 128,
    vocab_size: 129_280,
    max_position_embeddings: 163_840,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    let indexer =
        Indexer { n_heads: 64, d_head: 128, keep: 2048, adjacent_pairs: false, shares_choice: PerLayer::All(false) };
    sparse(json, &DEFAULTS, DEEPSEEK, &DEEPSEEK_V3, indexer)
}

/// Reads the fields of DeepSeek 3.2's relatives. `indexer` has their defaults.
pub(super) fn sparse(
    json: &ConfigJson,
    default: &Defaults,
    widths: Widths,
    mixture: &Mixture,
    indexer: Indexer,
) -> Result<Config> {
    // These change nothing in transformers: no MLP reads the first, all layers are `indexed_attention`, and pairs are adjacent.
    json.ignore(&["mlp_bias", "layer_types", "rope_interleave"]);
    let mut config = latent_style::config(json, default, widths, true)?;
    config.attention.indexer = Some(Indexer {
        n_heads: json.get_or("index_n_heads", indexer.n_heads)?,
        d_head: json.get_or("index_head_dim", indexer.d_head)?,
        keep: json.get_or("index_topk", indexer.keep)?,
        ..indexer
    });
    let first = json.get_or("first_k_dense_replace", 3)?;
    let dense = mixture_style::mlp_layer_types(json, &config, |layer| layer < first)?;
    mixture_style::set_deepseek_experts(json, &mut config, mixture, dense)?;
    Ok(config)
}

const INDEXER: &[Entry] = &[
    entry(IndexQ, "model.layers.{l}.self_attn.indexer.wq_b.weight", AsIs),
    entry(IndexK, "model.layers.{l}.self_attn.indexer.wk.weight", AsIs),
    entry(IndexKNormW, "model.layers.{l}.self_attn.indexer.k_norm.weight", AsIs),
    entry(IndexKNormB, "model.layers.{l}.self_attn.indexer.k_norm.bias", AsIs),
    entry(IndexWeights, "model.layers.{l}.self_attn.indexer.weights_proj.weight", AsIs),
];

pub(super) fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([&deepseek_v3::names(config, json)?, INDEXER].concat())
}
