//! SantaCoder and StarCoder (Ben Allal et al. 2023; Li et al. 2023): GPT-2 with one key and one value for all heads.

use super::{gpt2, ConfigJson, Family};
use crate::pretrained::parts::{at, Entry, Part::*, View, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    architectures: &["GPTBigCodeForCausalLM", "gpt_bigcode"],
    prefix: "transformer.",
    config,
    names,
    ignored: &["attn.bias", "attn.masked_bias", "lm_head.weight"],
};

fn config(json: &ConfigJson) -> Result<Config> {
    // How transformers once computed, not what.
    json.ignore(&["attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "inference_runner"]);
    json.ignore(&["max_batch_size", "max_sequence_length", "pad_key_length", "pre_allocate_kv_cache"]);
    json.ignore(&["validate_runner_input"]);
    json.only("scale_attn_by_inverse_layer_idx", false)?;
    let config = gpt2::config_with(json, "gelu_pytorch_tanh")?;
    let n_key_value_heads = if json.or("multi_query", true)? { 1 } else { config.n_heads };
    json.only("num_key_value_heads", n_key_value_heads)?;
    Ok(Config { n_key_value_heads, ..config })
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let multi_query = config.n_key_value_heads == 1 && config.n_heads != 1;
    let qkv = |which| -> View {
        if multi_query {
            QkvBlock(which)
        } else {
            QkvPerHead(which)
        }
    };
    Ok(vec![
        at(WE, "transformer.wte.weight", AsIs),
        at(WPos, "transformer.wpe.weight", AsIs),
        at(Ln1W, "transformer.h.{l}.ln_1.weight", AsIs),
        at(Ln1B, "transformer.h.{l}.ln_1.bias", AsIs),
        at(Q, "transformer.h.{l}.attn.c_attn.weight", qkv(0)),
        at(QB, "transformer.h.{l}.attn.c_attn.bias", qkv(0)),
        at(K, "transformer.h.{l}.attn.c_attn.weight", qkv(1)),
        at(KB, "transformer.h.{l}.attn.c_attn.bias", qkv(1)),
        at(V, "transformer.h.{l}.attn.c_attn.weight", qkv(2)),
        at(VB, "transformer.h.{l}.attn.c_attn.bias", qkv(2)),
        at(O, "transformer.h.{l}.attn.c_proj.weight", AsIs),
        at(OB, "transformer.h.{l}.attn.c_proj.bias", AsIs),
        at(Ln2W, "transformer.h.{l}.ln_2.weight", AsIs),
        at(Ln2B, "transformer.h.{l}.ln_2.bias", AsIs),
        at(In, "transformer.h.{l}.mlp.c_fc.weight", AsIs),
        at(InB, "transformer.h.{l}.mlp.c_fc.bias", AsIs),
        at(Out, "transformer.h.{l}.mlp.c_proj.weight", AsIs),
        at(OutB, "transformer.h.{l}.mlp.c_proj.bias", AsIs),
        at(LnFinalW, "transformer.ln_f.weight", AsIs),
        at(LnFinalB, "transformer.ln_f.bias", AsIs),
        at(U, if config.tie_word_embeddings { "transformer.wte.weight" } else { "lm_head.weight" }, AsIs),
    ])
}
