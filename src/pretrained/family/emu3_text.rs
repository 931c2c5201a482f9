//! The language model of Emu 3 (BAAI 2024): Llama with other defaults.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("emu3_text_model", &["Emu3ForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 14336,
    num_key_value_heads: Some(8),
    vocab_size: 184_622,
    max_position_embeddings: 9216,
    norm_eps: 1e-5,
    rope: Some(Rope { theta: 1e6, ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.expect_only("mlp_bias", false)?;
    json.expect_only("attention_bias", false)?;
    llama_style::config(json, &DEFAULTS)
}

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, NORMS, MLP].concat())
}
