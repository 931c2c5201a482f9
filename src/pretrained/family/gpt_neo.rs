//! GPT-Neo (Black et al. 2021): GPT-2 whose every second layer looks back a window only, and whose scores are not scaled.

use serde_json::Value;

use super::{gpt2, ConfigJson, Family};
use crate::config::AttnType;
use crate::pretrained::parts::{at, Entry, Part::*, View::*};
use crate::{Config, Error, Result};

pub(super) const FAMILY: Family = Family {
    architectures: &["GPTNeoForCausalLM", "gpt_neo"],
    prefix: "transformer.",
    config,
    names,
    ignored: &["attn.attention.bias", "attn.attention.masked_bias", "lm_head.weight"],
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["attention_dropout", "embed_dropout", "resid_dropout", "classifier_dropout"]);
    gpt2::ignore_summary(json);
    let d_model: usize = json.or("hidden_size", 2048)?;
    let n_heads: usize = json.any(&["num_attention_heads", "num_heads"])?.unwrap_or(16);
    let n_layers: usize = json.any(&["num_hidden_layers", "num_layers"])?.unwrap_or(24);
    let d_vocab = json.or("vocab_size", 50257)?;
    Ok(Config {
        n_layers,
        d_model,
        n_heads,
        d_head: d_model / n_heads.max(1),
        n_key_value_heads: n_heads,
        d_mlp: json.get("intermediate_size")?.unwrap_or(4 * d_model),
        d_vocab,
        d_vocab_out: d_vocab,
        n_ctx: json.or("max_position_embeddings", 2048)?,
        act_fn: json.activation(&["activation_function"], "gelu_new")?,
        eps: json.or("layer_norm_epsilon", 1e-5)?,
        attn_scale: 1.0,
        attn_types: attn_types(json, n_layers)?,
        window_size: Some(json.or("window_size", 256)?),
        tie_word_embeddings: json.or("tie_word_embeddings", true)?,
        ..Config::default()
    })
}

/// `[[["global", "local"], 12]]`: the list of types, so many times over.
fn attn_types(json: &ConfigJson, n_layers: usize) -> Result<Vec<AttnType>> {
    json.ignore(&["attention_layers"]); // the same list, written out
    let default = serde_json::json!([[["global", "local"], 12]]);
    let value: Value = json.or("attention_types", default)?;
    let refuse = || Error::field("attention_types", &value, "expected [[[\"global\" or \"local\", …], times], …]");
    let groups: Vec<(Vec<String>, usize)> = serde_json::from_value(value.clone()).map_err(|_| refuse())?;
    let mut types = Vec::new();
    for (names, times) in groups {
        let kinds = names.iter().map(|name| match name.as_str() {
            "global" => Ok(AttnType::Global),
            "local" => Ok(AttnType::Local),
            _ => Err(refuse()),
        });
        let kinds = kinds.collect::<Result<Vec<_>>>()?;
        types.extend(kinds.iter().copied().cycle().take((kinds.len() * times).min(n_layers + 1)));
    }
    if types.len() != n_layers {
        let why = format!("it must cover num_layers, {n_layers}");
        return Err(Error::field("attention_types", &value, &why));
    }
    Ok(types)
}

fn names(config: &Config, _: &ConfigJson) -> Result<Vec<Entry>> {
    Ok(vec![
        at(WE, "transformer.wte.weight", AsIs),
        at(WPos, "transformer.wpe.weight", AsIs),
        at(Ln1W, "transformer.h.{l}.ln_1.weight", AsIs),
        at(Ln1B, "transformer.h.{l}.ln_1.bias", AsIs),
        at(Q, "transformer.h.{l}.attn.attention.q_proj.weight", AsIs),
        at(K, "transformer.h.{l}.attn.attention.k_proj.weight", AsIs),
        at(V, "transformer.h.{l}.attn.attention.v_proj.weight", AsIs),
        at(O, "transformer.h.{l}.attn.attention.out_proj.weight", AsIs),
        at(OB, "transformer.h.{l}.attn.attention.out_proj.bias", AsIs),
        at(Ln2W, "transformer.h.{l}.ln_2.weight", AsIs),
        at(Ln2B, "transformer.h.{l}.ln_2.bias", AsIs),
        at(In, "transformer.h.{l}.mlp.c_fc.weight", AsIs),
        at(InB, "transformer.h.{l}.mlp.c_fc.bias", AsIs),
        at(Out, "transformer.h.{l}.mlp.c_proj.weight", AsIs),
        at(OutB, "transformer.h.{l}.mlp.c_proj.bias", AsIs),
        at(LnFinalW, "transformer.ln_f.weight", AsIs),
        at(LnFinalB, "transformer.ln_f.bias", AsIs),
        at(U, if config.tie_word_embeddings { "transformer.wte.weight" } else { "lm_head.weight" }, AsIs),
    ])
}
