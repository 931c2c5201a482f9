//! Hunyuan (Tencent 2025), dense: Llama with norms of queries and keys after their rotation, whose base may be stretched.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{Normalization, Positions, QkNorm, Rotary};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    llama_style::family("hunyuan_v1_dense", &["HunYuanDenseV1ForCausalLM"], config, names);

/// transformers' defaults.
const DEFAULTS: Defaults = Defaults { vocab_size: 290_943, norm_eps: 1e-5, rope: None, ..LLAMA };

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["pretraining_tp", "eod_token_id"]);
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    config.attention.qk_norm_after_rotation = true;
    config.positions = Positions::rotary(stretched_rotary(json, config.d_head, config.n_ctx)?);
    Ok(config)
}

/// A rotation that is called dynamic and has an `alpha` is none that depends on the length: its base is stretched once.
pub(super) fn stretched_rotary(json: &ConfigJson, d_head: usize, n_ctx: usize) -> Result<Rotary> {
    let parameters = match json.object("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => json.object("rope_parameters")?,
    };
    let Some(parameters) = parameters else { return json.rotary(d_head, n_ctx, Rope::DEFAULT) };
    let rope_type: Option<String> = parameters.get_any(&["rope_type", "type"])?;
    let alpha: Option<f64> = parameters.get("alpha")?;
    match (rope_type.as_deref(), alpha) {
        (Some("dynamic"), Some(alpha)) if alpha != 0.0 => {
            // Beside it, files have fields of other scalings, which do not count.
            parameters.ignore(&["beta_fast", "beta_slow", "factor", "mscale", "mscale_all_dim"]);
            let theta: f64 = json.get_or("rope_theta", 10000.0)?;
            let theta: f64 = parameters.get_or("rope_theta", theta)?;
            let dim = d_head as f64;
            Ok(Rotary::new(d_head, theta * alpha.powf(dim / (dim - 2.0))))
        }
        _ => json.rotary(d_head, n_ctx, Rope::DEFAULT),
    }
}

/// The gains of the queries' and keys' norms.
pub(super) const QK_NORMS: &[Entry] = &[
    entry(QNormW, "model.layers.{l}.self_attn.query_layernorm.weight", AsIs),
    entry(KNormW, "model.layers.{l}.self_attn.key_layernorm.weight", AsIs),
];

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, attention_biases(json, false)?, QK_NORMS, NORMS, MLP].concat())
}
