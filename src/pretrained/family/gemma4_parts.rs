//! What the layers of Gemma 4 have of their own, share, add and choose from.

use super::mixture_style::set_experts;
use super::ConfigJson;
use crate::config::{Activation, Experts, Heads, LayerEmbedding, PerLayer, Reach, Routing, SharedExpert, MAX_LAYERS};
use crate::{Config, Result};

/// The heads of layers whose width, or number of keys, is not the model's.
pub(super) fn heads(json: &ConfigJson, config: &Config) -> Result<PerLayer<Option<Heads>>> {
    let usual = Heads { query: config.n_heads, key_value: config.n_key_value_heads, d_head: None };
    let own = |key_value: Option<usize>, d_head: Option<usize>| -> Option<Heads> {
        let d_head = d_head.filter(|d_head| *d_head != config.d_head);
        let heads = Heads { key_value: key_value.unwrap_or(usual.key_value), d_head, ..usual };
        (heads != usual).then_some(heads)
    };
    let layers = 0..config.n_layers.min(MAX_LAYERS);
    if let Some(each) = json.object("per_layer_config")? {
        let of = |layer: usize| -> Result<Option<Heads>> {
            let Some(fields) = of_layer(&each, layer)? else { return Ok(None) };
            Ok(own(fields.get("num_key_value_heads")?, fields.get("head_dim")?))
        };
        let layers = layers.map(of).collect::<Result<_>>()?;
        json.ignore(&["global_head_dim", "num_global_key_value_heads"]);
        return each.refuse_unread().map(|()| PerLayer::from_layers(layers));
    }
    let d_head = json.get_or("global_head_dim", 512)?;
    let key_value: Option<usize> = json.get("num_global_key_value_heads")?;
    let key_value = key_value.filter(|_| json.get_or("attention_k_eq_v", false).unwrap_or(false));
    let of = |layer| match config.reach(layer) {
        Reach::Global => own(key_value, Some(d_head)),
        _ => None,
    };
    Ok(PerLayer::from_layers(layers.map(of).collect()))
}

/// The fields of a layer, whose number transformers writes as wide as the largest: `05` among thirty.
fn of_layer(each: &ConfigJson, layer: usize) -> Result<Option<ConfigJson>> {
    for width in 1..=5 {
        if let Some(fields) = each.object(&format!("{layer:0width$}"))? {
            return Ok(Some(fields));
        }
    }
    Ok(None)
}

/// The last layers look at keys and values of the last layer of their kind before them.
pub(super) fn shared_keys(json: &ConfigJson, config: &Config) -> Result<PerLayer<Option<usize>>> {
    let shared: usize = json.get_or("num_kv_shared_layers", 0)?;
    let n_layers = config.n_layers.min(MAX_LAYERS);
    let first = n_layers.saturating_sub(shared);
    let of = |layer: usize| -> Result<Option<usize>> {
        if layer < first {
            return Ok(None);
        }
        let source = (0..first).rev().find(|source| config.reach(*source) == config.reach(layer));
        let why = "a layer that shares has no layer of its kind before those that do";
        source.map(Some).ok_or_else(|| json.refuse("num_kv_shared_layers", shared, why))
    };
    Ok(PerLayer::from_layers((0..n_layers).map(of).collect::<Result<_>>()?))
}

/// Per-layer embeddings; none where their width is zero.
pub(super) fn layer_embedding(json: &ConfigJson, activation: Activation) -> Result<Option<LayerEmbedding>> {
    let width = json.get_unless_null("hidden_size_per_layer_input", Some(256))?.unwrap_or(0);
    let d_vocab = json.get_or("vocab_size_per_layer_input", 262_144)?;
    Ok((width > 0).then_some(LayerEmbedding { width, d_vocab, activation }))
}

/// A mixture beside the MLP, which is a shared expert here.
pub(super) fn mixture(json: &ConfigJson, config: &mut Config) -> Result<()> {
    if !json.get_or("enable_moe_block", false)? {
        json.ignore(&["num_experts", "top_k_experts", "moe_intermediate_size"]);
        return Ok(());
    }
    let shared = Some(SharedExpert { d_mlp: config.d_mlp(), gated: false });
    let routing = Routing::softmax().normalized();
    let experts = Experts::new(json.require("num_experts")?, json.require("top_k_experts")?, routing);
    set_experts(config, json.require("moe_intermediate_size")?, Experts { shared, separate_norms: true, ..experts });
    Ok(())
}
