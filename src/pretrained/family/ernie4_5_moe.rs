//! ERNIE 4.5 (Baidu 2025) with mixtures: a rotation of neighbouring pairs, and a bias of the choice on softmax scores.

use super::llama_style::{self, *};
use super::mixture_style::{self, EXPERTS, SHARED_EXPERTS, SHARED_EXPERTS_BIASES};
use super::{ConfigJson, Family};
use crate::config::{ChoiceBias, Experts, Routing, WeightNorm};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("ernie4_5_moe", &["Ernie4_5_MoeForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2560,
    intermediate_size: 12288,
    num_hidden_layers: 28,
    num_attention_heads: 20,
    num_key_value_heads: Some(4),
    vocab_size: 103_424,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    tie_word_embeddings: true,
    rope: Some(Rope { theta: 500_000.0, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    rotate_adjacent_pairs(&mut config);
    let interval: usize = json.get_or("moe_layer_interval", 1)?;
    let start: usize = json.get_or("moe_layer_start_index", 1)?;
    let last: i64 = json.get_or("moe_layer_end_index", -1)?;
    let last = if last == -1 { config.n_layers } else { usize::try_from(last).unwrap_or(0) };
    let sparse = |layer: usize| interval > 0 && (layer + 1).is_multiple_of(interval) && (start..=last).contains(&layer);
    let width = json.get_or("moe_intermediate_size", 1536)?;
    let routing = Routing {
        choice_bias: Some(ChoiceBias::OnScores),
        normalize: Some(WeightNorm { p: 1.0, min: json.get_or("moe_norm_min", 1e-12)? }),
        ..Routing::softmax()
    };
    let n_experts = json.get_any(&["moe_num_experts", "num_experts"])?.unwrap_or(64);
    let per_token = json.get_any(&["moe_k", "num_experts_per_tok"])?.unwrap_or(6);
    let experts = Experts {
        shared: mixture_style::shared(json.get_or("moe_num_shared_experts", 2)?, width),
        dense: mixture_style::dense_layers(&config, |layer| !sparse(layer)),
        ..Experts::new(n_experts, per_token, routing)
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

const CHOICE_BIAS: &[Entry] = &[entry(ChoiceB, "model.layers.{l}.mlp.moe_statics.e_score_correction_bias", AsIs)];

const BIASES: &[Entry] = &[
    entry(GateB, "model.layers.{l}.mlp.gate_proj.bias", AsIs),
    entry(InB, "model.layers.{l}.mlp.up_proj.bias", AsIs),
    entry(OutB, "model.layers.{l}.mlp.down_proj.bias", AsIs),
    entry(UB, "lm_head.bias", AsIs),
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biased = json.get_or("use_bias", false)?;
    let has_shared = config.experts().is_some_and(|experts| experts.shared.is_some());
    let biases = [ATTENTION_BIASES, BIASES, entries_if(has_shared, SHARED_EXPERTS_BIASES)].concat();
    let shared = entries_if(has_shared, SHARED_EXPERTS);
    let biases = if biased { biases } else { Vec::new() };
    Ok([ENDS, ATTENTION, NORMS, MLP, EXPERTS, CHOICE_BIAS, shared, &biases].concat())
}
