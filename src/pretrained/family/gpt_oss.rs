//! gpt-oss (OpenAI 2025): mixtures of experts, attention sinks, and a window on every second layer.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{ExpertGate, Experts, MlpKind, RopeScaling, Routing};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("gpt_oss", &["GptOssForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2880,
    intermediate_size: 2880,
    num_hidden_layers: 36,
    num_attention_heads: 64,
    num_key_value_heads: Some(8),
    head_dim: Some(64),
    vocab_size: 201_088,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    rope: Some(Rope { theta: 150_000.0, scaling: Some(&YARN), ..Rope::DEFAULT }),
    ..LLAMA
};

/// The scaling of a file without rotary fields.
static YARN: RopeScaling = RopeScaling::Yarn {
    factor: 32.0,
    attention_factor: 1.346_573_590_279_972_6, // 0.1 ln(32) + 1
    beta_fast: 32.0,
    beta_slow: 1.0,
    truncate: false,
    original_max_position_embeddings: 4096,
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    let num_experts = json.get_any(&["num_experts", "num_local_experts"])?.unwrap_or(128);
    let per_token = json.get_any(&["num_experts_per_tok", "experts_per_token"])?.unwrap_or(4);
    let experts = Experts {
        gate: ExpertGate::ClampedSwiglu {
            alpha: json.get_or("swiglu_alpha", 1.702)?,
            limit: json.get_or("swiglu_limit", 7.0)?,
        },
        ..Experts::new(num_experts, per_token, Routing::softmax_of_chosen())
    };
    llama_style::set_mlp_kind(&mut config, MlpKind::Experts(experts));
    config.attention.sinks = true;
    let window = json.get_unless_null("sliding_window", Some(128))?;
    config.attention.reach = layer_types(json, config.n_layers, window, |layer| layer % 2 == 0)?;
    Ok(config)
}

const SINKS_AND_EXPERTS: &[Entry] = &[
    entry(Sinks, "model.layers.{l}.self_attn.sinks", AsIs),
    entry(Router, "model.layers.{l}.mlp.router.weight", AsIs),
    entry(RouterB, "model.layers.{l}.mlp.router.bias", AsIs),
    entry(Gate, "model.layers.{l}.mlp.experts.gate_up_proj", ExpertEverySecond(0)),
    entry(GateB, "model.layers.{l}.mlp.experts.gate_up_proj_bias", ExpertEverySecond(0)),
    entry(In, "model.layers.{l}.mlp.experts.gate_up_proj", ExpertEverySecond(1)),
    entry(InB, "model.layers.{l}.mlp.experts.gate_up_proj_bias", ExpertEverySecond(1)),
    entry(Out, "model.layers.{l}.mlp.experts.down_proj", ExpertTransposed),
    entry(OutB, "model.layers.{l}.mlp.experts.down_proj_bias", Expert),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, true)?, NORMS, SINKS_AND_EXPERTS].concat())
}
