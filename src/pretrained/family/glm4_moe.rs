//! GLM 4.5 (Zeng et al. 2025): grouped queries with a partial rotation, and DeepSeek 3's mixtures.

use super::llama_style::{self, *};
use super::mixture_style::{self, Mixture, CHOICE_BIAS, EXPERTS, SHARED_EXPERTS};
use super::{ConfigJson, Family};
use crate::config::{Normalization, QkNorm};
use crate::pretrained::parts::Entry;
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("glm4_moe", &["Glm4MoeForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 10944,
    num_hidden_layers: 46,
    num_attention_heads: 96,
    num_key_value_heads: Some(8),
    vocab_size: 151_552,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    rope: Some(Rope { partial: Some(0.5), rounds_up: true, ..Rope::DEFAULT }),
    ..LLAMA
};

pub(super) const MIXTURE: Mixture =
    Mixture { experts: 128, per_token: 8, shared: 1, width: 1408, groups: [1, 1], normalized: true, scale: 1.0 };

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    let dense = mixture_style::first_dense(json, &config, 1)?;
    mixture_style::set_deepseek_experts(json, &mut config, &MIXTURE, dense)?;
    if json.get_or("use_qk_norm", false)? {
        config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    }
    Ok(config)
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = entries_if(json.get_or("attention_bias", false)?, QKV_BIASES);
    let norms = entries_if(config.qk_norm().is_some(), QK_NORMS);
    Ok([ENDS, ATTENTION, biases, norms, NORMS, MLP, EXPERTS, CHOICE_BIAS, SHARED_EXPERTS].concat())
}
