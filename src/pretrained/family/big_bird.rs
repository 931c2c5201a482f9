//! BigBird (Zaheer et al. 2020), as far as its attention sees everything: texts that are not long enough for blocks.

use super::bert_style::{self, *};
use super::{bert, ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    left_out: bert::left_out,
    ..bert_style::family("big_bird", &["BigBirdForMaskedLM", "BigBirdForCausalLM"], "bert.", config, names)
};

const DEFAULTS: Defaults =
    Defaults { vocab_size: 50358, max_position_embeddings: 4096, hidden_act: "gelu_new", ..BERT };

fn config(json: &ConfigJson) -> Result<Config> {
    json.expect_only("use_bias", true)?;
    let mut config = bert_style::config(json, &DEFAULTS)?;
    let (block, random) = (json.get_or("block_size", 64usize)?, json.get_or("num_random_blocks", 3usize)?);
    match json.get_or("attention_type", "block_sparse".to_string())?.as_str() {
        "original_full" => {}
        // Texts of up to so many tokens see everything, in transformers too.
        "block_sparse" => {
            config.n_ctx = config.n_ctx.min(random.saturating_mul(2).saturating_add(5).saturating_mul(block))
        }
        other => return Err(json.refuse("attention_type", other, "expected original_full or block_sparse")),
    }
    Ok(config)
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let [mut word, positions, types] = embeddings!("bert", AsIs);
    if json.get_or("rescale_embeddings", false)? {
        word.view = TimesSqrtDModel;
    }
    let (norms, head) = (norms_in_stream!("bert"), head!("cls.predictions.transform"));
    Ok([&[word, positions, types][..], &sublayers!("bert"), &norms, &head, &bert::unembedding(config)].concat())
}
