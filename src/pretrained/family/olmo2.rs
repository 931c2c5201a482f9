//! OLMo 2 (Walsh et al. 2025): norms after the sublayers in place of before them, and of queries and keys.

use super::llama_style::{self, *};
use super::{olmo, ConfigJson, Family};
use crate::config::{NormPosition, Normalization, QkNorm};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("olmo2", &["Olmo2ForCausalLM"], config, names);

fn config(json: &ConfigJson) -> Result<Config> {
    Ok(with_norms_after(llama_style::config(json, &olmo::DEFAULTS)?))
}

/// What OLMo 2 and 3 share.
pub(super) fn with_norms_after(mut config: Config) -> Config {
    config.attention.qk_norm = Some(QkNorm::AllHeads(Normalization::RMS));
    config.norms.position = NormPosition::After;
    config
}

/// OLMo 3's, too.
pub(super) fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS_AFTER, MLP].concat())
}
