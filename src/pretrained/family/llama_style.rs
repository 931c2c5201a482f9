//! What Llama's relatives share: the fields of their `config.json`, and tables of names.

use super::{ConfigJson, Family};
use crate::config::{
    MlpConfig, MlpKind, NormConfig, Normalization, PerLayer, Positions, Reach, RopeScaling, Rotary, MAX_LAYERS,
};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

/// The family of one of Llama's relatives.
pub(super) const fn family(
    model_type: &'static str,
    architectures: &'static [&'static str],
    config: fn(&ConfigJson) -> Result<Config>,
    names: fn(&Config, &ConfigJson) -> Result<Vec<Entry>>,
) -> Family {
    Family {
        model_type,
        architectures,
        prefix: "",
        config,
        names,
        ignored: &["rotary_emb.inv_freq"],
        left_out: super::nothing,
    }
}

/// transformers' defaults for the fields that a family's `config.json` lacks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    /// `None`: as many as there are heads.
    pub(super) num_key_value_heads: Option<usize>,
    /// `None`: `hidden_size / num_attention_heads`.
    pub(super) head_dim: Option<usize>,
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    pub(super) hidden_act: &'static str,
    pub(super) norm_eps: f64,
    pub(super) tie_word_embeddings: bool,
    /// `None`: the family reads its rotation itself.
    pub(super) rope: Option<Rope>,
}

/// Llama's.
pub(super) const LLAMA: Defaults = Defaults {
    hidden_size: 4096,
    intermediate_size: 11008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: None,
    head_dim: None,
    vocab_size: 32000,
    max_position_embeddings: 2048,
    hidden_act: "silu",
    norm_eps: 1e-6,
    tie_word_embeddings: false,
    rope: Some(Rope::DEFAULT),
};

/// Reads the fields that most newer families have: rotary positions, root-mean-square norms, a gated MLP.
pub(super) fn config(json: &ConfigJson, default: &Defaults) -> Result<Config> {
    json.ignore(&["attention_dropout"]);
    let d_model = json.get_or("hidden_size", default.hidden_size)?;
    let n_layers = json.get_or("num_hidden_layers", default.num_hidden_layers)?;
    let n_heads = json.get_or("num_attention_heads", default.num_attention_heads)?;
    let n_ctx = json.get_or("max_position_embeddings", default.max_position_embeddings)?;
    let d_vocab = json.get_or("vocab_size", default.vocab_size)?;
    let new = Config::new(n_layers, d_model, n_heads, d_vocab, n_ctx);
    let d_head = json.get_unless_null("head_dim", default.head_dim)?.unwrap_or(new.d_head);
    let rotary = default.rope.map(|rope| json.rotary(d_head, n_ctx, rope)).transpose()?;
    let d_mlp = json.get_or("intermediate_size", default.intermediate_size)?;
    let eps = json.get_any(&["rms_norm_eps", "layer_norm_eps"])?.unwrap_or(default.norm_eps);
    Ok(Config {
        d_head,
        n_key_value_heads: json.get_unless_null("num_key_value_heads", default.num_key_value_heads)?.unwrap_or(n_heads),
        n_ctx: match &rotary {
            // Dynamic scaling is made for sequences that are up to `factor` times as long.
            Some(Rotary { scaling: RopeScaling::Dynamic { factor, .. }, .. }) => (n_ctx as f64 * factor) as usize,
            _ => n_ctx,
        },
        mlp: Some(MlpConfig::gated(d_mlp, json.activation(&["hidden_act"], default.hidden_act)?)),
        norms: NormConfig { eps, ..NormConfig::new(Normalization::RMS) },
        positions: rotary.map_or(Positions::None, Positions::rotary),
        tie_word_embeddings: json.get_or("tie_word_embeddings", default.tie_word_embeddings)?,
        ..new
    })
}

/// Another kind of MLPs than gated ones.
pub(super) fn set_mlp_kind(config: &mut Config, kind: MlpKind) {
    if let Some(mlp) = &mut config.mlp {
        mlp.kind = kind;
    }
}

/// MLPs without gates.
pub(super) fn without_gates(config: &mut Config) {
    set_mlp_kind(config, MlpKind::Plain);
}

