//! GLM 5 (Z.ai 2026): DeepSeek 3.2 with layers that see the keys which an earlier layer's indexer has chosen.

use serde_json::Value;

use super::deepseek_v32::{names, sparse};
use super::latent_style::Widths;
use super::llama_style::{self, *};
use super::mixture_style::{Mixture, DEEPSEEK_V3};
use super::{ConfigJson, Family};
use crate::config::{Indexer, PerLayer, MAX_LAYERS};
use crate::{Config, Result};

pub(super) const FAMILY: Family = llama_style::family("glm_moe_dsa", &["GlmMoeDsaForCausalLM"], config, names);

const DEFAULTS: Defaults = Defaults {
    hidden_size: 6144,
    intermediate_size: 12288,
    num_hidden_layers: 78,
    num_attention_heads: 64,
    vocab_size: 154_880,
    max_position_embeddings: 202_752,
    norm_eps: 1e-5,
    ..LLAMA
};

const WIDTHS: Widths =
    Widths { query_rank: Some(2048), key_value_rank: 512, unrotated: 192, rotated: 64, value: Some(256) };

const MIXTURE: Mixture = Mixture { groups: [1, 1], ..DEEPSEEK_V3 };

fn config(json: &ConfigJson) -> Result<Config> {
    let n_layers = json.get_or("num_hidden_layers", DEFAULTS.num_hidden_layers)?;
    let shares_choice = shares_choice(json, n_layers)?;
    let indexer = Indexer { n_heads: 32, d_head: 128, keep: 2048, adjacent_pairs: true, shares_choice };
    sparse(json, &DEFAULTS, WIDTHS, &MIXTURE, indexer)
}

/// The layers without an indexer: a list of them, a pattern such as `FSSS`, or a rule.
fn shares_choice(json: &ConfigJson, n_layers: usize) -> Result<PerLayer<bool>> {
    let every = json.get_or("index_topk_freq", 1_usize)?.max(1);
    let offset: usize = json.get_or("index_skip_topk_offset", 2)?;
    let is_shared = |layer: usize| !(layer + 1).saturating_sub(offset).is_multiple_of(every);
    let by_rule =
        || (0..n_layers.min(MAX_LAYERS)).map(|layer| if is_shared(layer) { "shared" } else { "full" }.to_string());
    let letter = |letter| match letter {
        'F' => "full".to_string(),
        'S' => "shared".to_string(),
        other => other.to_string(),
    };
    let pattern = json.get::<Value>("index_topk_pattern")?;
    let (field, types) = match (json.get::<Vec<String>>("indexer_types")?, pattern) {
        (Some(types), _) => ("indexer_types", types),
        (None, Some(Value::String(letters))) => ("index_topk_pattern", letters.chars().map(letter).collect()),
        (None, Some(_)) => ("index_topk_pattern", json.require("index_topk_pattern")?),
        (None, None) => ("index_topk_freq", by_rule().collect()),
    };
    if types.len() != n_layers {
        let why = format!("it must have one entry for each of the {n_layers} layers");
        return Err(json.refuse(field, format!("a list of {}", types.len()), &why));
    }
    let is_shared = |name: String| match name.as_str() {
        "full" => Ok(false),
        "shared" => Ok(true),
        _ => Err(json.refuse(field, name, "only full and shared are known")),
    };
    Ok(PerLayer::from_layers(types.into_iter().map(is_shared).collect::<Result<_>>()?))
}
