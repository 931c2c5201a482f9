//! DeepSeek 3 (DeepSeek-AI 2024): DeepSeek 2 with sigmoids in the router and a bias that balances the experts.

use super::latent_style::{self, DEEPSEEK};
use super::llama_style::{self, *};
use super::mixture_style::{self, CHOICE_BIAS, DEEPSEEK_V3, EXPERTS, SHARED_EXPERTS};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("deepseek_v3", &["DeepseekV3ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 7168,
    intermediate_size: 18432,
    num_hidden_layers: 61,
    num_attention_heads: 128,
    vocab_size: 129_280,
    max_position_embeddings: 4096,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.expect_only("moe_layer_freq", 1)?;
    let adjacent = json.get_or("rope_interleave", true)?;
    let mut config = latent_style::config(json, &DEFAULTS, DEEPSEEK, adjacent)?;
    // What rotates, in transformers too where a file lacks it.
    json.expect_only("head_dim", json.get_or("qk_rope_head_dim", DEEPSEEK.rotated)?)?;
    let dense = mixture_style::first_dense(json, &config, 3)?;
    mixture_style::set_deepseek_experts(json, &mut config, &DEEPSEEK_V3, dense)?;
    Ok(config)
}

pub(super) fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let attention = latent_style::names(config, json)?;
    Ok([ENDS, &attention, NORMS, MLP, EXPERTS, CHOICE_BIAS, SHARED_EXPERTS].concat())
}
