//! SantaCoder and StarCoder (Ben Allal et al. 2023; Li et al. 2023): GPT-2 with one key and one value for all heads.

use super::gpt2_style::{self, fused_attention, Fields, ENDS, GPT2, LN2_AND_POSITIONS};
use super::{gpt2, ConfigJson, Family};
use crate::pretrained::parts::{Entry, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = gpt2_style::family("gpt_bigcode", &["GPTBigCodeForCausalLM"], config, names);

const FIELDS: Fields = Fields { activation: (&["activation_function"], "gelu_pytorch_tanh"), ..GPT2 };

fn config(json: &ConfigJson) -> Result<Config> {
    // How transformers once computed, not what.
    json.ignore(&["attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "inference_runner"]);
    json.ignore(&["max_batch_size", "max_sequence_length", "pad_key_length", "pre_allocate_kv_cache"]);
    json.ignore(&["validate_runner_input"]);
    json.expect_only("scale_attn_by_inverse_layer_idx", false)?;
    let mut config = gpt2::unscaled(json, &FIELDS)?;
    if json.get_or("multi_query", true)? {
        config.n_key_value_heads = 1;
    }
    json.expect_only("num_key_value_heads", config.n_key_value_heads)?;
    Ok(config)
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let multi_query = config.n_key_value_heads == 1 && config.n_heads != 1;
    let qkv = if multi_query { QkvBlock } else { QkvPerHead };
    Ok([ENDS, LN2_AND_POSITIONS, &fused_attention(qkv, qkv, AsIs), &gpt2_style::mlp(AsIs)].concat())
}
