//! Gemma 3 (Kamath et al. 2025), text: Gemma 2 with norms of queries and keys in place of the soft caps, five local layers
//! to a global one, and another rotation for each kind.

use super::gemma2::{self, like_gemma2, NORMS};
use super::llama_style::{self, attention_biases, Defaults, ATTENTION, MLP};
use super::{gemma, ConfigJson, Family};
use crate::config::{Normalization, QkNorm};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("gemma3_text", &["Gemma3ForCausalLM"], config, names);

const DEFAULTS: Defaults =
    Defaults { vocab_size: 262_208, max_position_embeddings: 131_072, rope: None, ..gemma2::DEFAULTS };

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["_sliding_window_pattern"]); // transformers 5 writes it, and reads `layer_types`
    let pattern: usize = json.get_or("sliding_window_pattern", 6)?;
    let mut config = like_gemma2(json, &DEFAULTS, |layer| (layer + 1) % pattern.max(1) != 0)?;
    let global = Rope { theta: 1e6, ..Rope::DEFAULT };
    let local = Rope { theta_field: "rope_local_base_freq", ..Rope::DEFAULT };
    config.positions =
        json.rotary_by_layer_type(&config.attention.reach, config.d_head, config.n_ctx, global, local)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    config.output_logits_soft_cap = json.get("final_logit_softcapping")?;
    if let Some(cap) = json.get::<f64>("attn_logit_softcapping")? {
        return Err(json.refuse("attn_logit_softcapping", cap, "transformers has the field, and no soft cap here"));
    }
    Ok(config)
}

const QK_NORMS: &[Entry] = &[
    entry(QNormW, "model.layers.{l}.self_attn.q_norm.weight", PlusOne),
    entry(KNormW, "model.layers.{l}.self_attn.k_norm.weight", PlusOne),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([gemma::ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS, MLP].concat())
}
