//! Doge (SmallDoge 2025): Llama with a mask that the values make, and a gain for each entry of the stream before a sublayer adds to it.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{DynamicMask, Normalization, QkNorm};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("doge", &["DogeForCausalLM"], config, names);

const DEFAULTS: Defaults =
    Defaults { hidden_size: 1024, intermediate_size: 2048, num_attention_heads: 8, vocab_size: 32768, ..LLAMA };

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["hidden_dropout"]);
    if json.get_or("is_moe", false)? {
        let why = "the router of its mixture mixes the positions of a text";
        return Err(json.refuse("is_moe", true, why));
    }
    json.ignore(&[
        "num_experts",
        "num_experts_per_tok",
        "norm_topk_prob",
        "output_router_logits",
        "router_aux_loss_coef",
    ]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    config.attention.reach = window_everywhere(json, None)?;
    config.attention.dynamic_mask = Some(DynamicMask { keep: json.get_or("keep_window_size", 2048)? });
    config.stream.gains = true;
    Ok(config)
}

const PARTS: &[Entry] = &[
    entry(DynamicA, "model.layers.{l}.self_attn.A", AsIs),
    entry(DynamicDt, "model.layers.{l}.self_attn.dt_proj.weight", AsIs),
    entry(AttnStreamW, "model.layers.{l}.input_residual", AsIs),
    entry(MlpStreamW, "model.layers.{l}.post_attention_residual", AsIs),
];

const DT_BIAS: &[Entry] = &[entry(DynamicDtB, "model.layers.{l}.self_attn.dt_proj.bias", AsIs)];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let dt_bias = entries_if(json.get_or("attention_bias", false)?, DT_BIAS);
    let mlp_biases = entries_if(json.get_or("mlp_bias", false)?, MLP_BIASES);
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, dt_bias, QK_NORMS, NORMS, MLP, mlp_biases, PARTS].concat())
}
