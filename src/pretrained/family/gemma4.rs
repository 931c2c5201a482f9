//! Gemma 4 (Gemma Team, Google 2026), text: heads whose width differs between local and global layers, keys and values that later layers
//! share, per-layer embeddings, and layers that multiply the stream.

use super::gemma4_names::{is_of_shared_keys, names};
use super::gemma4_parts::{heads, layer_embedding, mixture, shared_keys};
use super::llama_style::{self, layer_types, Defaults};
use super::{gemma2, ConfigJson, Family};
use crate::config::{NormPosition, Normalization, PerLayer, Positions, QkNorm, Reach, Rotary, MAX_LAYERS};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    left_out: is_of_shared_keys,
    ..llama_style::family("gemma4_text", &["Gemma4ForCausalLM"], |json| config(json, &DEFAULTS, 512), names)
};

/// The form without per-layer embeddings and mixtures.
pub(super) const UNIFIED: Family = Family {
    left_out: is_of_shared_keys,
    ..llama_style::family("gemma4_unified_text", &["Gemma4UnifiedForCausalLM"], unified, names)
};

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 30,
    num_key_value_heads: Some(4),
    vocab_size: 262_144,
    max_position_embeddings: 131_072,
    rope: None,
    ..gemma2::DEFAULTS
};

fn unified(json: &ConfigJson) -> Result<Config> {
    config(json, &Defaults { max_position_embeddings: 262_144, ..DEFAULTS }, 1024)
}

fn config(json: &ConfigJson, default: &Defaults, window: usize) -> Result<Config> {
    if let Some(direction) = json.get::<String>("use_bidirectional_attention")?.filter(|it| it != "vision") {
        let why = "only images may be seen from both sides here, and text is causal";
        return Err(json.refuse("use_bidirectional_attention", direction, why));
    }
    let mut config = llama_style::config(json, default)?;
    let activation = json.activation(&["hidden_activation"], "gelu_pytorch_tanh")?;
    config.mlp.iter_mut().for_each(|mlp| mlp.activation = activation);
    config.norms.position = NormPosition::BeforeAndAfter;
    config.attention.scale = Some(1.0);
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    config.attention.value_norm = Some(Normalization::RMS);
    config.output_logits_soft_cap = json.get("final_logit_softcapping")?;
    config.stream.layer_scalars = true;
    let n_layers = config.n_layers.min(MAX_LAYERS);
    let window = json.get_or("sliding_window", window)?;
    let reach = layer_types(json, config.n_layers, Some(window), |layer| (layer + 1) % 6 != 0)?;
    // Whatever the file says, the last layer is global.
    let of = |layer| if layer + 1 == n_layers { Reach::Global } else { reach.get(layer).copied().unwrap_or_default() };
    config.attention.reach = PerLayer::from_layers((0..n_layers).map(of).collect());
    config.attention.heads = heads(json, &config)?;
    config.positions = rotations(json, &config)?;
    config.attention.shared_keys = shared_keys(json, &config)?;
    if json.get_or("use_double_wide_mlp", false)? {
        let twice = config.d_mlp().saturating_mul(2);
        let widths = config.attention.shared_keys.map(|shared| shared.map(|_| twice));
        config.mlp.iter_mut().for_each(|mlp| mlp.widths = widths.clone());
    }
    if json.model_type() != Some(UNIFIED.model_type) && json.architecture() != Some(UNIFIED.architectures[0]) {
        config.stream.layer_embedding = layer_embedding(json, activation)?;
        mixture(json, &mut config)?;
    }
    Ok(config)
}

fn rotations(json: &ConfigJson, config: &Config) -> Result<Positions> {
    let silent = !json.has_any(&["rope_parameters"]);
    let of = |layer: usize| -> Result<Option<Rotary>> {
        let (d_head, n_ctx) = (config.d_head_of(layer), config.n_ctx);
        match config.reach(layer) {
            Reach::Global if silent => {
                let pairs = Some(d_head / 8); // a quarter
                Ok(Some(Rotary { pairs, ..Rotary::new(d_head, 1e6) }))
            }
            Reach::Global => json.rotary_of("full_attention", d_head, n_ctx, Rope { theta: 1e6, ..Rope::DEFAULT }),
            _ if silent => Ok(Some(Rotary::new(d_head, 1e4))),
            _ => json.rotary_of("sliding_attention", d_head, n_ctx, Rope::DEFAULT),
        }
    };
    let layers = 0..config.n_layers.min(MAX_LAYERS);
    Ok(Positions::Rotary(PerLayer::from_layers(layers.map(of).collect::<Result<_>>()?)))
}
