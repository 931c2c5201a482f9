//! MiniCPM 3 (OpenBMB 2024): a dense Llama with latent attention, and factors of the embedding, the sublayers and the logits.

use super::granite::{factor, times};
use super::latent_style::{self, Widths};
use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("minicpm3", &["MiniCPM3ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2560,
    intermediate_size: 6400,
    num_hidden_layers: 62,
    num_attention_heads: 40,
    vocab_size: 73448,
    max_position_embeddings: 32768,
    norm_eps: 1e-5,
    tie_word_embeddings: true,
    ..LLAMA
};

const WIDTHS: Widths = Widths { query_rank: Some(768), key_value_rank: 256, unrotated: 64, rotated: 32, value: None };

fn config(json: &ConfigJson) -> Result<Config> {
    latent_style::config(json, &DEFAULTS, WIDTHS, false)
}

const MLP_BIASES: &[Entry] = llama_style::MLP_BIASES;

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = entries_if(json.get_or("mlp_bias", false)?, MLP_BIASES);
    let table = [ENDS, &latent_style::names(config, json)?, NORMS, MLP, biases].concat();
    let root = (config.n_layers as f64).sqrt();
    let depth = json.get_unless_null("scale_depth", Some(1.4))?.unwrap_or(root);
    let base: f64 = json.get_unless_null("dim_model_base", Some(256.0))?.unwrap_or(config.d_model as f64);
    if !(depth.is_normal() && base.is_normal()) {
        return Err(json.refuse("scale_depth", depth, "it and dim_model_base must be numbers other than zero"));
    }
    Ok(times(table, factor(json, "scale_emb", 12.0)?, depth / root, base / config.d_model as f64))
}
