//! Phi-3 and Phi-4 (Abdin et al. 2024): Llama with queries, keys and values in one matrix, gate and linear part in another.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::RopeScaling;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("phi3", &["Phi3ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 3072,
    intermediate_size: 8192,
    vocab_size: 32064,
    max_position_embeddings: 4096,
    norm_eps: 1e-5,
    rope: Some(Rope { partial: Some(1.0), rounds_up: true, trained: Some(4096), ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["embd_pdrop", "resid_pdrop"]);
    json.expect_only("attention_bias", false)?;
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.reach = window_everywhere(json, None)?;
    match config.rotary().map(|rotary| &rotary.scaling) {
        None | Some(RopeScaling::None | RopeScaling::LongRope { .. }) => Ok(config),
        Some(other) => Err(json.refuse("rope_type", other.rope_type(), "only default and longrope are supported here")),
    }
}

const MATRICES: &[Entry] = &[
    entry(Q, "model.layers.{l}.self_attn.qkv_proj.weight", QkvBlock(0)),
    entry(K, "model.layers.{l}.self_attn.qkv_proj.weight", QkvBlock(1)),
    entry(V, "model.layers.{l}.self_attn.qkv_proj.weight", QkvBlock(2)),
    entry(O, "model.layers.{l}.self_attn.o_proj.weight", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, MATRICES, FUSED_MLP, NORMS].concat())
}
