//! GPT-2 (Radford et al. 2019), and as Stanford trained it: scores divided by the layer's number.

use super::gpt2_style::{self, fused_attention, Fields, ENDS, GPT2, LN2_AND_POSITIONS};
use super::{ConfigJson, Family};
use crate::pretrained::parts::{Entry, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = gpt2_style::family("gpt2", &["GPT2LMHeadModel"], config, names);

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = unscaled(json, &GPT2)?;
    config.attention.scale_by_inverse_layer_idx = json.get_or("scale_attn_by_inverse_layer_idx", false)?;
    Ok(config)
}

/// What GPT-2 and GPTBigCode share.
pub(super) fn unscaled(json: &ConfigJson, fields: &Fields) -> Result<Config> {
    gpt2_style::ignore_training(json);
    json.ignore(&["n_ctx", "reorder_and_upcast_attn"]);
    let mut config = gpt2_style::config(json, fields)?;
    config.attention.scale = if json.get_or("scale_attn_weights", true)? { None } else { Some(1.0) };
    Ok(config)
}

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let attention = fused_attention(QkvBlockTransposed, QkvBlock, Transposed);
    Ok([ENDS, LN2_AND_POSITIONS, &attention, &gpt2_style::mlp(Transposed)].concat())
}
