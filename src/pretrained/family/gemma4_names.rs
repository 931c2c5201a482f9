//! Where the weights of Gemma 4 lie.

use super::llama_style::{attention_biases, entries_if, ATTENTION, MLP, QK_NORMS};
use super::ConfigJson;
use crate::config::Reach;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

const ENDS: &[Entry] = &[
    entry(WE, "model.embed_tokens.weight", TimesSqrtDModel),
    entry(LnFinalW, "model.norm.weight", AsIs),
    entry(U, "lm_head.weight", AsIs),
];

const NORMS: &[Entry] = &[
    entry(Ln1W, "model.layers.{l}.input_layernorm.weight", AsIs),
    entry(Ln1PostW, "model.layers.{l}.post_attention_layernorm.weight", AsIs),
    entry(Ln2PostW, "model.layers.{l}.post_feedforward_layernorm.weight", AsIs),
    entry(LayerScalar, "model.layers.{l}.layer_scalar", AsIs),
];

/// A mixture, with the MLP beside it as its shared expert.
const MIXTURE: &[Entry] = &[
    entry(SharedInputW, "model.layers.{l}.pre_feedforward_layernorm.weight", AsIs),
    entry(ExpertsInputW, "model.layers.{l}.pre_feedforward_layernorm_2.weight", AsIs),
    entry(SharedLnW, "model.layers.{l}.post_feedforward_layernorm_1.weight", AsIs),
    entry(ExpertsLnW, "model.layers.{l}.post_feedforward_layernorm_2.weight", AsIs),
    entry(SharedGate, "model.layers.{l}.mlp.gate_proj.weight", AsIs),
    entry(SharedIn, "model.layers.{l}.mlp.up_proj.weight", AsIs),
    entry(SharedOut, "model.layers.{l}.mlp.down_proj.weight", AsIs),
    entry(Router, "model.layers.{l}.router.proj.weight", AsIs),
    entry(ExpertScale, "model.layers.{l}.router.per_expert_scale", AsIs),
    entry(Gate, "model.layers.{l}.experts.gate_up_proj", ExpertHalf(0)),
    entry(In, "model.layers.{l}.experts.gate_up_proj", ExpertHalf(1)),
    entry(Out, "model.layers.{l}.experts.down_proj", Expert),
];

const PRE_MLP: &[Entry] = &[entry(Ln2W, "model.layers.{l}.pre_feedforward_layernorm.weight", AsIs)];

pub(super) fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    // The first entry of a part counts.
    let mut all = Vec::new();
    if json.get_or("attention_k_eq_v", false)? {
        for layer in (0..config.n_layers).filter(|layer| config.reach(*layer) == Reach::Global) {
            let values = entry(V, "model.layers.{l}.self_attn.k_proj.weight", AsIs);
            let biases = entry(VB, "model.layers.{l}.self_attn.k_proj.bias", AsIs);
            let entries = [values, biases].map(|entry| entry.in_blocks(layer..layer + 1));
            all.extend(&entries[..if json.get_or("attention_bias", false)? { 2 } else { 1 }]);
        }
    }
    let mixes = config.experts().is_some();
    all.extend([ENDS, NORMS, ATTENTION, attention_biases(json, false)?, QK_NORMS].concat());
    all.extend([entries_if(!mixes, PRE_MLP), entries_if(!mixes, MLP), entries_if(mixes, MIXTURE)].concat());
    let by_width = (config.d_model as f64).powf(-0.5);
    if mixes {
        all.push(entry(RouterInputW, "model.layers.{l}.router.scale", Times(by_width)));
    }
    if let Some(embedding) = config.stream.layer_embedding {
        // Both terms of a layer's input are divided by the root of two.
        let half = 0.5f64.sqrt();
        let of_tokens = (embedding.width as f64).sqrt() * half;
        all.extend([
            entry(PleTable, "model.embed_tokens_per_layer.weight", Times(of_tokens)),
            entry(PleProjection, "model.per_layer_model_projection.weight", Times(by_width)),
            entry(PleProjectionNormW, "model.per_layer_projection_norm.weight", Times(half)),
            entry(PleGate, "model.layers.{l}.per_layer_input_gate.weight", AsIs),
            entry(PleOut, "model.layers.{l}.per_layer_projection.weight", AsIs),
            entry(PleLnW, "model.layers.{l}.post_per_layer_input_norm.weight", AsIs),
        ]);
    }
    Ok(all)
}

/// Whether a tensor is of keys and values that a layer does not make.
pub(super) fn is_of_shared_keys(json: &ConfigJson, name: &str) -> bool {
    let (n_layers, shared) = (json.get_or("num_hidden_layers", 30), json.get_or("num_kv_shared_layers", 0));
    let (Ok(n_layers), Ok(shared)): (Result<usize>, Result<usize>) = (n_layers, shared) else { return false };
    let mut parts = name.split('.').skip_while(|part| *part != "layers").skip(1);
    let layer = parts.next().and_then(|layer| layer.parse::<usize>().ok());
    let of_keys = parts.next() == Some("self_attn")
        && parts.next().is_some_and(|part| ["k_proj", "v_proj", "k_norm", "v_norm"].contains(&part));
    of_keys && layer.is_some_and(|layer| layer >= n_layers.saturating_sub(shared))
}
