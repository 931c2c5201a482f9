//! OLMo (Groeneveld et al. 2024): Llama with layer norms that have neither gain nor bias.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::Normalization;
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    architectures: &["OlmoForCausalLM", "olmo"],
    prefix: "",
    config,
    names,
    ignored: &["rotary_emb.inv_freq", "lm_head.weight"],
};

/// What transformers takes where the file is silent.
pub(super) const DEFAULTS: Defaults = Defaults { vocab_size: 50304, norm_eps: 1e-5, ..LLAMA };

fn config(json: &ConfigJson) -> Result<Config> {
    let config = llama_style::config(json, &DEFAULTS)?;
    Ok(Config {
        normalization_type: Normalization::LNPre,
        final_rms: false,
        eps: 1e-5, // transformers has no field for it
        clip_qkv: json.get("clip_qkv")?,
        ..config
    })
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let [embed, _, unembed] = ends(config);
    Ok([&[embed, unembed], ATTENTION, attention_biases(json, false)?, MLP].concat())
}
