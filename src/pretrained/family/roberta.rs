//! RoBERTa (Liu et al. 2019): BERT whose positions begin behind that of padding; and its relatives with other names.

use super::bert_style::{self, *};
use super::{bert, ConfigJson, Family};
use crate::config::{Activation, HeadConfig};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

macro_rules! families {
    ($($family:ident, $model_type:literal, [$($architecture:literal),+], $root:literal, $names:ident;)+) => {
        $(
            pub(super) const $family: Family = Family {
                left_out: bert::left_out,
                ..bert_style::family($model_type, &[$($architecture),+], concat!($root, "."), config, $names)
            };

            fn $names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
                let positions = RowsFrom(first_position(json)? as i64);
                let norms = norms_in_stream!($root);
                Ok([&embeddings!($root, positions)[..], &sublayers!($root), &norms, &head(config, json)].concat())
            }
        )+
    };
}

families! {
    ROBERTA, "roberta", ["RobertaForMaskedLM", "RobertaForCausalLM", "RobertaForSequenceClassification",
        "RobertaForTokenClassification"], "roberta", roberta;
    CAMEMBERT, "camembert", ["CamembertForMaskedLM", "CamembertForCausalLM", "CamembertForSequenceClassification",
        "CamembertForTokenClassification"], "roberta", camembert;
    XLM_ROBERTA, "xlm-roberta", ["XLMRobertaForMaskedLM", "XLMRobertaForCausalLM", "XLMRobertaForSequenceClassification",
        "XLMRobertaForTokenClassification"], "roberta", xlm_roberta;
    DATA2VEC_TEXT, "data2vec-text", ["Data2VecTextForMaskedLM", "Data2VecTextForCausalLM", "Data2VecTextForSequenceClassification",
        "Data2VecTextForTokenClassification"], "data2vec_text",
        data2vec_text;
}

fn config(json: &ConfigJson) -> Result<Config> {
    // The defaults differ in the size of the vocabulary alone.
    let vocab_size = if json.model_type() == Some("roberta") { 50265 } else { BERT.vocab_size };
    let mut config = of(json, &Defaults { vocab_size, ..BERT })?;
    Task::of(json).apply(json, &mut config, HeadConfig::of_texts(Activation::Tanh))?;
    Ok(config)
}

/// The head for the task of the checkpoint.
pub(super) fn head(config: &Config, json: &ConfigJson) -> Vec<Entry> {
    Task::of(json).names(&[HEAD, &unembedding(config)].concat(), CLASSIFIER_OF_TEXTS, CLASSIFIER)
}

/// The configuration of RoBERTa and others whose positions begin behind that of padding. The head has its own activation function.
pub(super) fn of(json: &ConfigJson, default: &Defaults) -> Result<Config> {
    let mut config = bert_style::config(json, default)?;
    config.n_ctx = config.n_ctx.saturating_sub(first_position(json)?);
    config.head = Some(HeadConfig::new(Activation::Gelu));
    Ok(config)
}

/// The row of the table that the first position has.
pub(super) fn first_position(json: &ConfigJson) -> Result<usize> {
    Ok(json.get_or("pad_token_id", 1usize)?.saturating_add(1))
}

/// The head of RoBERTa and others.
pub(super) const HEAD: &[Entry] = &[
    entry(HeadW, "lm_head.dense.weight", AsIs),
    entry(HeadB, "lm_head.dense.bias", AsIs),
    entry(HeadLnW, "lm_head.layer_norm.weight", AsIs),
    entry(HeadLnB, "lm_head.layer_norm.bias", AsIs),
];

/// The unembedding of RoBERTa and others.
pub(super) fn unembedding(config: &Config) -> [Entry; 2] {
    unembedding!(config, "lm_head.decoder.weight", "lm_head.bias", "lm_head.decoder.bias")
}
