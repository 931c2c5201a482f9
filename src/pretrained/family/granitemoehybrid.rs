//! Granite 4 (IBM 2025), where all layers are attention: its other models have state-space layers, which are refused.

use super::{granitemoe, llama_style, ConfigJson, Family};
use crate::config::Positions;
use crate::{Config, Result};

pub(super) const FAMILY: Family =
    llama_style::family("granitemoehybrid", &["GraniteMoeHybridForCausalLM"], config, granitemoe::names);

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_head", "mamba_d_conv", "mamba_expand"]);
    json.ignore(&["mamba_chunk_size", "mamba_conv_bias", "mamba_proj_bias", "time_step_limit"]);
    let mut config = granitemoe::with_mixtures(json, json.get_or("shared_intermediate_size", 1024)?)?;
    let types: Option<Vec<String>> = json.get_any(&["layer_types", "layers_block_type"])?;
    let why = "only layers of attention are supported: a state-space layer has no heads, patterns or neurons";
    let Some(types) = types else { return Err(json.refuse("layer_types", "absent, so state-space layers", why)) };
    if let Some(other) = types.iter().find(|name| !["full_attention", "attention"].contains(&name.as_str())) {
        return Err(json.refuse("layer_types", other, why));
    }
    if types.len() != config.n_layers {
        let why = format!("it must have one entry for each of the {} layers", config.n_layers);
        return Err(json.refuse("layer_types", format!("a list of {}", types.len()), &why));
    }
    if json.get::<String>("position_embedding_type")?.as_deref() != Some("rope") {
        config.positions = Positions::None;
    }
    Ok(config)
}
