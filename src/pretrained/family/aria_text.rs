//! Aria's text model (Li et al. 2024): Llama with experts in one tensor, and shared experts.

use super::llama_style::{self, *};
use super::mixture_style::{self, SHARED_EXPERTS, SHARED_EXPERTS_BIASES};
use super::{ConfigJson, Family};
use crate::config::{Experts, Routing};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("aria_text", &["AriaTextForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults { intermediate_size: 4096, ..LLAMA };

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["pretraining_tp"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    let width = config.d_mlp();
    let experts = Experts {
        shared: mixture_style::shared(json.get_or("moe_num_shared_experts", 2)?, width),
        ..Experts::new(json.get_or("moe_num_experts", 8)?, json.get_or("moe_topk", 2)?, Routing::softmax_of_chosen())
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

const EXPERTS: &[Entry] = &[
    entry(Router, "model.layers.{l}.mlp.router.weight", AsIs),
    entry(Gate, "model.layers.{l}.mlp.experts.fc1.weight", ExpertHalfTransposed(0)),
    entry(In, "model.layers.{l}.mlp.experts.fc1.weight", ExpertHalfTransposed(1)),
    entry(Out, "model.layers.{l}.mlp.experts.fc2.weight", ExpertTransposed),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = entries_if(json.get_or("mlp_bias", false)?, SHARED_EXPERTS_BIASES);
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, NORMS, EXPERTS, SHARED_EXPERTS, biases].concat())
}
