//! InternLM 3 (Shanghai AI Laboratory 2025): Llama with defaults and names of fields of its own.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    llama_style::family("internlm3", &["InternLM3ForCausalLM", "LlamaForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    intermediate_size: 10240,
    num_hidden_layers: 48,
    num_key_value_heads: Some(2),
    vocab_size: 128_512,
    max_position_embeddings: 32768,
    norm_eps: 1e-5,
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    llama_style::config(json, &DEFAULTS)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biases = entries_if(json.get_any(&["qkv_bias", "attention_bias"])?.unwrap_or(false), ATTENTION_BIASES);
    let mlp_biases = entries_if(json.get_any(&["bias", "mlp_bias"])?.unwrap_or(false), MLP_BIASES);
    Ok([ENDS, ATTENTION, biases, NORMS, MLP, mlp_biases].concat())
}
