//! StableLM 2 (Bellagente et al. 2024): Llama with layer norms, a partial rotation, and where the configuration says so a
//! parallel block, and norms of queries and keys with a gain for each head.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{Normalization, QkNorm};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("stablelm", &["StableLmForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2560,
    intermediate_size: 6912,
    num_key_value_heads: Some(32),
    vocab_size: 50304,
    max_position_embeddings: 4096,
    norm_eps: 1e-5,
    rope: Some(Rope { partial: Some(0.25), ..Rope::DEFAULT }),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["hidden_dropout"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    json.expect_only("head_dim", config.d_model / config.n_heads.max(1))?;
    config.norms.kind = Normalization::LN;
    config.parallel_attn_mlp = json.get_or("use_parallel_residual", false)?;
    config.attention.qk_norm = json.get_or("qk_layernorm", false)?.then_some(QkNorm::PerHead(Normalization::LN));
    Ok(config)
}

/// The biases of the norm that a parallel block's attention and MLP share.
const ONE_BIAS: &[Entry] = &[
    entry(Ln1B, "model.layers.{l}.input_layernorm.bias", AsIs),
    entry(Ln2B, "model.layers.{l}.input_layernorm.bias", AsIs),
    entry(LnFinalB, "model.norm.bias", AsIs),
];

const NORMS_BY_HEAD: &[Entry] = &[
    entry(QNormW, "model.layers.{l}.self_attn.q_layernorm.norms.{h}.weight", AsIs),
    entry(KNormW, "model.layers.{l}.self_attn.k_layernorm.norms.{h}.weight", AsIs),
];

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = entries_if(json.get_or("use_qkv_bias", false)?, QKV_BIASES);
    let norms = if config.parallel_attn_mlp { [ONE_NORM, ONE_BIAS] } else { [NORMS, NORM_BIASES] };
    let qk_norms = entries_if(config.qk_norm().is_some(), NORMS_BY_HEAD);
    Ok([ENDS, ATTENTION, biases, qk_norms, norms[0], norms[1], MLP].concat())
}
