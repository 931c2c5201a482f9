//! Hunyuan (Tencent 2025) with mixtures: norms of queries and keys after their rotation, and a shared MLP.

use super::hunyuan_dense::{stretched_rotary, QK_NORMS};
use super::llama_style::{self, *};
use super::mixture_style;
use super::{ConfigJson, Family};
use crate::config::{Experts, Normalization, Positions, QkNorm, Routing, SharedExpert};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("hunyuan_v1_moe", &["HunYuanMoEV1ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults { vocab_size: 290_943, norm_eps: 1e-5, rope: None, ..LLAMA };

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["pretraining_tp", "eod_token_id", "output_router_logits"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    config.attention.qk_norm_after_rotation = true;
    config.positions = Positions::rotary(stretched_rotary(json, config.d_head, config.n_ctx)?);
    let width = config.d_mlp();
    let n_experts = same_in_all_layers(json, "num_experts")?;
    let per_token = same_in_all_layers(json, "moe_topk")?;
    let experts = Experts {
        shared: Some(SharedExpert { d_mlp: width, gated: false }),
        ..Experts::new(n_experts, per_token, Routing::softmax().normalized())
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

/// A number, or a list of the same number for each layer.
fn same_in_all_layers(json: &ConfigJson, field: &str) -> Result<usize> {
    let value: serde_json::Value = json.get_or(field, 1.into())?;
    let layers = match &value {
        serde_json::Value::Array(layers) => layers.clone(),
        one => vec![one.clone()],
    };
    match layers.first().and_then(serde_json::Value::as_u64) {
        Some(number) if layers.iter().all(|layer| *layer == layers[0]) => Ok(number as usize),
        _ => Err(json.refuse(field, value, "it must be a whole number, the same in all layers")),
    }
}

const EXPERTS: &[Entry] = &[
    entry(Router, "model.layers.{l}.mlp.gate.wg.weight", AsIs),
    mixture_style::EXPERTS[1],
    mixture_style::EXPERTS[2],
    mixture_style::EXPERTS[3],
    entry(SharedGate, "model.layers.{l}.mlp.shared_mlp.gate_proj.weight", AsIs),
    entry(SharedIn, "model.layers.{l}.mlp.shared_mlp.up_proj.weight", AsIs),
    entry(SharedOut, "model.layers.{l}.mlp.shared_mlp.down_proj.weight", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS, EXPERTS].concat())
}
