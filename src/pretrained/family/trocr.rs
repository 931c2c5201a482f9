//! The decoder of TrOCR (Li et al. 2021) by itself, without cross-attention to an image.

use super::bart_style::{self, Style, APART, BART, IGNORED};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    model_type: "trocr",
    architectures: &["TrOCRForCausalLM"],
    prefix: "model.",
    config,
    names,
    ignored: IGNORED,
    left_out,
};

const STYLE: Style = Style { n_ctx: 512, logits_bias: false, ..BART };

fn config(json: &ConfigJson) -> Result<Config> {
    json.expect_only("use_learned_position_embeddings", true)?;
    json.ignore(&["cross_attention_hidden_size"]);
    let mut config = bart_style::lone_decoder(json, &STYLE)?;
    config.norms.after_full_embed = json.get_or("layernorm_embedding", true)?;
    Ok(config)
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    bart_style::of_stack(config, json, &STYLE, &APART)
}

/// Cross-attention, which reads nothing where there is no encoder.
fn left_out(_: &ConfigJson, name: &str) -> bool {
    name.contains(".encoder_attn")
}
