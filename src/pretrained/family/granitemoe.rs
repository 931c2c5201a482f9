//! Granite with mixtures (IBM 2025): the experts in one tensor, and an MLP that all tokens share.

use super::granite::{divides_logits, factor, multiplied};
use super::llama_style::{self, *};
use super::{mixture_style, ConfigJson, Family};
use crate::config::{Experts, MlpKind, Routing, SharedExpert};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("granitemoe", &["GraniteMoeForCausalLM"], config, names);

fn config(json: &ConfigJson) -> Result<Config> {
    with_mixtures(json, 0)
}

/// Granite's mixtures; `shared` is the width of the MLP that all tokens share, and 0 where there is none.
pub(super) fn with_mixtures(json: &ConfigJson, shared: usize) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef"]);
    let mut config = llama_style::config(json, &LLAMA)?;
    config.attention.scale = Some(1.0 / factor(json, "attention_multiplier", 1.0)?);
    let scale = factor(json, "residual_multiplier", 1.0)?; // of all that the mixture adds
    let routing = Routing { scale, ..Routing::softmax_of_chosen() };
    let n_experts = json.get_or("num_local_experts", 8)?;
    let per_token = json.get_or("num_experts_per_tok", 2)?;
    if n_experts == 0 && shared > 0 {
        // What all tokens share is all there is.
        if let Some(mlp) = &mut config.mlp {
            mlp.d_mlp = shared;
        }
        llama_style::set_mlp_kind(&mut config, MlpKind::Gated);
        return Ok(config);
    }
    let width = config.d_mlp();
    let experts = Experts {
        shared: (shared > 0).then_some(SharedExpert { d_mlp: shared, gated: false }),
        ..Experts::new(n_experts, per_token, routing)
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

const EXPERTS: &[Entry] = &[
    entry(Router, "model.layers.{l}.block_sparse_moe.router.layer.weight", AsIs),
    entry(Gate, "model.layers.{l}.block_sparse_moe.input_linear.weight", ExpertHalf(0)),
    entry(In, "model.layers.{l}.block_sparse_moe.input_linear.weight", ExpertHalf(1)),
    entry(Out, "model.layers.{l}.block_sparse_moe.output_linear.weight", Expert),
];

const SHARED: &[Entry] = &[
    entry(SharedGate, "model.layers.{l}.shared_mlp.input_linear.weight", Half(0)),
    entry(SharedIn, "model.layers.{l}.shared_mlp.input_linear.weight", Half(1)),
    entry(SharedOut, "model.layers.{l}.shared_mlp.output_linear.weight", AsIs),
];

const DENSE: &[Entry] =
    &[entry(Gate, SHARED[0].name, Half(0)), entry(In, SHARED[1].name, Half(1)), entry(Out, SHARED[2].name, AsIs)];

pub(super) fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    names_of(config, json, EXPERTS)
}

/// The table with these entries of experts.
pub(super) fn names_of(config: &Config, json: &ConfigJson, experts: &[Entry]) -> Result<Vec<Entry>> {
    let mlp = match config.experts() {
        None => DENSE.to_vec(),
        Some(mixture) => [experts, entries_if(mixture.shared.is_some(), SHARED)].concat(),
    };
    let table = [ENDS, ATTENTION, attention_biases(json, false)?, NORMS, &mlp].concat();
    multiplied(json, table, divides_logits(json)?)
}
