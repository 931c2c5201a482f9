//! Qwen 3 MoE (Yang et al. 2025): Qwen 3 with mixtures.

use super::llama_style::{self, *};
use super::mixture_style::{self, EXPERTS};
use super::{ConfigJson, Family};
use crate::config::{Experts, Normalization, QkNorm, Routing};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("qwen3_moe", &["Qwen3MoeForCausalLM"], config, names);

pub(super) const DEFAULTS: Defaults = Defaults {
    hidden_size: 2048,
    intermediate_size: 6144,
    num_hidden_layers: 24,
    num_key_value_heads: Some(4),
    vocab_size: 151_936,
    max_position_embeddings: 32768,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef", "max_window_layers"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.reach = match json.get_or("use_sliding_window", false)? {
        true => window_everywhere(json, Some(4096))?,
        false => {
            json.ignore(&["sliding_window"]);
            Default::default()
        }
    };
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    let width = json.get_or("moe_intermediate_size", 768)?;
    let routing = Routing::softmax().normalized_if(json.get_or("norm_topk_prob", false)?);
    let n_experts = json.get_any(&["num_experts", "num_local_experts"])?.unwrap_or(128);
    let experts = Experts {
        dense: mixture_style::sparse_steps(json, &config, &[])?,
        ..Experts::new(n_experts, json.get_or("num_experts_per_tok", 8)?, routing)
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS, MLP, EXPERTS].concat())
}
