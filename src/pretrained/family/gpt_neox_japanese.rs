//! GPT-NeoX Japanese (ABEJA 2022): NeoX with attention and MLP one after the other, and no bias but one of the last attention.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::Normalization;
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    prefix: "gpt_neox_japanese.",
    ignored: &["attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"],
    ..llama_style::family("gpt_neox_japanese", &["GPTNeoXJapaneseForCausalLM"], config, names)
};

const ROPE: Rope =
    Rope { theta_field: "rotary_emb_base", partial: Some(1.0), partial_field: "rotary_pct", ..Rope::DEFAULT };

const DEFAULTS: Defaults = Defaults {
    hidden_size: 2560,
    hidden_act: "gelu",
    norm_eps: 1e-5,
    tie_word_embeddings: true,
    rope: Some(ROPE),
    ..LLAMA
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["hidden_dropout"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    // Fields that transformers knows elsewhere, and not here.
    json.expect_only("head_dim", config.d_model / config.n_heads.max(1))?;
    json.expect_only("num_key_value_heads", config.n_heads)?;
    let times: usize = json.get_or("intermediate_multiple_size", 4)?;
    json.expect_only("intermediate_size", config.d_model.saturating_mul(times))?;
    config.mlp.iter_mut().for_each(|mlp| mlp.d_mlp = config.d_model.saturating_mul(times));
    without_gates(&mut config);
    config.norms.kind = Normalization::LN;
    Ok(config)
}

const QKV: &str = "gpt_neox_japanese.layers.{l}.attention.query_key_value.weight";

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    let last = config.n_layers.saturating_sub(1)..config.n_layers;
    Ok(vec![
        entry(WE, "gpt_neox_japanese.embed_in.weight", AsIs),
        entry(Ln1W, "gpt_neox_japanese.layers.{l}.input_layernorm.weight", AsIs),
        entry(Ln1B, "gpt_neox_japanese.layers.{l}.input_layernorm.bias", AsIs),
        entry(Q, QKV, QkvPerHead(0)),
        entry(K, QKV, QkvPerHead(1)),
        entry(V, QKV, QkvPerHead(2)),
        entry(O, "gpt_neox_japanese.layers.{l}.attention.dense.weight", AsIs),
        entry(OB, "gpt_neox_japanese.layers.{l}.attention.dense_bias", AsIs).in_blocks(last),
        entry(Ln2W, "gpt_neox_japanese.layers.{l}.post_attention_layernorm.weight", AsIs),
        entry(Ln2B, "gpt_neox_japanese.layers.{l}.post_attention_layernorm.bias", AsIs),
        entry(In, "gpt_neox_japanese.layers.{l}.mlp.dense_h_to_4h.weight", AsIs),
        entry(Out, "gpt_neox_japanese.layers.{l}.mlp.dense_4h_to_h.weight", AsIs),
        entry(LnFinalW, "gpt_neox_japanese.final_layer_norm.weight", AsIs),
        entry(LnFinalB, "gpt_neox_japanese.final_layer_norm.bias", AsIs),
        entry(U, "embed_out.weight", AsIs),
    ])
}
