//! The language model of Qwen 3 VL (Qwen Team 2025): Qwen 3. The several positions of a token are one in text.

use super::llama_style::{self, *};
use super::{qwen2, qwen3, ConfigJson, Family};
use crate::config::{Normalization, QkNorm};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    llama_style::family("qwen3_vl_text", &["Qwen3VLForConditionalGeneration"], config, qwen3::names);

const DEFAULTS: Defaults = Defaults {
    head_dim: Some(128),
    max_position_embeddings: 128_000,
    rope: Some(Rope { theta: 500_000.0, ..Rope::DEFAULT }),
    ..qwen2::DEFAULTS
};

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    Ok(config)
}
