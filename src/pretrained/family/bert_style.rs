//! What BERT's relatives share: the fields of their `config.json`, their heads, and tables of names.

use super::{nothing, ConfigJson, Family};
use crate::config::{
    Activation, AttentionDir, HeadConfig, MlpConfig, MlpKind, NormConfig, NormPosition, Normalization, Positions,
};
use crate::pretrained::parts::{entry, Entry, Part, View};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

/// The family of one of BERT's relatives, whose masked-language model is the first of its architectures.
pub(super) const fn family(
    model_type: &'static str,
    architectures: &'static [&'static str],
    prefix: &'static str,
    config: fn(&ConfigJson) -> Result<Config>,
    names: fn(&Config, &ConfigJson) -> Result<Vec<Entry>>,
) -> Family {
    Family { model_type, architectures, prefix, config, names, ignored: IGNORED, left_out: nothing }
}

/// Tables of positions, and heads of other tasks than that of the architecture.
const IGNORED: &[&str] =
    &["embeddings.position_ids", "embeddings.token_type_ids", "decoder.bias", "predictions.bias", "lm_head.bias"];

/// transformers' defaults for the fields that a family's `config.json` lacks.
pub(super) struct Defaults {
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    /// `None`: the family has no types of tokens.
    pub(super) type_vocab_size: Option<usize>,
    pub(super) hidden_act: &'static str,
    pub(super) layer_norm_eps: f64,
    pub(super) tie_word_embeddings: bool,
}

/// BERT's.
pub(super) const BERT: Defaults = Defaults {
    hidden_size: 768,
    intermediate_size: 3072,
    num_hidden_layers: 12,
    num_attention_heads: 12,
    vocab_size: 30522,
    max_position_embeddings: 512,
    type_vocab_size: Some(2),
    hidden_act: "gelu",
    layer_norm_eps: 1e-12,
    tie_word_embeddings: true,
};

/// Reads the fields that BERT's relatives have: an encoder whose stream is normalised after each sublayer, with a norm of all embeddings,
/// learned positions and types of tokens, and the head of masked-language models.
pub(super) fn config(json: &ConfigJson, default: &Defaults) -> Result<Config> {
    json.expect_only("position_embedding_type", "absolute".to_string())?;
    shape(json, default, json.activation(&["hidden_act"], default.hidden_act)?)
}

/// [`config`] with this activation function, and any kind of positions.
pub(super) fn shape(json: &ConfigJson, default: &Defaults, activation: Activation) -> Result<Config> {
    json.ignore(&["attention_probs_dropout_prob", "hidden_dropout_prob", "classifier_dropout"]);
    let n_layers = json.get_or("num_hidden_layers", default.num_hidden_layers)?;
    let d_model = json.get_or("hidden_size", default.hidden_size)?;
    let n_heads = json.get_or("num_attention_heads", default.num_attention_heads)?;
    let d_vocab = json.get_or("vocab_size", default.vocab_size)?;
    let n_ctx = json.get_or("max_position_embeddings", default.max_position_embeddings)?;
    let mut config = Config::new(n_layers, d_model, n_heads, d_vocab, n_ctx);
    let d_mlp = json.get_or("intermediate_size", default.intermediate_size)?;
    config.mlp = Some(MlpConfig::plain(d_mlp, activation));
    config.norms = NormConfig {
        position: NormPosition::InStream,
        last: Some(Normalization::None),
        eps: json.get_or("layer_norm_eps", default.layer_norm_eps)?,
        after_full_embed: true,
        ..NormConfig::default()
    };
    if !json.get_or("is_decoder", false)? {
        config.attention.direction = AttentionDir::Bidirectional;
    }
    if let Some(types) = default.type_vocab_size {
        config.embed.token_types = json.get_or("type_vocab_size", types)?;
    }
    config.head = Some(HeadConfig::new(activation));
    config.tie_word_embeddings = json.get_or("tie_word_embeddings", default.tie_word_embeddings)?;
    Ok(config)
}

/// [`config`] with rotary positions of this base, and perhaps gates.
pub(super) fn rotary_config(json: &ConfigJson, default: &Defaults, theta: f64, gated: bool) -> Result<Config> {
    let mut config = config(json, default)?;
    config.d_head = json.get("head_dim")?.unwrap_or(config.d_head);
    config.positions = Positions::rotary(json.rotary(config.d_head, config.n_ctx, Rope { theta, ..Rope::DEFAULT })?);
    if let Some(mlp) = config.mlp.as_mut().filter(|_| gated) {
        mlp.kind = MlpKind::Gated;
    }
    Ok(config)
}

/// What the head of a checkpoint is for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Task {
    /// Predicting masked tokens, or the next one.
    Vocabulary,
    /// Telling texts apart.
    Texts,
    /// Telling tokens apart.
    Tokens,
    /// Telling whether one text follows another.
    NextSentence,
}

impl Task {
    /// That of a checkpoint's architecture.
    pub(super) fn of(json: &ConfigJson) -> Self {
        let is = |end: &str| json.architecture().is_some_and(|architecture| architecture.ends_with(end));
        match () {
            () if is("ForSequenceClassification") => Task::Texts,
            () if is("ForTokenClassification") => Task::Tokens,
            () if is("ForNextSentencePrediction") => Task::NextSentence,
            () => Task::Vocabulary,
        }
    }

    /// Puts a classifier's head and outputs in place of those of the vocabulary. `of_texts` is the head of a classifier of texts.
    pub(super) fn apply(self, json: &ConfigJson, config: &mut Config, of_texts: HeadConfig) -> Result<()> {
        (config.head, config.d_vocab_out) = match self {
            Task::Vocabulary => return Ok(()),
            Task::Texts => (Some(of_texts), labels(json)?),
            Task::Tokens => (None, labels(json)?),
            Task::NextSentence => (Some(of_texts), 2),
        };
        config.tie_word_embeddings = false;
        Ok(())
    }

