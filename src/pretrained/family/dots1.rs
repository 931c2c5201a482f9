//! dots.llm1 (Huo et al. 2025): Qwen 3's attention and DeepSeek 3's mixtures.

use super::llama_style::{self, *};
use super::mixture_style::{self, Mixture, CHOICE_BIAS, EXPERTS, SHARED_EXPERTS};
use super::{ConfigJson, Family};
use crate::config::{Normalization, QkNorm};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("dots1", &["Dots1ForCausalLM"], config, names);

const DEFAULTS: Defaults =
    Defaults { hidden_size: 4608, intermediate_size: 10944, num_hidden_layers: 62, vocab_size: 152_064, ..LLAMA };

/// Sizes that transformers has no default for are 0, which is refused.
const MIXTURE: Mixture =
    Mixture { experts: 0, per_token: 0, shared: 0, width: 1408, groups: [1, 1], normalized: false, scale: 1.0 };

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    let dense = mixture_style::first_dense(json, &config, 0)?;
    mixture_style::set_deepseek_experts(json, &mut config, &MIXTURE, dense)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    let window = json.get_unless_null("sliding_window", Some(4096))?;
    let first: usize = json.get_or("max_window_layers", 62)?;
    config.attention.reach = layer_types(json, config.n_layers, window, |layer| window.is_some() && layer >= first)?;
    Ok(config)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let attention = [ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS].concat();
    Ok([&attention, NORMS, MLP, EXPERTS, CHOICE_BIAS, SHARED_EXPERTS].concat())
}
