//! MPT (MosaicML 2023): ALiBi, and no biases at all, not even of its layer norms.

use super::{ConfigJson, Family};
use crate::config::{Activation, PositionalEmbedding};
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    architectures: &["MptForCausalLM", "mpt", "MPTForCausalLM"],
    prefix: "transformer.",
    config,
    names,
    ignored: &["lm_head.weight"],
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["emb_pdrop", "resid_pdrop", "embedding_fraction", "init_device", "init_config", "verbose"]);
    json.ignore(&["learned_pos_emb"]); // with ALiBi there are none
                                       // Fields of MosaicML's own code, which transformers has and does not use.
    json.only("expansion_ratio", 4)?;
    json.only("no_bias", true)?;
    json.only("norm_type", "low_precision_layernorm".to_string())?;
    if let Some(scale) = json.get::<serde_json::Value>("logit_scale")? {
        return Err(json.refuse("logit_scale", scale, "only null is supported"));
    }
    let d_model: usize = json.any(&["hidden_size", "d_model"])?.unwrap_or(2048);
    let n_heads: usize = json.any(&["num_attention_heads", "n_heads"])?.unwrap_or(16);
    let d_head = d_model / n_heads.max(1);
    let d_vocab = json.or("vocab_size", 50368)?;

    let attn = json.object("attn_config")?.unwrap_or_default();
    attn.common()?;
    attn.ignore(&["attn_pdrop", "attn_impl"]);
    attn.only("attn_type", "multihead_attention".to_string())?;
    attn.only("prefix_lm", false)?;
    attn.only("qk_ln", false)?;
    attn.only("attn_uses_sequence_id", false)?;
    attn.only("alibi", true)?;
    attn.only("alibi_bias_max", 8.0)?;
    Ok(Config {
        n_layers: json.any(&["num_hidden_layers", "n_layers"])?.unwrap_or(24),
        d_model,
        n_heads,
        d_head,
        n_key_value_heads: n_heads,
        d_mlp: 4 * d_model,
        d_vocab,
        d_vocab_out: d_vocab,
        n_ctx: json.or("max_seq_len", 2048)?,
        act_fn: Activation::Gelu,
        eps: json.or("layer_norm_epsilon", 1e-5)?,
        positional_embedding_type: PositionalEmbedding::Alibi,
        attn_scale: attn.get("softmax_scale")?.map_or((d_head as f64).sqrt(), |scale: f64| 1.0 / scale),
        clip_qkv: attn.get("clip_qkv")?.filter(|clip| *clip != 0.0),
        tie_word_embeddings: json.or("tie_word_embeddings", true)?,
        ..Config::default()
    })
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok(vec![
        at(WE, "transformer.wte.weight", AsIs),
        at(Ln1W, "transformer.blocks.{l}.norm_1.weight", AsIs),
        at(Q, "transformer.blocks.{l}.attn.Wqkv.weight", QkvBlock(0)),
        at(K, "transformer.blocks.{l}.attn.Wqkv.weight", QkvBlock(1)),
        at(V, "transformer.blocks.{l}.attn.Wqkv.weight", QkvBlock(2)),
        at(O, "transformer.blocks.{l}.attn.out_proj.weight", AsIs),
        at(Ln2W, "transformer.blocks.{l}.norm_2.weight", AsIs),
        at(In, "transformer.blocks.{l}.ffn.up_proj.weight", AsIs),
        at(Out, "transformer.blocks.{l}.ffn.down_proj.weight", AsIs),
        at(LnFinalW, "transformer.norm_f.weight", AsIs),
        at(U, if config.tie_word_embeddings { "transformer.wte.weight" } else { "lm_head.weight" }, AsIs),
    ])
}
