//! Kolibri (2026): EXAONE 4's attention, norms before and after the sublayers, and a mixture in every layer.

use super::llama_style::{self, *};
use super::mixture_style::{self, EXPERTS, SHARED_EXPERTS};
use super::{ConfigJson, Family};
use crate::config::{ChoiceBias, Experts, NormPosition, Normalization, QkNorm, Reach, Routing, SharedExpert};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("kolibri1", &["Kolibri1ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2560,
    num_hidden_layers: 50,
    num_attention_heads: 48,
    num_key_value_heads: Some(4),
    head_dim: Some(128),
    vocab_size: 128_000,
    max_position_embeddings: 262_144,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    config.norms.position = NormPosition::BeforeAndAfter;
    let window: Option<usize> = json.get_unless_null("sliding_window", Some(513))?;
    config.attention.reach = layer_types(json, config.n_layers, window, |layer| (layer + 1) % 5 != 0)?;
    if window.is_some() {
        let reach = config.attention.reach.clone();
        rotate_only(&mut config, |layer| reach.get(layer) != Some(&Reach::Global));
    }
    let normalized = json.get_or("norm_topk_prob", false)?;
    let routing = Routing { choice_bias: Some(ChoiceBias::OnLogits), ..Routing::sigmoid().normalized_if(normalized) };
    let n_experts = json.get_any(&["num_experts", "num_local_experts"])?.unwrap_or(384);
    let shared = json.get_or("shared_expert_intermediate_size", 512)?;
    let experts = Experts {
        shared: Some(SharedExpert { d_mlp: shared, gated: false }),
        ..Experts::new(n_experts, json.get_or("num_experts_per_tok", 6)?, routing)
    };
    mixture_style::set_experts(&mut config, json.get_or("moe_intermediate_size", 512)?, experts);
    Ok(config)
}

const BIAS_AND_NORMS_AFTER: &[Entry] = &[
    entry(ChoiceB, "model.layers.{l}.moe.router.expert_bias", AsIs),
    entry(Ln1PostW, "model.layers.{l}.post_attn_norm.weight", AsIs),
    entry(Ln2PostW, "model.layers.{l}.post_ffn_norm.weight", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, QK_NORMS, NORMS, EXPERTS, SHARED_EXPERTS, BIAS_AND_NORMS_AFTER].concat())
}
