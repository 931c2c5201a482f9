//! GLM 4.7 Flash (Z.ai 2026): DeepSeek 3's attention and mixtures, in layers that `mlp_layer_types` names.

use super::latent_style::{self, Widths};
use super::llama_style::{self, *};
use super::mixture_style::{self, Mixture};
use super::{deepseek_v3, ConfigJson, Family};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    llama_style::family("glm4_moe_lite", &["Glm4MoeLiteForCausalLM"], config, deepseek_v3::names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 10240,
    num_hidden_layers: 47,
    num_attention_heads: 20,
    vocab_size: 154_880,
    max_position_embeddings: 202_752,
    norm_eps: 1e-5,
    ..LLAMA
};

const WIDTHS: Widths =
    Widths { query_rank: Some(768), key_value_rank: 512, unrotated: 192, rotated: 64, value: Some(256) };

const MIXTURE: Mixture =
    Mixture { experts: 64, per_token: 4, shared: 1, width: 1536, groups: [1, 1], normalized: true, scale: 1.8 };

fn config(json: &ConfigJson) -> Result<Config> {
    let adjacent = json.get_or("rope_interleave", true)?;
    let mut config = latent_style::config(json, &DEFAULTS, WIDTHS, adjacent)?;
    let dense = mixture_style::mlp_layer_types(json, &config, |layer| layer == 0)?;
    mixture_style::set_deepseek_experts(json, &mut config, &MIXTURE, dense)?;
    Ok(config)
}
