//! BEAM (transformers 5.23, `beam`): sublayers of any depth have the same weight in the stream, which shrinks as they add to it; gates of
//! what heads have mixed, and queries that grow with their position in layers without a rotation.

use super::llama_style::{self, *};
use super::mixture_style::{self, Mixture, CHOICE_BIAS, EXPERTS};
use super::{ConfigJson, Family};
use crate::config::{
    GateFunction, HeadGate, NormPosition, Normalization, PerLayer, Positions, QkNorm, Reach, Rotary, StreamFactors,
    Temperature, TemperatureGrowth, MAX_LAYERS,
};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("beam", &["BeamForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 5120,
    intermediate_size: 20480,
    num_hidden_layers: 52,
    num_attention_heads: 48,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    vocab_size: 151_936,
    max_position_embeddings: 8192,
    rope: None,
    ..LLAMA
};

const MIXTURE: Mixture =
    Mixture { experts: 256, per_token: 8, shared: 0, width: 2560, groups: [8, 4], normalized: true, scale: 2.5 };

const TEMPERATURE: Temperature = Temperature { beta: 0.1, period: 2048.0, offset: 1, growth: TemperatureGrowth::Power };

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    config.attention.gate = Some(HeadGate { per_head: false, function: GateFunction::Sigmoid });
    config.norms.position = NormPosition::BeforeAndAfter;
    config.output_logits_soft_cap = json.get_unless_null("final_logit_softcapping", Some(30.0))?;
    let n_layers = config.n_layers.min(MAX_LAYERS);
    let window = json.get_unless_null("sliding_window", Some(512))?;
    let is_local = |layer: usize| !(layer + 1).is_multiple_of(6) && layer + 1 != n_layers;
    config.attention.reach = layer_types(json, config.n_layers, window, is_local)?;
    let of = |name| json.rotary_of(name, config.d_head, config.n_ctx, Rope::DEFAULT);
    let (global, local) = match json.has_any(&["rope_parameters"]) {
        true => (of("full_attention")?, of("sliding_attention")?),
        false => (None, Some(Rotary::new(config.d_head, 1e4))),
    };
    let by_reach = |reach: &Reach| if *reach == Reach::Global { global.clone() } else { local.clone() };
    let rotations = config.attention.reach.map(by_reach);
    config.attention.temperature = rotations.map(|rotation| rotation.is_none().then_some(TEMPERATURE));
    let rotates = rotations.values().iter().any(Option::is_some);
    config.positions = if rotates { Positions::Rotary(rotations) } else { Positions::None };
    let kept = |added: usize| ((added - 1) as f64 / added as f64).sqrt();
    let factors = |layer| Some(StreamFactors { attn: kept(2 * layer + 2), mlp: kept(2 * layer + 3) });
    config.stream.factors = PerLayer::from_layers((0..n_layers).map(factors).collect());
    let dense = mixture_style::mlp_layer_types(json, &config, |layer| layer < 3)?;
    mixture_style::set_deepseek_experts(json, &mut config, &MIXTURE, dense)?;
    Ok(config)
}

const PARTS: &[Entry] = &[
    entry(HeadGate, "model.layers.{l}.self_attn.gate_proj.weight", AsIs),
    entry(HeadGateB, "model.layers.{l}.self_attn.gate_bias", AsIs),
    entry(Ln1W, "model.layers.{l}.input_layernorm.weight", AsIs),
    entry(Ln2W, "model.layers.{l}.pre_feedforward_layernorm.weight", AsIs),
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = attention_biases(json, false)?;
    let mut all = [ENDS, ATTENTION, biases, QK_NORMS, PARTS, MLP, EXPERTS, CHOICE_BIAS].concat();
    for layer in 0..config.n_layers {
        let share = |added: usize| Times((added as f64).powf(-0.5));
        let attn = entry(Ln1PostW, "model.layers.{l}.post_attention_layernorm.weight", share(2 * layer + 2));
        let mlp = entry(Ln2PostW, "model.layers.{l}.post_feedforward_layernorm.weight", share(2 * layer + 3));
        all.extend([attn, mlp].map(|entry| entry.in_blocks(layer..layer + 1)));
    }
    Ok(all)
}
