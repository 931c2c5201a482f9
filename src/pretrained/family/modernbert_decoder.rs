//! ModernBERT as a decoder (Weller et al. 2025, "Ettin"): norms of the embedding and, but for the first, before each sublayer, a window on
//! most layers, a rotation for each kind, and a prediction head.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{HeadConfig, Normalization};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    llama_style::family("modernbert-decoder", &["ModernBertDecoderForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 768,
    intermediate_size: 1152,
    num_hidden_layers: 22,
    num_attention_heads: 12,
    vocab_size: 50368,
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    rope: None,
    ..LLAMA
};

pub(super) fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&[
        "embedding_dropout",
        "mlp_dropout",
        "classifier_dropout",
        "initializer_cutoff_factor",
        "cls_token_id",
    ]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    let activation = json.activation(&["hidden_activation"], "gelu")?;
    config.mlp.iter_mut().for_each(|mlp| mlp.activation = activation);
    config.head = Some(HeadConfig::new(json.activation(&["classifier_activation"], "gelu")?));
    config.norms.kind = Normalization::LN;
    config.norms.eps = json.get_or("norm_eps", 1e-5)?;
    config.norms.after_embedding = true;
    config.norms.bare_first_attention = true;
    let every: usize = json.get_or("global_attn_every_n_layers", 3)?;
    // A query sees half of it, as in ModernBERT, which sees the other half behind it.
    let both: Option<usize> = json.get_unless_null("local_attention", Some(128))?;
    let window = json.get("sliding_window")?.or(both.map(|both| both / 2));
    config.attention.reach = layer_types(json, config.n_layers, window, |layer| layer % every.max(1) != 0)?;
    let global = Rope { theta: 160_000.0, theta_field: "global_rope_theta", ..Rope::DEFAULT };
    let local = Rope { theta_field: "local_rope_theta", ..Rope::DEFAULT };
    config.positions =
        json.rotary_by_layer_type(&config.attention.reach, config.d_head, config.n_ctx, global, local)?;
    Ok(config)
}

const MATRICES: &[Entry] = &[
    entry(WE, "model.embeddings.tok_embeddings.weight", AsIs),
    entry(EmbedLnW, "model.embeddings.norm.weight", AsIs),
    entry(Q, "model.layers.{l}.attn.q_proj.weight", AsIs),
    entry(K, "model.layers.{l}.attn.k_proj.weight", AsIs),
    entry(V, "model.layers.{l}.attn.v_proj.weight", AsIs),
    entry(O, "model.layers.{l}.attn.Wo.weight", AsIs),
    entry(Ln2W, "model.layers.{l}.mlp_norm.weight", AsIs),
    entry(Gate, "model.layers.{l}.mlp.Wi.weight", Half(0)),
    entry(In, "model.layers.{l}.mlp.Wi.weight", Half(1)),
    entry(Out, "model.layers.{l}.mlp.Wo.weight", AsIs),
    entry(LnFinalW, "model.final_norm.weight", AsIs),
    entry(HeadW, "lm_head.dense.weight", AsIs),
    entry(HeadLnW, "lm_head.norm.weight", AsIs),
    entry(U, "decoder.weight", AsIs),
];

/// The norm before attention, which the first block lacks.
const FIRST_NORM: [Entry; 2] =
    [entry(Ln1W, "model.layers.{l}.attn_norm.weight", AsIs), entry(Ln1B, "model.layers.{l}.attn_norm.bias", AsIs)];

const NORM_BIASES: &[Entry] = &[
    entry(EmbedLnB, "model.embeddings.norm.bias", AsIs),
    entry(Ln2B, "model.layers.{l}.mlp_norm.bias", AsIs),
    entry(LnFinalB, "model.final_norm.bias", AsIs),
    entry(HeadLnB, "lm_head.norm.bias", AsIs),
];

const ATTENTION_BIASES: &[Entry] = &[
    entry(QB, "model.layers.{l}.attn.q_proj.bias", AsIs),
    entry(KB, "model.layers.{l}.attn.k_proj.bias", AsIs),
    entry(VB, "model.layers.{l}.attn.v_proj.bias", AsIs),
    entry(OB, "model.layers.{l}.attn.Wo.bias", AsIs),
];

const MLP_BIASES: &[Entry] = &[
    entry(GateB, "model.layers.{l}.mlp.Wi.bias", Half(0)),
    entry(InB, "model.layers.{l}.mlp.Wi.bias", Half(1)),
    entry(OutB, "model.layers.{l}.mlp.Wo.bias", AsIs),
];

const HEAD_BIAS: &[Entry] = &[entry(HeadB, "lm_head.dense.bias", AsIs)];

const BIAS: &[Entry] = &[entry(UB, "decoder.bias", AsIs)];

pub(super) fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let norm_biases = json.get_or("norm_bias", false)?;
    let first = if norm_biases { &FIRST_NORM[..] } else { &FIRST_NORM[..1] };
    let first: Vec<Entry> = first.iter().map(|entry| entry.in_blocks(1..config.n_layers.max(1))).collect();
    let attention_biases = entries_if(json.get_or("attention_bias", false)?, ATTENTION_BIASES);
    let mlp_biases = entries_if(json.get_or("mlp_bias", false)?, MLP_BIASES);
    let head_bias = entries_if(json.get_or("classifier_bias", false)?, HEAD_BIAS);
    let bias = entries_if(json.get_or("decoder_bias", true)?, BIAS);
    let norm_biases = entries_if(norm_biases, NORM_BIASES);
    Ok([MATRICES, &first, norm_biases, attention_biases, mlp_biases, head_bias, bias].concat())
}