    /// Where the head lies: that of the vocabulary; the neurons and the outputs of a classifier of texts; the outputs of one of tokens.
    pub(super) fn names(self, vocabulary: &[Entry], of_texts: &[Entry], of_tokens: &[Entry]) -> Vec<Entry> {
        match self {
            Task::Vocabulary => vocabulary.to_vec(),
            Task::Texts | Task::NextSentence => of_texts.to_vec(),
            Task::Tokens => of_tokens.to_vec(),
        }
    }
}

/// How many labels a classifier has.
fn labels(json: &ConfigJson) -> Result<usize> {
    let names: Option<serde_json::Map<String, serde_json::Value>> = json.get("id2label")?;
    Ok(match names {
        Some(names) if !names.is_empty() => names.len(),
        _ => json.get_or("num_labels", 2)?,
    })
}

/// The outputs of a classifier.
pub(super) const CLASSIFIER: &[Entry] =
    &[entry(Part::U, "classifier.weight", View::AsIs), entry(Part::UB, "classifier.bias", View::AsIs)];

/// The neurons and outputs of RoBERTa's classifier of texts, and others'.
pub(super) const CLASSIFIER_OF_TEXTS: &[Entry] = &[
    entry(Part::HeadW, "classifier.dense.weight", View::AsIs),
    entry(Part::HeadB, "classifier.dense.bias", View::AsIs),
    entry(Part::U, "classifier.out_proj.weight", View::AsIs),
    entry(Part::UB, "classifier.out_proj.bias", View::AsIs),
];

/// Norms before the sublayers and at the end.
pub(super) fn norms_before(config: &mut Config) {
    config.norms.position = NormPosition::Before;
    config.norms.last = None;
}

/// Queries, keys, values and output, and the MLP; `root` is the module that holds the encoder.
macro_rules! sublayers {
    ($root:literal) => {
        [
            entry(Q, concat!($root, ".encoder.layer.{l}.attention.self.query.weight"), AsIs),
            entry(QB, concat!($root, ".encoder.layer.{l}.attention.self.query.bias"), AsIs),
            entry(K, concat!($root, ".encoder.layer.{l}.attention.self.key.weight"), AsIs),
            entry(KB, concat!($root, ".encoder.layer.{l}.attention.self.key.bias"), AsIs),
            entry(V, concat!($root, ".encoder.layer.{l}.attention.self.value.weight"), AsIs),
            entry(VB, concat!($root, ".encoder.layer.{l}.attention.self.value.bias"), AsIs),
            entry(O, concat!($root, ".encoder.layer.{l}.attention.output.dense.weight"), AsIs),
            entry(OB, concat!($root, ".encoder.layer.{l}.attention.output.dense.bias"), AsIs),
            entry(In, concat!($root, ".encoder.layer.{l}.intermediate.dense.weight"), AsIs),
            entry(InB, concat!($root, ".encoder.layer.{l}.intermediate.dense.bias"), AsIs),
            entry(Out, concat!($root, ".encoder.layer.{l}.output.dense.weight"), AsIs),
            entry(OutB, concat!($root, ".encoder.layer.{l}.output.dense.bias"), AsIs),
        ]
    };
}

/// Entries under a root.
macro_rules! entries {
    ($root:literal: $($part:ident, $name:literal, $view:expr;)+) => {
        [$(entry($part, concat!($root, $name), $view),)+]
    };
}

/// A gain and a bias under these names with `.weight` and `.bias`.
macro_rules! norm {
    ($gain:ident, $bias:ident, $($name:literal),+) => {
        [entry($gain, concat!($($name,)+ ".weight"), AsIs), entry($bias, concat!($($name,)+ ".bias"), AsIs)]
    };
}

/// The norms of the stream and that of the embeddings.
macro_rules! norms_in_stream {
    ($root:literal) => {
        [
            norm!(Ln1W, Ln1B, $root, ".encoder.layer.{l}.attention.output.LayerNorm"),
            norm!(Ln2W, Ln2B, $root, ".encoder.layer.{l}.output.LayerNorm"),
            norm!(EmbedLnW, EmbedLnB, $root, ".embeddings.LayerNorm"),
        ]
        .concat()
    };
}

/// The embeddings of tokens, positions (whose first rows may have no use) and types of tokens.
macro_rules! embeddings {
    ($root:literal, $positions:expr) => {
        [
            entry(WE, concat!($root, ".embeddings.word_embeddings.weight"), AsIs),
            entry(WPos, concat!($root, ".embeddings.position_embeddings.weight"), $positions),
            entry(WTokenType, concat!($root, ".embeddings.token_type_embeddings.weight"), AsIs),
        ]
    };
}

/// The head of `cls.predictions`, of BERT and others.
macro_rules! head {
    ($root:literal) => {
        [
            entry(HeadW, concat!($root, ".dense.weight"), AsIs),
            entry(HeadB, concat!($root, ".dense.bias"), AsIs),
            entry(HeadLnW, concat!($root, ".LayerNorm.weight"), AsIs),
            entry(HeadLnB, concat!($root, ".LayerNorm.bias"), AsIs),
        ]
    };
}

/// The unembedding's bias, which lies in one place where the unembedding is the embedding, and in another where it is not.
macro_rules! unembedding {
    ($config:expr, $weight:literal, $tied_bias:literal, $bias:literal) => {
        [entry(U, $weight, AsIs), entry(UB, if $config.tie_word_embeddings { $tied_bias } else { $bias }, AsIs)]
    };
}

pub(super) use {embeddings, entries, head, norm, norms_in_stream, sublayers, unembedding};
