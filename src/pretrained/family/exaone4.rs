//! EXAONE 4 (LG AI Research 2025): norms after the sublayers in place of before them, norms of queries and keys, and where most layers
//! have a window, positions in those alone.

use super::llama_style::{self, *};
use super::{ConfigJson, Family};
use crate::config::{NormPosition, Normalization, QkNorm, Reach};
use crate::pretrained::parts::Entry;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("exaone4", &["Exaone4ForCausalLM"], config, names);

pub(super) const DEFAULTS: Defaults =
    Defaults { intermediate_size: 16384, num_key_value_heads: Some(32), vocab_size: 102_400, norm_eps: 1e-5, ..LLAMA };

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = llama_style::config(json, &DEFAULTS)?;
    config.norms.position = NormPosition::After;
    config.attention.qk_norm = Some(QkNorm::PerHead(Normalization::RMS));
    window_and_pattern(json, &mut config)?;
    Ok(config)
}

/// A window on most layers, where alone positions enter then.
pub(super) fn window_and_pattern(json: &ConfigJson, config: &mut Config) -> Result<()> {
    let window: Option<usize> = json.get_unless_null("sliding_window", Some(4096))?;
    // Files have patterns such as "LLLG" beside the layers' types, which count.
    let pattern = match json.has_any(&["layer_types"]) {
        true => json.get::<serde_json::Value>("sliding_window_pattern").map(|_| 1)?,
        false => json.get_or("sliding_window_pattern", 4usize)?,
    };
    let local = |layer: usize| window.is_some() && !(layer + 1).is_multiple_of(pattern.max(1));
    config.attention.reach = layer_types(json, config.n_layers, window, local)?;
    if window.is_some() {
        let reach = config.attention.reach.clone();
        rotate_only(config, |layer| reach.get(layer) != Some(&Reach::Global));
    }
    Ok(())
}

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, ATTENTION, QK_NORMS, NORMS_AFTER, MLP].concat())
}
