//! Megatron's BERT (Shoeybi et al. 2019): norms before the sublayers and at the end, and none of the embeddings.

use super::bert_style::{self, *};
use super::{bert, ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    left_out: bert::left_out,
    ..bert_style::family(
        "megatron-bert",
        &["MegatronBertForMaskedLM", "MegatronBertForCausalLM"],
        "bert.",
        config,
        names,
    )
};

const LARGE: Defaults = Defaults {
    hidden_size: 1024,
    intermediate_size: 4096,
    num_hidden_layers: 24,
    num_attention_heads: 16,
    vocab_size: 29056,
    ..BERT
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = bert_style::config(json, &LARGE)?;
    norms_before(&mut config);
    config.norms.after_full_embed = false;
    Ok(config)
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let norms = [
        norm!(Ln1W, Ln1B, "bert.encoder.layer.{l}.attention.ln"),
        norm!(Ln2W, Ln2B, "bert.encoder.layer.{l}.ln"),
        norm!(LnFinalW, LnFinalB, "bert.encoder.ln"),
    ];
    let head = head!("cls.predictions.transform");
    let unembedding = bert::unembedding(config);
    Ok([&embeddings!("bert", AsIs)[..], &sublayers!("bert"), &norms.concat(), &head, &unembedding].concat())
}