/// Rotations of neighbouring dimensions.
pub(super) fn rotate_adjacent_pairs(config: &mut Config) {
    if let Positions::Rotary(rotations) = &config.positions {
        let adjacent = |rotary: &Option<Rotary>| rotary.clone().map(|rotary| Rotary { adjacent_pairs: true, ..rotary });
        config.positions = Positions::Rotary(rotations.map(adjacent));
    }
}

/// The same rotation in these layers, and none in the others.
pub(super) fn rotate_only(config: &mut Config, rotates: impl Fn(usize) -> bool) {
    if let Positions::Rotary(PerLayer::All(rotation)) = &config.positions {
        let layers = 0..config.n_layers.min(MAX_LAYERS);
        let rotations: Vec<_> = layers.map(|layer| rotation.clone().filter(|_| rotates(layer))).collect();
        config.positions = match rotations.iter().all(Option::is_none) {
            true => Positions::None,
            false => Positions::Rotary(PerLayer::from_layers(rotations)),
        };
    }
}

/// The rotations of the layers that reach every position and of the others, each of which `rope_parameters` has by its name.
pub(super) fn rotations_by_reach(json: &ConfigJson, config: &Config, global: Rope, local: Rope) -> Result<Positions> {
    let of = |name: &str, rope: Rope| -> Result<Option<Rotary>> {
        match json.rotary_of(name, config.d_head, config.n_ctx, rope)? {
            Some(rotary) => Ok(Some(rotary)),
            None => json.rotary(config.d_head, config.n_ctx, rope).map(Some),
        }
    };
    let (global, local) = (of("full_attention", global)?, of("sliding_attention", local)?);
    Ok(Positions::Rotary(config.attention.reach.map(|reach| match reach {
        Reach::Global => global.clone(),
        Reach::Window(_) | Reach::Chunk(_) => local.clone(),
    })))
}

/// The window of every layer, or this default where the file has none; `null` means no window.
pub(super) fn window_everywhere(json: &ConfigJson, default: Option<usize>) -> Result<PerLayer<Reach>> {
    let window = json.get_unless_null("sliding_window", default)?;
    Ok(PerLayer::All(window.map_or(Reach::Global, Reach::Window)))
}

/// How far each layer reaches: `layer_types` says which ones have this window, or `local` where it is absent.
pub(super) fn layer_types(
    json: &ConfigJson,
    n_layers: usize,
    window: Option<usize>,
    local: impl Fn(usize) -> bool,
) -> Result<PerLayer<Reach>> {
    let reach = |local: bool| match (local, window) {
        (false, _) => Ok(Reach::Global),
        (true, Some(window)) => Ok(Reach::Window(window)),
        (true, None) => Err(json.refuse("sliding_window", "absent", "`layer_types` has layers with a window")),
    };
    let Some(names) = json.get::<Vec<String>>("layer_types")? else {
        let n_layers = n_layers.min(MAX_LAYERS); // `Config::validate` refuses more
        return Ok(PerLayer::from_layers((0..n_layers).map(|layer| reach(local(layer))).collect::<Result<_>>()?));
    };
    if names.len() != n_layers {
        let why = format!("it must have one entry for each of the {n_layers} layers");
        return Err(json.refuse("layer_types", format!("a list of {}", names.len()), &why));
    }
    let reach = |name: &String| match name.as_str() {
        "full_attention" => reach(false),
        "sliding_attention" => reach(true),
        other => Err(json.refuse("layer_types", other, "only full_attention and sliding_attention are supported")),
    };
    Ok(PerLayer::from_layers(names.iter().map(reach).collect::<Result<_>>()?))
}

/// Embedding, last norm, unembedding.
pub(super) const ENDS: &[Entry] = &[
    entry(WE, "model.embed_tokens.weight", AsIs),
    entry(LnFinalW, "model.norm.weight", AsIs),
    entry(U, "lm_head.weight", AsIs),
];

/// The matrices of attention.
pub(super) const ATTENTION: &[Entry] = &[
    entry(Q, "model.layers.{l}.self_attn.q_proj.weight", AsIs),
    entry(K, "model.layers.{l}.self_attn.k_proj.weight", AsIs),
    entry(V, "model.layers.{l}.self_attn.v_proj.weight", AsIs),
    entry(O, "model.layers.{l}.self_attn.o_proj.weight", AsIs),
];

