//! MPT (MosaicML 2023): ALiBi, and no biases at all, not even of its layer norms.

use super::gpt2_style::{self, Fields, GPT2};
use super::{ConfigJson, Family};
use crate::config::Positions;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    Family { ignored: &[], ..gpt2_style::family("mpt", &["MptForCausalLM", "MPTForCausalLM"], config, names) };

const FIELDS: Fields = Fields {
    d_model: (&["hidden_size", "d_model"], 2048),
    n_layers: (&["num_hidden_layers", "n_layers"], 24),
    n_heads: (&["num_attention_heads", "n_heads"], 16),
    n_ctx: (&["max_seq_len"], 2048),
    d_vocab: 50368,
    d_mlp: (&[], None),
    activation: (&[], "gelu"),
    ..GPT2
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["emb_pdrop", "resid_pdrop", "embedding_fraction", "init_device", "init_config", "verbose"]);
    json.ignore(&["learned_pos_emb"]); // with ALiBi there are none

    // Fields of MosaicML's own code, which transformers has and does not use.
    json.expect_only("expansion_ratio", 4)?;
    json.expect_only("no_bias", true)?;
    json.expect_only("norm_type", "low_precision_layernorm".to_string())?;
    if let Some(scale) = json.get::<serde_json::Value>("logit_scale")? {
        return Err(json.refuse("logit_scale", scale, "only null is supported"));
    }
    let attn = json.object("attn_config")?.unwrap_or_default();
    attn.check_common_fields()?;
    attn.ignore(&["attn_pdrop", "attn_impl"]);
    attn.expect_only("attn_type", "multihead_attention".to_string())?;
    attn.expect_only("prefix_lm", false)?;
    attn.expect_only("qk_ln", false)?;
    attn.expect_only("attn_uses_sequence_id", false)?;
    attn.expect_only("alibi", true)?;
    attn.expect_only("alibi_bias_max", 8.0)?;
    let mut config = gpt2_style::config(json, &FIELDS)?;
    config.positions = Positions::alibi(8.0);
    config.attention.scale = attn.get("softmax_scale")?.map(|scale: f64| 1.0 / scale);
    config.attention.clip_qkv = attn.get("clip_qkv")?.filter(|clip| *clip != 0.0);
    Ok(config)
}

const NAMES: &[Entry] = &[
    entry(WE, "transformer.wte.weight", AsIs),
    entry(Ln1W, "transformer.blocks.{l}.norm_1.weight", AsIs),
    entry(Q, "transformer.blocks.{l}.attn.Wqkv.weight", QkvBlock(0)),
    entry(K, "transformer.blocks.{l}.attn.Wqkv.weight", QkvBlock(1)),
    entry(V, "transformer.blocks.{l}.attn.Wqkv.weight", QkvBlock(2)),
    entry(O, "transformer.blocks.{l}.attn.out_proj.weight", AsIs),
    entry(Ln2W, "transformer.blocks.{l}.norm_2.weight", AsIs),
    entry(In, "transformer.blocks.{l}.ffn.up_proj.weight", AsIs),
    entry(Out, "transformer.blocks.{l}.ffn.down_proj.weight", AsIs),
    entry(LnFinalW, "transformer.norm_f.weight", AsIs),
    entry(U, "lm_head.weight", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok(NAMES.to_vec())
}
