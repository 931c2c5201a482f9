//! The language model of Cohere's North Micro Vision (2026): Cohere 2 with rotations of halves, one for each kind of layers or none.

use super::llama_style::{self, *};
use super::{cohere, cohere2, ConfigJson, Family};
use crate::config::{Positions, Reach};
use crate::pretrained::parts::Entry;
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    llama_style::family("cohere_compass_text", &["CohereCompassForCausalLM"], config, names);

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["pooling"]); // of embeddings, which a language model has not
    let mut config = cohere::parallel(llama_style::config(json, &Defaults { rope: None, ..cohere2::DEFAULTS })?);
    json.expect_only("head_dim", config.d_model / config.n_heads.max(1))?;
    let window = json.get_unless_null("sliding_window", Some(4096))?;
    config.attention.reach = layer_types(json, config.n_layers, window, |_| false)?;
    let of = |layer_type| json.rotary_of(layer_type, config.d_head, config.n_ctx, Rope::DEFAULT);
    let (global, local) = (of("full_attention")?, of("sliding_attention")?);
    let rotations = config.attention.reach.map(|reach| match reach {
        Reach::Global => global.clone(),
        Reach::Window(_) | Reach::Chunk(_) => local.clone(),
    });
    config.positions = match rotations.values().iter().all(Option::is_none) {
        true => Positions::None,
        false => Positions::Rotary(rotations),
    };
    Ok(config)
}

fn names(_: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    cohere::names_without_qk_norms(json, 1.0)
}
