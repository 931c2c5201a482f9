//! VaultGemma (Google 2025): Gemma 2 without the norms after the sublayers.

use super::gemma2::{self, like_gemma2};
use super::llama_style::{self, attention_biases, ATTENTION, MLP};
use super::{gemma, ConfigJson, Family};
use crate::config::NormPosition;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("vaultgemma", &["VaultGemmaForCausalLM"], config, names);

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = like_gemma2(json, &gemma2::DEFAULTS, |layer| layer % 2 == 0)?;
    config.norms.position = NormPosition::Before;
    config.attention.scores_soft_cap = json.get_unless_null("attn_logit_softcapping", Some(50.0))?;
    config.output_logits_soft_cap = json.get_unless_null("final_logit_softcapping", Some(30.0))?;
    Ok(config)
}

const NORMS: &[Entry] = &[
    entry(Ln1W, "model.layers.{l}.input_layernorm.weight", PlusOne),
    entry(Ln2W, "model.layers.{l}.pre_feedforward_layernorm.weight", PlusOne),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([gemma::ENDS, ATTENTION, attention_biases(json, false)?, NORMS, MLP].concat())
}
