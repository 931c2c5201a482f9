//! OLMo 3 (Olmo Team 2025): OLMo 2 with three local layers to a global one, whose rotation alone is stretched.

use super::llama_style::{self, layer_types, Defaults};
use super::{olmo, olmo2, ConfigJson, Family};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("olmo3", &["Olmo3ForCausalLM"], config, olmo2::names);

const THETA: f64 = 500_000.0;

fn config(json: &ConfigJson) -> Result<Config> {
    let mut config = olmo2::with_norms_after(llama_style::config(json, &Defaults { rope: None, ..olmo::DEFAULTS })?);
    // transformers 4 takes it for all layers, 5 for the global ones only.
    json.expect_only("rope_theta", THETA)?;
    let rope = Rope { theta: THETA, ..Rope::DEFAULT };
    let window = json.get_unless_null("sliding_window", Some(4096))?;
    config.attention.reach = layer_types(json, config.n_layers, window, |layer| (layer + 1) % 4 != 0)?;
    config.positions = json.rotary_by_layer_type(&config.attention.reach, config.d_head, config.n_ctx, rope, rope)?;
    Ok(config)
}
