//! What differs from layer to layer in Llama 4: which layers rotate, which have chunks, and which have one MLP.

use super::ConfigJson;
use crate::config::{PerLayer, Reach};
use crate::Result;

/// Which layers rotate.
pub(super) fn rotating(json: &ConfigJson, n_layers: usize) -> Result<Vec<bool>> {
    let interval: usize = json.get_or("no_rope_layer_interval", 4)?;
    // Despite the field's name, 1 means that the layer rotates.
    Ok(match json.get::<Vec<i64>>("no_rope_layers")?.filter(|layers| !layers.is_empty()) {
        Some(layers) if layers.len() >= n_layers => layers.iter().map(|rotates| *rotates != 0).collect(),
        Some(layers) => {
            let why = format!("it must have one entry for each of the {n_layers} layers");
            return Err(json.refuse("no_rope_layers", format!("a list of {}", layers.len()), &why));
        }
        None => (0..n_layers).map(|layer| (layer + 1) % interval.max(1) != 0).collect(),
    })
}

/// The neurons of the layers that have one MLP.
pub(super) fn dense(json: &ConfigJson, n_layers: usize) -> Result<PerLayer<Option<usize>>> {
    let step: usize = json.get_or("interleave_moe_layer_step", 1)?;
    let sparse: Option<Vec<usize>> = json.get("moe_layers")?;
    let is_sparse = |layer: usize| match &sparse {
        Some(layers) => layers.contains(&layer),
        None => step > 0 && (layer + 1).is_multiple_of(step),
    };
    let width: usize = json.get_or("intermediate_size_mlp", 16384)?;
    Ok(PerLayer::from_layers((0..n_layers).map(|layer| (!is_sparse(layer)).then_some(width)).collect()))
}

/// Chunks on the layers that `layer_types` names, or else on those that rotate.
pub(super) fn reach(json: &ConfigJson, n_layers: usize, rotates: &[bool]) -> Result<PerLayer<Reach>> {
    let chunk: Option<usize> = json.get_unless_null("attention_chunk_size", Some(8192))?;
    let reach = |is_chunked: bool| match (is_chunked, chunk) {
        (true, Some(chunk)) => Ok(Reach::Chunk(chunk)),
        (true, None) => Err(json.refuse("attention_chunk_size", "null", "`layer_types` has layers with chunks")),
        (false, _) => Ok(Reach::Global),
    };
    let chunked: Vec<bool> = match json.get::<Vec<String>>("layer_types")? {
        None => rotates[..n_layers].to_vec(),
        Some(names) if names.len() != n_layers => {
            let why = format!("it must have one entry for each of the {n_layers} layers");
            return Err(json.refuse("layer_types", format!("a list of {}", names.len()), &why));
        }
        Some(names) => match names.iter().find(|it| !["full_attention", "chunked_attention"].contains(&it.as_str())) {
            Some(other) => return Err(json.refuse("layer_types", other, "only full and chunked attention are known")),
            None => names.iter().map(|name| name == "chunked_attention").collect(),
        },
    };
    Ok(PerLayer::from_layers(chunked.into_iter().map(reach).collect::<Result<_>>()?))
}
