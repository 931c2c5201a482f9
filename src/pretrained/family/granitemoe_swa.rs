//! Granite with mixtures and windows (IBM 2026): attention sinks, a window on most layers, and a rotation for each layer.

use super::{granite_swa, granitemoe, llama_style, ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("granitemoe_swa", &["GraniteMoeSWAForCausalLM"], config, names);

fn config(json: &ConfigJson) -> Result<Config> {
    let config = granitemoe::with_mixtures(json, json.get_or("shared_intermediate_size", 0)?)?;
    granite_swa::with_windows(json, config)
}

const EXPERTS: &[Entry] = &[
    entry(Router, "model.layers.{l}.block_sparse_moe.router.weight", AsIs),
    entry(Gate, "model.layers.{l}.block_sparse_moe.experts.gate_up_proj", ExpertHalf(0)),
    entry(In, "model.layers.{l}.block_sparse_moe.experts.gate_up_proj", ExpertHalf(1)),
    entry(Out, "model.layers.{l}.block_sparse_moe.experts.down_proj", Expert),
    entry(Sinks, "model.layers.{l}.self_attn.sinks", AsIs),
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    granitemoe::names_of(config, json, EXPERTS)
}
