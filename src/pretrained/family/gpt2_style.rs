//! What GPT-2's relatives share: the fields of their `config.json`, under each family's names, and tables of names.

use super::{ConfigJson, Family};
use crate::config::MlpConfig;
use crate::pretrained::parts::{entry, Entry, Part::*, View};
use crate::{Config, Result};

use View::AsIs;

/// The family of one of GPT-2's relatives.
pub(super) const fn family(
    model_type: &'static str,
    architectures: &'static [&'static str],
    config: fn(&ConfigJson) -> Result<Config>,
    names: fn(&Config, &ConfigJson) -> Result<Vec<Entry>>,
) -> Family {
    Family {
        model_type,
        architectures,
        prefix: "transformer.",
        config,
        names,
        ignored: &["attn.bias", "attn.masked_bias"],
        left_out: super::nothing,
    }
}

/// The names of a field, and transformers' default.
pub(super) type Field<T> = (&'static [&'static str], T);

/// The fields of a family.
pub(super) struct Fields {
    pub(super) d_model: Field<usize>,
    pub(super) n_layers: Field<usize>,
    pub(super) n_heads: Field<usize>,
    pub(super) n_ctx: Field<usize>,
    pub(super) d_vocab: usize,
    /// `None`: `4 d_model`.
    pub(super) d_mlp: Field<Option<usize>>,
    pub(super) activation: Field<&'static str>,
    pub(super) eps: Field<f64>,
    pub(super) tie_word_embeddings: bool,
}

/// GPT-2's.
pub(super) const GPT2: Fields = Fields {
    d_model: (&["hidden_size", "n_embd"], 768),
    n_layers: (&["num_hidden_layers", "n_layer"], 12),
    n_heads: (&["num_attention_heads", "n_head"], 12),
    n_ctx: (&["max_position_embeddings", "n_positions"], 1024),
    d_vocab: 50257,
    d_mlp: (&["n_inner"], None),
    activation: (&["activation_function"], "gelu_new"),
    eps: (&["layer_norm_epsilon"], 1e-5),
    tie_word_embeddings: true,
};

/// Reads the fields that the older families have: learned positions, layer norms, a plain MLP.
pub(super) fn config(json: &ConfigJson, fields: &Fields) -> Result<Config> {
    let size = |(names, default): Field<usize>| -> Result<usize> { Ok(json.get_any(names)?.unwrap_or(default)) };
    let d_vocab = json.get_or("vocab_size", fields.d_vocab)?;
    let (d_model, n_heads) = (size(fields.d_model)?, size(fields.n_heads)?);
    let mut config = Config::new(size(fields.n_layers)?, d_model, n_heads, d_vocab, size(fields.n_ctx)?);
    let d_mlp = json.get_any(fields.d_mlp.0)?.or(fields.d_mlp.1).unwrap_or(config.d_mlp());
    config.mlp = Some(MlpConfig::plain(d_mlp, json.activation(fields.activation.0, fields.activation.1)?));
    config.norms.eps = json.get_any(fields.eps.0)?.unwrap_or(fields.eps.1);
    config.tie_word_embeddings = json.get_or("tie_word_embeddings", fields.tie_word_embeddings)?;
    Ok(config)
}

/// Ignores dropout, and the head that summarises a text for a classifier. A language model's forward pass has neither.
pub(super) fn ignore_training(json: &ConfigJson) {
    json.ignore(&["attn_pdrop", "embd_pdrop", "resid_pdrop"]);
    json.ignore(&["attention_dropout", "embed_dropout", "resid_dropout", "classifier_dropout"]);
    json.ignore(&["summary_activation", "summary_first_dropout", "summary_proj_to_labels"]);
    json.ignore(&["summary_type", "summary_use_proj"]);
}

/// Embedding, unembedding, the first norm of each block, and the last norm.
pub(super) const ENDS: &[Entry] = &[
    entry(WE, "transformer.wte.weight", AsIs),
    entry(Ln1W, "transformer.h.{l}.ln_1.weight", AsIs),
    entry(Ln1B, "transformer.h.{l}.ln_1.bias", AsIs),
    entry(LnFinalW, "transformer.ln_f.weight", AsIs),
    entry(LnFinalB, "transformer.ln_f.bias", AsIs),
    entry(U, "lm_head.weight", AsIs),
];

/// The second norm of each block, and the position embedding.
pub(super) const LN2_AND_POSITIONS: &[Entry] = &[
    entry(WPos, "transformer.wpe.weight", AsIs),
    entry(Ln2W, "transformer.h.{l}.ln_2.weight", AsIs),
    entry(Ln2B, "transformer.h.{l}.ln_2.bias", AsIs),
];

/// Queries, keys and values in one matrix with view `w` and bias with view `b`, and the output matrix with view `o`.
pub(super) fn fused_attention(w: fn(usize) -> View, b: fn(usize) -> View, o: View) -> [Entry; 8] {
    const W: &str = "transformer.h.{l}.attn.c_attn.weight";
    const B: &str = "transformer.h.{l}.attn.c_attn.bias";
    [
        entry(Q, W, w(0)),
        entry(K, W, w(1)),
        entry(V, W, w(2)),
        entry(QB, B, b(0)),
        entry(KB, B, b(1)),
        entry(VB, B, b(2)),
        entry(O, "transformer.h.{l}.attn.c_proj.weight", o),
        entry(OB, "transformer.h.{l}.attn.c_proj.bias", AsIs),
    ]
}

/// The MLP, with its matrices under this view.
pub(super) fn mlp(view: View) -> [Entry; 4] {
    [
        entry(In, "transformer.h.{l}.mlp.c_fc.weight", view),
        entry(InB, "transformer.h.{l}.mlp.c_fc.bias", AsIs),
        entry(Out, "transformer.h.{l}.mlp.c_proj.weight", view),
        entry(OutB, "transformer.h.{l}.mlp.c_proj.bias", AsIs),
    ]
}
