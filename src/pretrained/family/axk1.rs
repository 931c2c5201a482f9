//! A.X K1 (SK Telecom 2026): DeepSeek 3 with a norm between each mixture and the stream.

use super::latent_style::{self, DEEPSEEK};
use super::llama_style::{self, *};
use super::mixture_style::{self, Mixture, DEEPSEEK_V3};
use super::{deepseek_v3, ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    ignored: &["rotary_emb.inv_freq", "post_mlp_layernorm.weight"], // the latter of dense layers
    ..llama_style::family("axk1", &["AXK1ForCausalLM"], config, names)
};

const DEFAULTS: Defaults = Defaults {
    hidden_size: 7168,
    intermediate_size: 18432,
    num_hidden_layers: 61,
    num_attention_heads: 64,
    vocab_size: 163_840,
    max_position_embeddings: 32768,
    ..LLAMA
};

const MIXTURE: Mixture = Mixture { experts: 192, ..DEEPSEEK_V3 };

fn config(json: &ConfigJson) -> Result<Config> {
    let adjacent = json.get_or("rope_interleave", true)?;
    let mut config = latent_style::config(json, &DEFAULTS, DEEPSEEK, adjacent)?;
    let first: usize = json.get_or("first_k_dense_replace", 1)?;
    let every: usize = json.get_or("moe_layer_freq", 1)?;
    let is_dense = |layer: usize| layer < first || every == 0 || !layer.is_multiple_of(every);
    let dense = mixture_style::mlp_layer_types(json, &config, is_dense)?;
    mixture_style::set_deepseek_experts(json, &mut config, &MIXTURE, dense)?;
    config.norms.after_mixtures = true;
    Ok(config)
}

const NORM_AFTER: &[Entry] = &[entry(Ln2PostW, "model.layers.{l}.post_mlp_layernorm.weight", AsIs)];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([&deepseek_v3::names(config, json)?, NORM_AFTER].concat())
}
