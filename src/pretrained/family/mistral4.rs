//! Mistral 4 (Mistral AI 2026): DeepSeek's latent attention and groups, softmax scores, and queries that grow with their position.

use super::latent_style::{self, Widths};
use super::llama_style::{self, *};
use super::mixture_style::{self, SHARED_EXPERTS};
use super::{ConfigJson, Family};
use crate::config::{Experts, GroupRank, PerLayer, RopeScaling, Routing, Temperature, TemperatureGrowth, WeightNorm};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("mistral4", &["Mistral4ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 12288,
    num_hidden_layers: 36,
    vocab_size: 131_072,
    max_position_embeddings: 1_048_576,
    rope: Some(Rope { partial: Some(0.5), scaling: Some(&YARN), ..Rope::DEFAULT }),
    ..LLAMA
};

/// The scaling of a file without rotary fields.
static YARN: RopeScaling = RopeScaling::Yarn {
    factor: 128.0,
    attention_factor: 1.0,
    beta_fast: 32.0,
    beta_slow: 1.0,
    truncate: true,
    original_max_position_embeddings: 8192,
};

const WIDTHS: Widths =
    Widths { query_rank: Some(1024), key_value_rank: 256, unrotated: 64, rotated: 64, value: Some(128) };

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits"]);
    let adjacent = json.get_or("rope_interleave", true)?;
    let mut config = latent_style::config(json, &DEFAULTS, WIDTHS, adjacent)?;
    let parameters = json.object("rope_scaling")?.or(json.object("rope_parameters")?);
    let (beta, period) = match parameters {
        Some(parameters) => {
            parameters.ignore(&["max_position_embeddings"]);
            let period: f64 = parameters.require("original_max_position_embeddings")?;
            (parameters.require("llama_4_scaling_beta")?, period)
        }
        None => {
            let factor: f64 = 0.1 * 128f64.ln() + 1.0;
            config.attention.scale = Some((config.d_head as f64).sqrt() / (factor * factor));
            (0.1, 8192.0)
        }
    };
    config.attention.temperature =
        PerLayer::All(Some(Temperature { beta, period, offset: 0, growth: TemperatureGrowth::Logarithmic }));
    let width = json.get_or("moe_intermediate_size", 2048)?;
    let routing = Routing {
        groups: mixture_style::expert_groups(json, [1, 1], GroupRank::TwoLargest)?,
        normalize: json.get_or("norm_topk_prob", true)?.then_some(WeightNorm { p: 1.0, min: 1e-20 }),
        scale: json.get_or("routed_scaling_factor", 1.0)?,
        ..Routing::softmax()
    };
    let n_experts = json.get_any(&["n_routed_experts", "num_local_experts"])?.unwrap_or(128);
    let experts = Experts {
        shared: mixture_style::shared(json.get_or("n_shared_experts", 1)?, width),
        dense: mixture_style::first_dense(json, &config, 0)?,
        ..Experts::new(n_experts, json.get_or("num_experts_per_tok", 4)?, routing)
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

const EXPERTS: &[Entry] = &[
    mixture_style::EXPERTS[0],
    entry(Gate, "model.layers.{l}.mlp.experts.gate_up_proj", ExpertHalf(0)),
    entry(In, "model.layers.{l}.mlp.experts.gate_up_proj", ExpertHalf(1)),
    entry(Out, "model.layers.{l}.mlp.experts.down_proj", Expert),
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, &latent_style::names(config, json)?, NORMS, MLP, EXPERTS, SHARED_EXPERTS].concat())
}
