//! What GPT-2's relatives share: the sizes in their `config.json` under each family's names, and tables of names to put
//! together.

use super::{ConfigJson, Family};
use crate::config::MlpConfig;
use crate::pretrained::parts::{at, Entry, Part::*, View};
use crate::{Config, Result};

use View::AsIs;

/// A relative's entry in the table of families.
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
    }
}

/// A number under whichever of these names a file has it, and what transformers takes where the file is silent.
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

/// The shape that the older families' fields describe: learned positions, layer norms, a plain MLP.
pub(super) fn config(json: &ConfigJson, fields: &Fields) -> Result<Config> {
    let size = |(names, default): Field<usize>| -> Result<usize> { Ok(json.any(names)?.unwrap_or(default)) };
    let d_vocab = json.or("vocab_size", fields.d_vocab)?;
    let (d_model, n_heads) = (size(fields.d_model)?, size(fields.n_heads)?);
    let mut config = Config::new(size(fields.n_layers)?, d_model, n_heads, d_vocab, size(fields.n_ctx)?);
    let d_mlp = json.any(fields.d_mlp.0)?.or(fields.d_mlp.1).unwrap_or(config.d_mlp());
    config.mlp = Some(MlpConfig::plain(d_mlp, json.activation(fields.activation.0, fields.activation.1)?));
    config.norms.eps = json.any(fields.eps.0)?.unwrap_or(fields.eps.1);
    config.tie_word_embeddings = json.or("tie_word_embeddings", fields.tie_word_embeddings)?;
    Ok(config)
}

/// Dropout, and the head that summarises a text for a classifier, are no part of a language model's forward pass.
pub(super) fn ignore_training(json: &ConfigJson) {
    json.ignore(&["attn_pdrop", "embd_pdrop", "resid_pdrop"]);
    json.ignore(&["attention_dropout", "embed_dropout", "resid_dropout", "classifier_dropout"]);
    json.ignore(&["summary_activation", "summary_first_dropout", "summary_proj_to_labels"]);
    json.ignore(&["summary_type", "summary_use_proj"]);
}

/// Embedding and unembedding, and the norms but for the second of a block.
pub(super) const ENDS: &[Entry] = &[
    at(WE, "transformer.wte.weight", AsIs),
    at(Ln1W, "transformer.h.{l}.ln_1.weight", AsIs),
    at(Ln1B, "transformer.h.{l}.ln_1.bias", AsIs),
    at(LnFinalW, "transformer.ln_f.weight", AsIs),
    at(LnFinalB, "transformer.ln_f.bias", AsIs),
    at(U, "lm_head.weight", AsIs),
];

/// The second norm of a block, and the positions.
pub(super) const LN2_AND_POSITIONS: &[Entry] = &[
    at(WPos, "transformer.wpe.weight", AsIs),
    at(Ln2W, "transformer.h.{l}.ln_2.weight", AsIs),
    at(Ln2B, "transformer.h.{l}.ln_2.bias", AsIs),
];

/// Queries, keys and values in one matrix, seen as `w` and its bias as `b`; and the output, seen as `o`.
pub(super) fn fused_attention(w: fn(usize) -> View, b: fn(usize) -> View, o: View) -> [Entry; 8] {
    const W: &str = "transformer.h.{l}.attn.c_attn.weight";
    const B: &str = "transformer.h.{l}.attn.c_attn.bias";
    [
        at(Q, W, w(0)),
        at(K, W, w(1)),
        at(V, W, w(2)),
        at(QB, B, b(0)),
        at(KB, B, b(1)),
        at(VB, B, b(2)),
        at(O, "transformer.h.{l}.attn.c_proj.weight", o),
        at(OB, "transformer.h.{l}.attn.c_proj.bias", AsIs),
    ]
}

/// The MLP, its matrices seen like this.
pub(super) fn mlp(view: View) -> [Entry; 4] {
    [
        at(In, "transformer.h.{l}.mlp.c_fc.weight", view),
        at(InB, "transformer.h.{l}.mlp.c_fc.bias", AsIs),
        at(Out, "transformer.h.{l}.mlp.c_proj.weight", view),
        at(OutB, "transformer.h.{l}.mlp.c_proj.bias", AsIs),
    ]
}
