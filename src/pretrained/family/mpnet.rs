//! MPNet (Song et al. 2020): RoBERTa without types of tokens, whose scores have T5's bias by distance.

use super::bert_style::{self, *};
use super::{roberta, ConfigJson, Family};
use crate::config::{Activation, HeadConfig};
use crate::pretrained::parts::{entry, Entry, Part::*, Shared, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    left_out: super::bert::left_out,
    ..bert_style::family(
        "mpnet",
        &["MPNetForMaskedLM", "MPNetForSequenceClassification", "MPNetForTokenClassification"],
        "mpnet.",
        config,
        names,
    )
};

const DEFAULTS: Defaults = Defaults { vocab_size: 30527, type_vocab_size: None, ..BERT };

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = roberta::of(json, &DEFAULTS)?;
    let buckets = json.get_or("relative_attention_num_buckets", 32)?;
    config.attention.relative_bias = Some(crate::config::RelativeBias { buckets, max_distance: 128, per_layer: false });
    Task::of(json).apply(json, &mut config, HeadConfig::of_texts(Activation::Tanh))?;
    Ok(config)
}

/// One table for all layers, which the first has.
const ONE: Shared = Shared { runs: 1, groups: 1, of_group: 1 };

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let [word, positions, _] = embeddings!("mpnet", RowsFrom(roberta::first_position(json)? as i64));
    let layers = entries! { "mpnet.encoder.layer.{l}.":
        Q, "attention.attn.q.weight", AsIs; QB, "attention.attn.q.bias", AsIs;
        K, "attention.attn.k.weight", AsIs; KB, "attention.attn.k.bias", AsIs;
        V, "attention.attn.v.weight", AsIs; VB, "attention.attn.v.bias", AsIs;
        O, "attention.attn.o.weight", AsIs; OB, "attention.attn.o.bias", AsIs;
        Ln1W, "attention.LayerNorm.weight", AsIs; Ln1B, "attention.LayerNorm.bias", AsIs;
        In, "intermediate.dense.weight", AsIs; InB, "intermediate.dense.bias", AsIs;
        Out, "output.dense.weight", AsIs; OutB, "output.dense.bias", AsIs;
        Ln2W, "output.LayerNorm.weight", AsIs; Ln2B, "output.LayerNorm.bias", AsIs;
    };
    let norm = norm!(EmbedLnW, EmbedLnB, "mpnet.embeddings.LayerNorm");
    let bias = [entry(RelativeBias, "mpnet.encoder.relative_attention_bias.weight", AsIs).in_blocks(0..1).shared(ONE)];
    Ok([&[word, positions][..], &layers, &norm, &bias, &roberta::head(config, json)].concat())
}
