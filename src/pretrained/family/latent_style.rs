//! What families with multi-head latent attention share.

use super::llama_style::{self, entries_if, Defaults};
use super::ConfigJson;
use crate::config::{LatentAttention, Positions, RopeScaling};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

/// transformers' defaults for the widths of latent attention.
#[derive(Clone, Copy, Debug)]
pub(super) struct Widths {
    pub(super) query_rank: Option<usize>,
    pub(super) key_value_rank: usize,
    /// Of a head's queries and keys, the dimensions that do not rotate and those that do.
    pub(super) unrotated: usize,
    pub(super) rotated: usize,
    /// `None`: `hidden_size / num_attention_heads`.
    pub(super) value: Option<usize>,
}

/// DeepSeek 2's and 3's.
pub(super) const DEEPSEEK: Widths =
    Widths { query_rank: Some(1536), key_value_rank: 512, unrotated: 128, rotated: 64, value: Some(128) };

/// Reads the fields of Llama's relatives and of latent attention. `adjacent` says how the family pairs what rotates.
pub(super) fn config(json: &ConfigJson, default: &Defaults, widths: Widths, adjacent: bool) -> Result<Config> {
    json.ignore(&["pretraining_tp", "head_dim", "qk_head_dim"]); // both widths follow from the others
    let mut config = llama_style::config(json, &Defaults { rope: None, ..*default })?;
    let rotated = json.get_or("qk_rope_head_dim", widths.rotated)?;
    let d_model_per_head = config.d_model.checked_div(config.n_heads).unwrap_or(0);
    config.attention.d_value = Some(json.get("v_head_dim")?.or(widths.value).unwrap_or(d_model_per_head));
    config.attention.latent = Some(LatentAttention {
        query_rank: json.get_unless_null("q_lora_rank", widths.query_rank)?,
        key_value_rank: json.get_or("kv_lora_rank", widths.key_value_rank)?,
        eps: 1e-6, // whatever `rms_norm_eps` says
    });
    config.d_head = rotated.saturating_add(json.get_or("qk_nope_head_dim", widths.unrotated)?);
    let rope = default.rope.unwrap_or(Rope::DEFAULT);
    // Some families have a share of the head in their rotary fields, others the rotated part as a head of its own.
    let mut rotary = match rope.partial {
        Some(_) => {
            let share = Some(rotated as f64 / config.d_head.max(1) as f64);
            json.rotary(config.d_head, config.n_ctx, Rope { partial: share, ..rope })?
        }
        None => json.rotary(rotated, config.n_ctx, rope)?,
    };
    rotary.adjacent_pairs = adjacent;
    // YaRN's factor of the scores, which llama's relatives do not have.
    if let Some(factor) = json.scores_factor()? {
        config.attention.scale = Some((config.d_head as f64).sqrt() / factor);
    }
    if let RopeScaling::Dynamic { factor, .. } = rotary.scaling {
        config.n_ctx = (config.n_ctx as f64 * factor) as usize;
    }
    config.positions = Positions::rotary(rotary);
    Ok(config)
}

/// The matrices and gains of latent attention, and its biases if `attention_bias` is true.
pub(super) fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let biased = json.get_or("attention_bias", false)?;
    Ok(match config.attention.latent.and_then(|latent| latent.query_rank) {
        Some(_) => [QUERY_LATENT, entries_if(biased, QUERY_LATENT_BIAS), LATENT, entries_if(biased, BIASES)].concat(),
        None => [QUERIES, LATENT, entries_if(biased, BIASES)].concat(),
    })
}

const QUERIES: &[Entry] = &[entry(Q, "model.layers.{l}.self_attn.q_proj.weight", AsIs)];

const QUERY_LATENT: &[Entry] = &[
    entry(QDown, "model.layers.{l}.self_attn.q_a_proj.weight", AsIs),
    entry(QLatentW, "model.layers.{l}.self_attn.q_a_layernorm.weight", AsIs),
    entry(QUp, "model.layers.{l}.self_attn.q_b_proj.weight", AsIs),
];

const QUERY_LATENT_BIAS: &[Entry] = &[entry(QDownB, "model.layers.{l}.self_attn.q_a_proj.bias", AsIs)];

const LATENT: &[Entry] = &[
    entry(KvDown, "model.layers.{l}.self_attn.kv_a_proj_with_mqa.weight", AsIs),
    entry(KvLatentW, "model.layers.{l}.self_attn.kv_a_layernorm.weight", AsIs),
    entry(KvUp, "model.layers.{l}.self_attn.kv_b_proj.weight", AsIs),
    entry(O, "model.layers.{l}.self_attn.o_proj.weight", AsIs),
];

const BIASES: &[Entry] = &[
    entry(KvDownB, "model.layers.{l}.self_attn.kv_a_proj_with_mqa.bias", AsIs),
    entry(OB, "model.layers.{l}.self_attn.o_proj.bias", AsIs),
];
