//! RoBERTa with norms before the sublayers and at the end: that of `roberta-prelayernorm` (Ott et al. 2019), and XLM-RoBERTa XL (Goyal et
//! al. 2021).

use super::bert_style::{self, *};
use super::{bert, roberta, ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const ROBERTA_PRELAYERNORM: Family = Family {
    left_out: bert::left_out,
    ..bert_style::family(
        "roberta-prelayernorm",
        &["RobertaPreLayerNormForMaskedLM", "RobertaPreLayerNormForCausalLM"],
        "roberta_prelayernorm.",
        prelayernorm_config,
        prelayernorm_names,
    )
};

pub(super) const XLM_ROBERTA_XL: Family = Family {
    left_out: bert::left_out,
    ..bert_style::family(
        "xlm-roberta-xl",
        &["XLMRobertaXLForMaskedLM", "XLMRobertaXLForCausalLM"],
        "roberta.",
        xl_config,
        xl_names,
    )
};

const XL: Defaults = Defaults {
    hidden_size: 2560,
    intermediate_size: 10240,
    num_hidden_layers: 36,
    num_attention_heads: 32,
    vocab_size: 250880,
    max_position_embeddings: 514,
    type_vocab_size: Some(1),
    layer_norm_eps: 1e-5,
    ..BERT
};

fn prelayernorm_config(json: &ConfigJson) -> Result<Config> {
    let mut config = roberta::of(json, &Defaults { vocab_size: 50265, ..BERT })?;
    norms_before(&mut config);
    Ok(config)
}

fn xl_config(json: &ConfigJson) -> Result<Config> {
    let mut config = roberta::of(json, &XL)?;
    norms_before(&mut config);
    config.norms.after_full_embed = false;
    Ok(config)
}

fn prelayernorm_names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let norms = [
        norm!(EmbedLnW, EmbedLnB, "roberta_prelayernorm.embeddings.LayerNorm"),
        norm!(Ln1W, Ln1B, "roberta_prelayernorm.encoder.layer.{l}.attention.LayerNorm"),
        norm!(Ln2W, Ln2B, "roberta_prelayernorm.encoder.layer.{l}.intermediate.LayerNorm"),
        norm!(LnFinalW, LnFinalB, "roberta_prelayernorm.LayerNorm"),
    ];
    let embeddings = embeddings!("roberta_prelayernorm", RowsFrom(roberta::first_position(json)? as i64));
    let ends = [roberta::HEAD, &roberta::unembedding(config)].concat();
    Ok([&embeddings[..], &sublayers!("roberta_prelayernorm"), &norms.concat(), &ends].concat())
}

fn xl_names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let norms = [
        norm!(Ln1W, Ln1B, "roberta.encoder.layer.{l}.attention.self_attn_layer_norm"),
        norm!(Ln2W, Ln2B, "roberta.encoder.layer.{l}.LayerNorm"),
        norm!(LnFinalW, LnFinalB, "roberta.encoder.LayerNorm"),
    ];
    let embeddings = embeddings!("roberta", RowsFrom(roberta::first_position(json)? as i64));
    let ends = [roberta::HEAD, &roberta::unembedding(config)].concat();
    Ok([&embeddings[..], &sublayers!("roberta"), &norms.concat(), &ends].concat())
}
