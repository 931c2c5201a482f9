//! Llama 4 (Meta 2025), text: chunks on most layers and no positions on the others, and mixtures whose experts' input is weighed.

use super::llama_style::{self, *};
use super::mixture_style;
use super::{ConfigJson, Family};
use crate::config::{Experts, Normalization, PerLayer, QkNorm, Reach, Routing, SharedExpert, Temperature, MAX_LAYERS};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("llama4_text", &["Llama4ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 5120,
    intermediate_size: 8192,
    num_hidden_layers: 48,
    num_attention_heads: 40,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    vocab_size: 202_048,
    max_position_embeddings: 131_072,
    norm_eps: 1e-5,
    rope: Some(Rope { theta: 500_000.0, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits", "router_aux_loss_coef", "router_jitter_noise"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    let n_layers = config.n_layers.min(MAX_LAYERS); // `Config::validate` refuses more
    let interval: usize = json.get_or("no_rope_layer_interval", 4)?;
    // Despite the field's name, 1 means that the layer rotates.
    let rotates: Vec<bool> = match json.get::<Vec<i64>>("no_rope_layers")?.filter(|layers| !layers.is_empty()) {
        Some(layers) if layers.len() >= n_layers => layers.iter().map(|rotates| *rotates != 0).collect(),
        Some(layers) => {
            let why = format!("it must have one entry for each of the {n_layers} layers");
            return Err(json.refuse("no_rope_layers", format!("a list of {}", layers.len()), &why));
        }
        None => (0..n_layers).map(|layer| (layer + 1) % interval.max(1) != 0).collect(),
    };
    config.attention.reach = reach(json, n_layers, &rotates)?;
    rotate_adjacent_pairs(&mut config);
    rotate_only(&mut config, |layer| rotates[layer]);
    if json.get_or("use_qk_norm", true)? && rotates.contains(&true) {
        config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
        config.attention.qk_norm_after_rotation = true;
        config.attention.qk_norm_where_rotated = true;
    }
    if json.get_or("attn_temperature_tuning", true)? {
        let tuned = Temperature {
            beta: json.get_or("attn_scale", 0.1)?,
            period: json.get_or("floor_scale", 8192.0)?,
            offset: 1,
        };
        let of_layer = |layer: usize| (!rotates[layer]).then_some(tuned);
        config.attention.temperature = PerLayer::from_layers((0..n_layers).map(of_layer).collect());
    } else {
        json.ignore(&["attn_scale", "floor_scale"]);
    }
    let step: usize = json.get_or("interleave_moe_layer_step", 1)?;
    let sparse: Option<Vec<usize>> = json.get("moe_layers")?;
    let is_sparse = |layer: usize| match &sparse {
        Some(layers) => layers.contains(&layer),
        None => step > 0 && (layer + 1).is_multiple_of(step),
    };
    let (width, dense_width): (usize, usize) = (config.d_mlp(), json.get_or("intermediate_size_mlp", 16384)?);
    let dense = (0..n_layers).map(|layer| (!is_sparse(layer)).then_some(dense_width)).collect();
    let routing = Routing { weighs_input: true, ..Routing::sigmoid() };
    let n_experts = json.get_any(&["num_local_experts", "num_experts"])?.unwrap_or(16);
    let experts = Experts {
        shared: Some(SharedExpert { d_mlp: width, gated: false }),
        dense: PerLayer::from_layers(dense),
        ..Experts::new(n_experts, json.get_or("num_experts_per_tok", 1)?, routing)
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

/// Chunks on the layers that `layer_types` names, or else on those that rotate.
fn reach(json: &ConfigJson, n_layers: usize, rotates: &[bool]) -> Result<PerLayer<Reach>> {
    let chunk: Option<usize> = json.get_unless_null("attention_chunk_size", Some(8192))?;
    let reach = |is_chunked: bool| match (is_chunked, chunk) {
        (true, Some(chunk)) => Ok(Reach::Chunk(chunk)),
        (true, None) => Err(json.refuse("attention_chunk_size", "null", "`layer_types` has layers with chunks")),
        (false, _) => Ok(Reach::Global),
    };
    let chunked: Vec<bool> = match json.get::<Vec<String>>("layer_types")? {
        None => rotates[..n_layers].to_vec(),
        Some(names) if names.len() != n_layers => {
            let why = format!("it must have one entry for each of the {n_layers} layers");
            return Err(json.refuse("layer_types", format!("a list of {}", names.len()), &why));
        }
        Some(names) => match names.iter().find(|it| !["full_attention", "chunked_attention"].contains(&it.as_str())) {
            Some(other) => return Err(json.refuse("layer_types", other, "only full and chunked attention are known")),
            None => names.iter().map(|name| name == "chunked_attention").collect(),
        },
    };
    Ok(PerLayer::from_layers(chunked.into_iter().map(reach).collect::<Result<_>>()?))
}

const FEED_FORWARD: &[Entry] = &[
    entry(Router, "model.layers.{l}.feed_forward.router.weight", AsIs),
    entry(Gate, "model.layers.{l}.feed_forward.experts.gate_up_proj", ExpertHalfTransposed(0)),
    entry(In, "model.layers.{l}.feed_forward.experts.gate_up_proj", ExpertHalfTransposed(1)),
    entry(Out, "model.layers.{l}.feed_forward.experts.down_proj", ExpertTransposed),
    entry(SharedGate, "model.layers.{l}.feed_forward.shared_expert.gate_proj.weight", AsIs),
    entry(SharedIn, "model.layers.{l}.feed_forward.shared_expert.up_proj.weight", AsIs),
    entry(SharedOut, "model.layers.{l}.feed_forward.shared_expert.down_proj.weight", AsIs),
    entry(Gate, "model.layers.{l}.feed_forward.gate_proj.weight", AsIs),
    entry(In, "model.layers.{l}.feed_forward.up_proj.weight", AsIs),
    entry(Out, "model.layers.{l}.feed_forward.down_proj.weight", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, NORMS, FEED_FORWARD].concat())
}
