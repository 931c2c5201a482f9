//! CodeGen (Nijkamp et al. 2022): GPT-J with queries, keys and values in one matrix, a quarter of the heads after the other.

use super::gpt2_style::{self, ENDS};
use super::{gptj, ConfigJson, Family};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    ignored: &["attn.causal_mask", "attn.bias", "attn.masked_bias"],
    ..gpt2_style::family("codegen", &["CodeGenForCausalLM"], config, names)
};

fn config(json: &ConfigJson) -> Result<Config> {
    let config = gptj::config(json)?;
    match config.n_heads % 4 {
        0 => Ok(config),
        _ => Err(json.refuse("n_head", config.n_heads, "the checkpoint has heads in four equal parts")),
    }
}

const QKV: &str = "transformer.h.{l}.attn.qkv_proj.weight";

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let qkv = [entry(Q, QKV, QkvPerQuarter(0)), entry(V, QKV, QkvPerQuarter(1)), entry(K, QKV, QkvPerQuarter(2))];
    Ok([ENDS, &qkv, gptj::REST].concat())
}
