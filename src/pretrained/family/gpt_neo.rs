//! GPT-Neo (Black et al. 2021): GPT-2 whose every second layer looks back a window only, and whose scores are not scaled.

use serde_json::Value;

use super::gpt2_style::{self, Fields, ENDS, GPT2, LN2_AND_POSITIONS};
use super::{ConfigJson, Family};
use crate::config::{PerLayer, Reach};
use crate::pretrained::parts::{entry, Entry, Part::*, View::*};
use crate::{Config, Error, Result};

pub(super) const FAMILY: Family = Family {
    ignored: &["attn.attention.bias", "attn.attention.masked_bias"],
    ..gpt2_style::family("gpt_neo", &["GPTNeoForCausalLM"], config, names)
};

const FIELDS: Fields = Fields {
    d_model: (&["hidden_size"], 2048),
    n_layers: (&["num_hidden_layers", "num_layers"], 24),
    n_heads: (&["num_attention_heads", "num_heads"], 16),
    n_ctx: (&["max_position_embeddings"], 2048),
    d_mlp: (&["intermediate_size"], None),
    ..GPT2
};

fn config(json: &ConfigJson) -> Result<Config> {
    gpt2_style::ignore_training(json);
    let mut config = gpt2_style::config(json, &FIELDS)?;
    config.attention.scale = Some(1.0);
    config.attention.reach = reach(json, config.n_layers, json.get_or("window_size", 256)?)?;
    Ok(config)
}

/// `[[["global", "local"], 12]]`: a list of types, and how many times it is repeated.
fn reach(json: &ConfigJson, n_layers: usize, window: usize) -> Result<PerLayer<Reach>> {
    json.ignore(&["attention_layers"]); // the same list, written out
    let default = serde_json::json!([[["global", "local"], 12]]);
    let value: Value = json.get_or("attention_types", default)?;
    let refuse = || Error::field("attention_types", &value, "expected [[[\"global\" or \"local\", …], times], …]");
    let groups: Vec<(Vec<String>, usize)> = serde_json::from_value(value.clone()).map_err(|_| refuse())?;
    let mut layers = Vec::new();
    for (names, times) in groups {
        let kinds = names.iter().map(|name| match name.as_str() {
            "global" => Ok(Reach::Global),
            "local" => Ok(Reach::Window(window)),
            _ => Err(refuse()),
        });
        let kinds = kinds.collect::<Result<Vec<_>>>()?;
        let left = n_layers.saturating_add(1).saturating_sub(layers.len()); // one too many is enough to see that it does not fit
        layers.extend(kinds.iter().copied().cycle().take(kinds.len().saturating_mul(times).min(left)));
    }
    if layers.len() != n_layers {
        let why = format!("it must cover num_layers, {n_layers}");
        return Err(Error::field("attention_types", &value, &why));
    }
    Ok(PerLayer::from_layers(layers))
}

const ATTENTION: &[Entry] = &[
    entry(Q, "transformer.h.{l}.attn.attention.q_proj.weight", AsIs),
    entry(K, "transformer.h.{l}.attn.attention.k_proj.weight", AsIs),
    entry(V, "transformer.h.{l}.attn.attention.v_proj.weight", AsIs),
    entry(O, "transformer.h.{l}.attn.attention.out_proj.weight", AsIs),
    entry(OB, "transformer.h.{l}.attn.attention.out_proj.bias", AsIs),
];

fn names(_: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok([ENDS, LN2_AND_POSITIONS, ATTENTION, &gpt2_style::mlp(AsIs)].concat())
}
