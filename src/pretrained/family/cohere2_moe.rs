//! Cohere 2 with mixtures (Cohere 2026): shared experts that are added to the others or averaged with them.

use super::llama_style::{self, *};
use super::mixture_style::{self, EXPERTS, SHARED_EXPERTS};
use super::{cohere, cohere2, ConfigJson, Family};
use crate::config::{Experts, Normalization, Reach, Routing};
use crate::pretrained::parts::{Entry, Part, View};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("cohere2_moe", &["Cohere2MoeForCausalLM"], config, names);

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["output_router_logits"]);
    let default = Defaults { head_dim: Some(128), ..cohere2::DEFAULTS };
    let mut config = cohere::parallel(llama_style::config(json, &default)?);
    config.norms.eps = json.get_or("layer_norm_eps", 1e-5)?;
    if let Some(eps) = json.get("rms_norm_eps")? {
        (config.norms.kind, config.norms.eps) = (Normalization::RMS, eps);
    }
    // The first layers may be dense, with a pattern of their own.
    let first: usize = json.get_or("first_k_dense_replace", 0)?;
    let of_first: usize = json.get_or("prefix_dense_sliding_window_pattern", 1)?;
    let of_rest: usize = json.get_or("sliding_window_pattern", 4)?;
    let local = |layer: usize| match layer.checked_sub(first) {
        None => !(layer + 1).is_multiple_of(of_first.max(1)),
        Some(layer) => (layer + 1) % of_rest.max(1) != 0,
    };
    let window = json.get_unless_null("sliding_window", Some(4096))?;
    config.attention.reach = layer_types(json, config.n_layers, window, local)?;
    let width = config.d_mlp();
    if let (Some(mlp), Some(dense)) = (&mut config.mlp, json.get("prefix_dense_intermediate_size")?) {
        mlp.d_mlp = dense;
    }
    let dense = mixture_style::mlp_layer_types(json, &config, |layer| layer < first)?;
    rotate_adjacent_pairs(&mut config);
    let (reach, is_dense) = (config.attention.reach.clone(), dense.clone());
    rotate_only(&mut config, |layer| {
        let forced = of_first == 1 && is_dense.get(layer).copied().flatten().is_some();
        forced || reach.get(layer) != Some(&Reach::Global)
    });
    let n_shared = json.get_or("num_shared_experts", 0)?;
    let routing = match json.get_or("expert_selection_fn", "softmax".to_string())?.as_str() {
        "softmax" => {
            json.ignore(&["norm_topk_prob"]); // they sum to one
            Routing::softmax_of_chosen()
        }
        "sigmoid" => Routing::sigmoid().normalized_if(json.get_or("norm_topk_prob", true)?),
        other => return Err(json.refuse("expert_selection_fn", other, "only softmax and sigmoid are known")),
    };
    let routing = Routing { scale: shared_factor(json, n_shared)?, ..routing };
    let experts = Experts {
        shared: mixture_style::shared(n_shared, width),
        dense,
        ..Experts::new(json.get_or("num_experts", 8)?, json.get_or("num_experts_per_tok", 2)?, routing)
    };
    mixture_style::set_experts(&mut config, width, experts);
    Ok(config)
}

/// What the chosen and the shared experts are multiplied by.
fn shared_factor(json: &ConfigJson, n_shared: usize) -> Result<f64> {
    let strategy: String = json.get_or("shared_expert_combination_strategy", "average".into())?;
    match strategy.as_str() {
        "average" if n_shared > 0 => Ok(0.5),
        "average" | "sum" => Ok(1.0),
        other => Err(json.refuse("shared_expert_combination_strategy", other, "only average and sum are known")),
    }
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let shared = entries_if(config.experts().is_some_and(|experts| experts.shared.is_some()), SHARED_EXPERTS);
    let mut table = [&cohere::names_without_qk_norms(json, 0.0625)?, EXPERTS, shared].concat();
    let factor = config.experts().map_or(1.0, |experts| experts.routing.scale);
    for entry in table.iter_mut().filter(|entry| entry.part == Part::SharedOut && factor != 1.0) {
        entry.view = View::Times(factor);
    }
    Ok(table)
}
