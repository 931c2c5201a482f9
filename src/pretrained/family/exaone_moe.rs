//! EXAONE with mixtures (LG AI Research 2026): EXAONE 4's attention, norms before the sublayers, and DeepSeek 3's mixtures.

use super::exaone4::{self, window_and_pattern};
use super::llama_style::{self, *};
use super::mixture_style::{self, Mixture, EXPERTS, SHARED_EXPERTS};
use super::{ConfigJson, Family};
use crate::config::{Normalization, QkNorm};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("exaone_moe", &["ExaoneMoeForCausalLM"], config, names);

const MIXTURE: Mixture =
    Mixture { experts: 64, per_token: 8, shared: 1, width: 1024, groups: [1, 1], normalized: true, scale: 2.5 };

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &exaone4::DEFAULTS)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    window_and_pattern(json, &mut config)?;
    let first: usize = json.get_or("first_k_dense_replace", 1)?;
    let dense = mixture_style::mlp_layer_types(json, &config, |layer| layer < first)?;
    mixture_style::set_deepseek_experts(json, &mut config, &MIXTURE, dense)?;
    Ok(config)
}

const CHOICE_BIAS: &[Entry] = &[entry(ChoiceB, "model.layers.{l}.mlp.e_score_correction_bias", AsIs)];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, QK_NORMS, NORMS, MLP, EXPERTS, CHOICE_BIAS, SHARED_EXPERTS].concat())
}
