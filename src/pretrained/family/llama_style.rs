//! What Llama's many relatives share: the fields of their `config.json`, and tables of names to put together.

use super::ConfigJson;
use crate::config::{AttnType, Normalization, PositionalEmbedding, RopeScaling};
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

/// What transformers takes where a family's `config.json` is silent.
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

/// The shape that the fields of nearly all newer families describe: rotary positions, root-mean-square norms, a
/// gated MLP.
pub(super) fn config(json: &ConfigJson, default: &Defaults) -> Result<Config> {
    json.ignore(&["attention_dropout"]);
    let d_model = json.or("hidden_size", default.hidden_size)?;
    let n_heads = json.or("num_attention_heads", default.num_attention_heads)?;
    let d_head = json.get("head_dim")?.or(default.head_dim).unwrap_or(d_model / n_heads.max(1));
    let n_ctx = json.or("max_position_embeddings", default.max_position_embeddings)?;
    let d_vocab = json.or("vocab_size", default.vocab_size)?;
    let rotary = default.rope.map(|rope| json.rotary(d_head, n_ctx, rope)).transpose()?;
    Ok(Config {
        n_layers: json.or("num_hidden_layers", default.num_hidden_layers)?,
        d_model,
        n_heads,
        d_head,
        n_key_value_heads: json.unless_null("num_key_value_heads", default.num_key_value_heads)?.unwrap_or(n_heads),
        d_mlp: json.or("intermediate_size", default.intermediate_size)?,
        d_vocab,
        d_vocab_out: d_vocab,
        n_ctx: match rotary.as_ref().map(|rotary| &rotary.scaling) {
            // Dynamic scaling is for sequences longer than this: it reaches `factor` times as far.
            Some(RopeScaling::Dynamic { factor, .. }) => (n_ctx as f64 * factor) as usize,
            _ => n_ctx,
        },
        act_fn: json.activation(&["hidden_act"], default.hidden_act)?,
        gated_mlp: true,
        normalization_type: Normalization::RMS,
        final_rms: true,
        eps: json.any(&["rms_norm_eps", "layer_norm_eps"])?.unwrap_or(default.norm_eps),
        positional_embedding_type: PositionalEmbedding::Rotary,
        rotary,
        tie_word_embeddings: json.or("tie_word_embeddings", default.tie_word_embeddings)?,
        ..Config::default()
    })
}

/// A window of this default, over every layer; `null` is none.
pub(super) fn window_everywhere(json: &ConfigJson, default: Option<usize>, config: Config) -> Result<Config> {
    let window_size = json.unless_null("sliding_window", default)?;
    let attn_types = window_size.map(|_| vec![AttnType::Local; config.n_layers]).unwrap_or_default();
    Ok(Config { window_size, attn_types, ..config })
}

/// `layer_types`, or the layers that are local where it is absent.
pub(super) fn layer_types(json: &ConfigJson, n_layers: usize, local: impl Fn(usize) -> bool) -> Result<Vec<AttnType>> {
    let Some(names) = json.get::<Vec<String>>("layer_types")? else {
        let of = |layer| if local(layer) { AttnType::Local } else { AttnType::Global };
        return Ok((0..n_layers).map(of).collect());
    };
    if names.len() != n_layers {
        let why = format!("it must have one entry a layer, {n_layers}");
        return Err(json.refuse("layer_types", format!("a list of {}", names.len()), &why));
    }
    let of = |name: &String| match name.as_str() {
        "full_attention" => Ok(AttnType::Global),
        "sliding_attention" => Ok(AttnType::Local),
        other => Err(json.refuse("layer_types", other, "only full_attention and sliding_attention are supported")),
    };
    names.iter().map(of).collect()
}

/// Embedding, last norm, unembedding.
pub(super) fn ends(config: &Config) -> [Entry; 3] {
    [
        at(WE, "model.embed_tokens.weight", AsIs),
        at(LnFinalW, "model.norm.weight", AsIs),
        at(U, if config.tie_word_embeddings { "model.embed_tokens.weight" } else { "lm_head.weight" }, AsIs),
    ]
}

/// The matrices of attention.
pub(super) const ATTENTION: &[Entry] = &[
    at(Q, "model.layers.{l}.self_attn.q_proj.weight", AsIs),
    at(K, "model.layers.{l}.self_attn.k_proj.weight", AsIs),
    at(V, "model.layers.{l}.self_attn.v_proj.weight", AsIs),
    at(O, "model.layers.{l}.self_attn.o_proj.weight", AsIs),
];

/// The biases of queries, keys and values.
pub(super) const QKV_BIASES: &[Entry] = &[
    at(QB, "model.layers.{l}.self_attn.q_proj.bias", AsIs),
    at(KB, "model.layers.{l}.self_attn.k_proj.bias", AsIs),
    at(VB, "model.layers.{l}.self_attn.v_proj.bias", AsIs),
];

/// Those, and the output's.
pub(super) const ATTENTION_BIASES: &[Entry] =
    &[QKV_BIASES[0], QKV_BIASES[1], QKV_BIASES[2], at(OB, "model.layers.{l}.self_attn.o_proj.bias", AsIs)];

/// The gains of the queries' and keys' norms.
pub(super) const QK_NORMS: &[Entry] = &[
    at(QNormW, "model.layers.{l}.self_attn.q_norm.weight", AsIs),
    at(KNormW, "model.layers.{l}.self_attn.k_norm.weight", AsIs),
];

/// The gains of the norms before attention and MLP.
pub(super) const NORMS: &[Entry] = &[
    at(Ln1W, "model.layers.{l}.input_layernorm.weight", AsIs),
    at(Ln2W, "model.layers.{l}.post_attention_layernorm.weight", AsIs),
];

/// The matrices of a gated MLP.
pub(super) const MLP: &[Entry] = &[
    at(Gate, "model.layers.{l}.mlp.gate_proj.weight", AsIs),
    at(In, "model.layers.{l}.mlp.up_proj.weight", AsIs),
    at(Out, "model.layers.{l}.mlp.down_proj.weight", AsIs),
];

/// These entries, if the model has them.
pub(super) fn when(has: bool, entries: &'static [Entry]) -> &'static [Entry] {
    if has {
        entries
    } else {
        &[]
    }
}

/// The biases of attention, if `attention_bias` says that there are any.
pub(super) fn attention_biases(json: &ConfigJson, default: bool) -> Result<&'static [Entry]> {
    Ok(when(json.or("attention_bias", default)?, ATTENTION_BIASES))
}
