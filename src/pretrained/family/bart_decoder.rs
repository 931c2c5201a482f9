//! The decoder of BART by itself, without cross-attention.

use super::bart_style::{self, Style, APART, BART, IGNORED};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    model_type: "bart",
    architectures: &["BartForCausalLM"],
    prefix: "model.",
    config,
    names,
    ignored: IGNORED,
    left_out,
};

const STYLE: Style = Style { logits_bias: false, ..BART };

fn config(json: &ConfigJson) -> Result<Config> {
    bart_style::lone_decoder(json, &STYLE)
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    bart_style::of_stack(config, json, &STYLE, &APART)
}

/// Cross-attention, which reads nothing where there is no encoder.
fn left_out(_: &ConfigJson, name: &str) -> bool {
    name.contains(".encoder_attn")
}
