//! DistilBERT (Sanh et al. 2019): BERT without types of tokens.

use super::bert_style::{self, Task, CLASSIFIER};
use super::{ConfigJson, Family};
use crate::config::{Activation, AttentionDir, HeadConfig, MlpConfig, NormConfig, NormPosition, Normalization};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = bert_style::family("distilbert", ARCHITECTURES, "distilbert.", config, names);

const ARCHITECTURES: &[&str] =
    &["DistilBertForMaskedLM", "DistilBertForSequenceClassification", "DistilBertForTokenClassification"];

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["attention_dropout", "dropout", "qa_dropout", "seq_classif_dropout"]);
    json.ignore(&["sinusoidal_pos_embds"]); // the table is in the file either way
    let n_layers = json.get_or("n_layers", 6)?;
    let (d_model, n_heads) = (json.get_or("dim", 768)?, json.get_or("n_heads", 12)?);
    let n_ctx = json.get_or("max_position_embeddings", 512)?;
    let mut config = Config::new(n_layers, d_model, n_heads, json.get_or("vocab_size", 30522)?, n_ctx);
    let activation = json.activation(&["activation"], "gelu")?;
    config.mlp = Some(MlpConfig::plain(json.get_or("hidden_dim", 3072)?, activation));
    config.norms = NormConfig {
        position: NormPosition::InStream,
        last: Some(Normalization::None),
        eps: 1e-12,
        after_full_embed: true,
        ..NormConfig::default()
    };
    config.attention.direction = AttentionDir::Bidirectional;
    config.head = Some(HeadConfig::new(activation));
    config.tie_word_embeddings = json.get_or("tie_word_embeddings", true)?;
    Task::of(json).apply(json, &mut config, HeadConfig::of_texts(Activation::Relu))?;
    Ok(config)
}

const NAMES: &[Entry] = &[
    entry(WE, "distilbert.embeddings.word_embeddings.weight", AsIs),
    entry(WPos, "distilbert.embeddings.position_embeddings.weight", AsIs),
    entry(EmbedLnW, "distilbert.embeddings.LayerNorm.weight", AsIs),
    entry(EmbedLnB, "distilbert.embeddings.LayerNorm.bias", AsIs),
    entry(Q, "distilbert.transformer.layer.{l}.attention.q_lin.weight", AsIs),
    entry(QB, "distilbert.transformer.layer.{l}.attention.q_lin.bias", AsIs),
    entry(K, "distilbert.transformer.layer.{l}.attention.k_lin.weight", AsIs),
    entry(KB, "distilbert.transformer.layer.{l}.attention.k_lin.bias", AsIs),
    entry(V, "distilbert.transformer.layer.{l}.attention.v_lin.weight", AsIs),
    entry(VB, "distilbert.transformer.layer.{l}.attention.v_lin.bias", AsIs),
    entry(O, "distilbert.transformer.layer.{l}.attention.out_lin.weight", AsIs),
    entry(OB, "distilbert.transformer.layer.{l}.attention.out_lin.bias", AsIs),
    entry(Ln1W, "distilbert.transformer.layer.{l}.sa_layer_norm.weight", AsIs),
    entry(Ln1B, "distilbert.transformer.layer.{l}.sa_layer_norm.bias", AsIs),
    entry(In, "distilbert.transformer.layer.{l}.ffn.lin1.weight", AsIs),
    entry(InB, "distilbert.transformer.layer.{l}.ffn.lin1.bias", AsIs),
    entry(Out, "distilbert.transformer.layer.{l}.ffn.lin2.weight", AsIs),
    entry(OutB, "distilbert.transformer.layer.{l}.ffn.lin2.bias", AsIs),
    entry(Ln2W, "distilbert.transformer.layer.{l}.output_layer_norm.weight", AsIs),
    entry(Ln2B, "distilbert.transformer.layer.{l}.output_layer_norm.bias", AsIs),
];

const VOCABULARY: &[Entry] = &[
    entry(HeadW, "vocab_transform.weight", AsIs),
    entry(HeadB, "vocab_transform.bias", AsIs),
    entry(HeadLnW, "vocab_layer_norm.weight", AsIs),
    entry(HeadLnB, "vocab_layer_norm.bias", AsIs),
    entry(U, "vocab_projector.weight", AsIs),
    entry(UB, "vocab_projector.bias", AsIs),
];

const PRE_CLASSIFIER: &[Entry] =
    &[entry(HeadW, "pre_classifier.weight", AsIs), entry(HeadB, "pre_classifier.bias", AsIs)];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let head = Task::of(json).names(VOCABULARY, &[PRE_CLASSIFIER, CLASSIFIER].concat(), CLASSIFIER);
    Ok([NAMES, &head].concat())
}