/// The biases of queries, keys and values.
pub(super) const QKV_BIASES: &[Entry] = &[
    entry(QB, "model.layers.{l}.self_attn.q_proj.bias", AsIs),
    entry(KB, "model.layers.{l}.self_attn.k_proj.bias", AsIs),
    entry(VB, "model.layers.{l}.self_attn.v_proj.bias", AsIs),
];

/// The biases of queries, keys, values and the output.
pub(super) const ATTENTION_BIASES: &[Entry] =
    &[QKV_BIASES[0], QKV_BIASES[1], QKV_BIASES[2], entry(OB, "model.layers.{l}.self_attn.o_proj.bias", AsIs)];

/// The gains of the queries' and keys' norms.
pub(super) const QK_NORMS: &[Entry] = &[
    entry(QNormW, "model.layers.{l}.self_attn.q_norm.weight", AsIs),
    entry(KNormW, "model.layers.{l}.self_attn.k_norm.weight", AsIs),
];

/// The gains of the norms before attention and MLP.
pub(super) const NORMS: &[Entry] = &[
    entry(Ln1W, "model.layers.{l}.input_layernorm.weight", AsIs),
    entry(Ln2W, "model.layers.{l}.post_attention_layernorm.weight", AsIs),
];

/// The matrices of a gated MLP.
pub(super) const MLP: &[Entry] = &[
    entry(Gate, "model.layers.{l}.mlp.gate_proj.weight", AsIs),
    entry(In, "model.layers.{l}.mlp.up_proj.weight", AsIs),
    entry(Out, "model.layers.{l}.mlp.down_proj.weight", AsIs),
];

/// The matrices of an MLP without gates.
pub(super) const PLAIN_MLP: &[Entry] = &[MLP[1], MLP[2]];

/// The biases of a gated MLP.
pub(super) const MLP_BIASES: &[Entry] = &[
    entry(GateB, "model.layers.{l}.mlp.gate_proj.bias", AsIs),
    entry(InB, "model.layers.{l}.mlp.up_proj.bias", AsIs),
    entry(OutB, "model.layers.{l}.mlp.down_proj.bias", AsIs),
];

/// The biases of an MLP without gates.
pub(super) const PLAIN_MLP_BIASES: &[Entry] = &[MLP_BIASES[1], MLP_BIASES[2]];

/// The biases of layer norms before attention and MLP, and of the last norm.
pub(super) const NORM_BIASES: &[Entry] = &[
    entry(Ln1B, "model.layers.{l}.input_layernorm.bias", AsIs),
    entry(Ln2B, "model.layers.{l}.post_attention_layernorm.bias", AsIs),
    entry(LnFinalB, "model.norm.bias", AsIs),
];

/// The norm that a parallel block's attention and MLP share.
pub(super) const ONE_NORM: &[Entry] = &[
    entry(Ln1W, "model.layers.{l}.input_layernorm.weight", AsIs),
    entry(Ln2W, "model.layers.{l}.input_layernorm.weight", AsIs),
];

/// The norms after the sublayers, where there are none before (OLMo 2).
pub(super) const NORMS_AFTER: &[Entry] = &[
    entry(Ln1W, "model.layers.{l}.post_attention_layernorm.weight", AsIs),
    entry(Ln2W, "model.layers.{l}.post_feedforward_layernorm.weight", AsIs),
];

/// Gate and linear part in one matrix.
pub(super) const FUSED_MLP: &[Entry] = &[
    entry(Gate, "model.layers.{l}.mlp.gate_up_proj.weight", Half(0)),
    entry(In, "model.layers.{l}.mlp.gate_up_proj.weight", Half(1)),
    entry(Out, "model.layers.{l}.mlp.down_proj.weight", AsIs),
];

/// These entries if the model has them, else none.
pub(super) fn entries_if(has: bool, entries: &'static [Entry]) -> &'static [Entry] {
    if has {
        entries
    } else {
        &[]
    }
}

/// The biases of attention if `attention_bias` is true, else none.
pub(super) fn attention_biases(json: &ConfigJson, default: bool) -> Result<&'static [Entry]> {
    Ok(entries_if(json.get_or("attention_bias", default)?, ATTENTION_BIASES))
}
