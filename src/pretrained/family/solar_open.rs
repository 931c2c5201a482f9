//! Solar Open (Upstage 2025): GLM 4.5 with a mixture in every layer and a rotation of whole heads.

use super::llama_style::{self, *};
use super::mixture_style::{self, Mixture, CHOICE_BIAS, EXPERTS, SHARED_EXPERTS};
use super::{glm4_moe, ConfigJson, Family};
use crate::config::PerLayer;
use crate::pretrained::parts::Entry;
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("solar_open", &["SolarOpenForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    num_hidden_layers: 48,
    num_attention_heads: 64,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    vocab_size: 196_608,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    rope: Some(Rope { theta: 1e6, ..Rope::DEFAULT }),
    ..LLAMA
};

const MIXTURE: Mixture = Mixture { width: 1280, ..glm4_moe::MIXTURE };

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?; // `intermediate_size` belongs to no layer
    mixture_style::set_deepseek_experts(json, &mut config, &MIXTURE, PerLayer::default())?;
    Ok(config)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = entries_if(json.get_or("attention_bias", false)?, QKV_BIASES);
    Ok([ENDS, ATTENTION, biases, NORMS, EXPERTS, CHOICE_BIAS, SHARED_EXPERTS].concat())
}
