//! Mellum 2 (JetBrains 2026): Qwen 3 MoE with a window and a rotation for each type of layer.

use super::llama_style::{self, *};
use super::mixture_style::{self, EXPERTS};
use super::{ConfigJson, Family};
use crate::config::{Experts, Normalization, QkNorm, Routing};
use crate::pretrained::parts::Entry;
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("mellum", &["MellumForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2304,
    intermediate_size: 7168,
    num_hidden_layers: 28,
    num_key_value_heads: Some(4),
    head_dim: Some(128),
    vocab_size: 98304,
    max_position_embeddings: 131_072,
    rope: None,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef"]);
    json.ignore(&["num_nextn_predict_layers", "num_mtp_layers", "mtp_layer_types", "mtp_mlp_layer_types"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    let window = json.get_unless_null("sliding_window", Some(1024))?;
    config.attention.reach = layer_types(json, config.n_layers, window, |_| false)?;
    let (global, local) = (Rope { theta: 500_000.0, ..Rope::DEFAULT }, Rope::DEFAULT);
    let reach = config.attention.reach.clone();
    config.positions = json.rotary_by_layer_type(&reach, config.d_head, config.n_ctx, global, local)?;
    let routing = Routing::softmax().normalized_if(json.get_or("norm_topk_prob", true)?);
    let n_experts = json.get_any(&["num_experts", "num_local_experts"])?.unwrap_or(64);
    let experts = Experts {
        dense: mixture_style::mlp_layer_types(json, &config, |_| false)?,
        ..Experts::new(n_experts, json.get_or("num_experts_per_tok", 8)?, routing)
    };
    mixture_style::set_experts(&mut config, json.get_or("moe_intermediate_size", 896)?, experts);
    Ok(config)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS, MLP, EXPERTS].concat())
}
