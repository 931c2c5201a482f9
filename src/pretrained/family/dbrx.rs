//! DBRX (Databricks 2024): layer norms without biases, clamped queries, keys and values, and experts in one tensor.

use super::{ConfigJson, Family};
use crate::config::{
    AttentionConfig, Experts, MlpConfig, NormConfig, Normalization, Positions, RopeScaling, Rotary, Routing, WeightNorm,
};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    model_type: "dbrx",
    architectures: &["DbrxForCausalLM"],
    prefix: "",
    config,
    names,
    ignored: &["rotary_emb.inv_freq"],
    left_out: super::nothing,
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["emb_pdrop", "resid_pdrop", "output_router_logits", "num_key_value_heads"]); // `kv_n_heads` counts
    json.expect_only("tie_word_embeddings", false)?;
    let d_model = json.get_any(&["d_model", "hidden_size"])?.unwrap_or(2048);
    let n_layers = json.get_any(&["n_layers", "num_hidden_layers"])?.unwrap_or(24);
    let n_heads = json.get_any(&["n_heads", "num_attention_heads"])?.unwrap_or(16);
    let n_ctx = json.get_any(&["max_seq_len", "max_position_embeddings"])?.unwrap_or(2048);
    let new = Config::new(n_layers, d_model, n_heads, json.get_or("vocab_size", 32000)?, n_ctx);
    let attention = json.object("attn_config")?.unwrap_or_default();
    attention.ignore(&["attn_pdrop", "is_encoder_decoder"]);
    // The hub's files have the base there. transformers 5.23 reads another field only, and 10000 where that is absent.
    let theta = attention.get_or("rope_theta", 10000.0)?;
    let rotary = json.rotary(new.d_head, n_ctx, Rope { theta, ..Rope::DEFAULT })?;
    let experts = json.object("ffn_config")?.unwrap_or_default();
    experts.ignore(&["is_encoder_decoder", "moe_jitter_eps", "moe_loss_weight", "hidden_size"]); // the width is `d_model`
    let activation = experts.object("ffn_act_fn")?.unwrap_or_default().activation(&["name"], "silu")?;
    let p = experts.get_unless_null("moe_normalize_expert_weights", Some(1.0))?;
    let routing = Routing { normalize: p.map(|p| WeightNorm { p, min: 0.0 }), ..Routing::softmax() };
    let n_experts = experts.get_or("moe_num_experts", 4)?;
    let mixture = Experts::new(n_experts, experts.get_or("moe_top_k", 1)?, routing);
    Ok(Config {
        n_key_value_heads: attention.get_or("kv_n_heads", 1)?,
        n_ctx: match &rotary {
            Rotary { scaling: RopeScaling::Dynamic { factor, .. }, .. } => (n_ctx as f64 * factor) as usize,
            _ => n_ctx,
        },
        attention: AttentionConfig { clip_qkv: attention.get("clip_qkv")?, ..AttentionConfig::default() },
        positions: Positions::rotary(rotary),
        mlp: Some(MlpConfig::experts(experts.get_or("ffn_hidden_size", 3584)?, activation, mixture)),
        norms: NormConfig::new(Normalization::LN),
        ..new
    })
}

const NAMES: &[Entry] = &[
    entry(WE, "transformer.wte.weight", AsIs),
    entry(Ln1W, "transformer.blocks.{l}.norm_attn_norm.norm_1.weight", AsIs),
    entry(Q, "transformer.blocks.{l}.norm_attn_norm.attn.Wqkv.weight", QkvBlock(0)),
    entry(K, "transformer.blocks.{l}.norm_attn_norm.attn.Wqkv.weight", QkvBlock(1)),
    entry(V, "transformer.blocks.{l}.norm_attn_norm.attn.Wqkv.weight", QkvBlock(2)),
    entry(O, "transformer.blocks.{l}.norm_attn_norm.attn.out_proj.weight", AsIs),
    entry(Ln2W, "transformer.blocks.{l}.norm_attn_norm.norm_2.weight", AsIs),
    entry(Router, "transformer.blocks.{l}.ffn.router.layer.weight", AsIs),
    entry(Gate, "transformer.blocks.{l}.ffn.experts.mlp.w1", ExpertRows),
    entry(In, "transformer.blocks.{l}.ffn.experts.mlp.v1", ExpertRows),
    entry(Out, "transformer.blocks.{l}.ffn.experts.mlp.w2", ExpertRowsTransposed),
    entry(LnFinalW, "transformer.norm_f.weight", AsIs),
    entry(U, "lm_head.weight", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok(NAMES.to_vec())
}
