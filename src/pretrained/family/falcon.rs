//! Falcon (Almazrouei et al. 2023) in its three layouts: 7B (one key and value for all heads), RW (a key and value for each head, ALiBi)
//! and 40B (one for each group, and two norms of a parallel block).

use super::gpt2_style::{self, Fields, GPT2};
use super::llama_style::entries_if;
use super::{ConfigJson, Family};
use crate::config::Positions;
use crate::pretrained::parts::{entry, Entry, Part::*, View, View::*};
use crate::pretrained::rope::Rope;
use crate::{Config, Result};

pub(super) const FAMILY: Family = Family {
    ignored: &["rotary_emb.inv_freq", "attn.bias"],
    ..gpt2_style::family("falcon", &["FalconForCausalLM", "RWForCausalLM"], config, names)
};

const FIELDS: Fields = Fields {
    d_model: (&["n_embed", "hidden_size"], 4544),
    n_layers: (&["num_hidden_layers", "n_layer"], 32),
    n_heads: (&["num_attention_heads", "n_head"], 71),
    n_ctx: (&["max_position_embeddings"], 2048),
    d_vocab: 65024,
    d_mlp: (&["ffn_hidden_size"], None),
    activation: (&["activation"], "gelu"),
    ..GPT2
};

fn config(json: &ConfigJson) -> Result<Config> {
    json.ignore(&["hidden_dropout", "attention_dropout"]);
    let mut config = gpt2_style::config(json, &FIELDS)?;
    let kv_heads = json.get_any(&["num_kv_heads", "n_head_kv"])?.unwrap_or(config.n_heads);
    let new = json.get_or("new_decoder_architecture", false)?;
    let multi_query = json.get_or("multi_query", true)?;
    config.n_key_value_heads = match (new, multi_query) {
        (true, _) => kv_heads,
        (false, true) => 1,
        (false, false) if kv_heads == config.n_heads => kv_heads,
        (false, false) => {
            return Err(json.refuse("num_kv_heads", kv_heads, "only as many as heads are supported here"))
        }
    };
    config.parallel_attn_mlp = json.get_or("parallel_attn", true)?;
    if new && !config.parallel_attn_mlp {
        return Err(json.refuse("parallel_attn", false, "transformers runs the new architecture in parallel only"));
    }
    config.positions = match json.get_or("alibi", false)? {
        true => {
            json.ignore(&["rope_parameters", "rope_scaling", "rope_theta"]);
            Positions::Alibi { bias_max: 8.0, rounded: true }
        }
        false => Positions::rotary(json.rotary(config.d_head, config.n_ctx, Rope::DEFAULT)?),
    };
    Ok(config)
}

const MATRICES: &[Entry] = &[
    entry(WE, "transformer.word_embeddings.weight", AsIs),
    entry(O, "transformer.h.{l}.self_attention.dense.weight", AsIs),
    entry(In, "transformer.h.{l}.mlp.dense_h_to_4h.weight", AsIs),
    entry(Out, "transformer.h.{l}.mlp.dense_4h_to_h.weight", AsIs),
    entry(LnFinalW, "transformer.ln_f.weight", AsIs),
    entry(LnFinalB, "transformer.ln_f.bias", AsIs),
    entry(U, "lm_head.weight", AsIs),
];

const BIASES: &[Entry] = &[
    entry(OB, "transformer.h.{l}.self_attention.dense.bias", AsIs),
    entry(InB, "transformer.h.{l}.mlp.dense_h_to_4h.bias", AsIs),
    entry(OutB, "transformer.h.{l}.mlp.dense_4h_to_h.bias", AsIs),
];

/// Queries, keys and values in one tensor.
fn qkv(parts: [crate::model::part::Part; 3], name: &'static str, view: fn(usize) -> View) -> [Entry; 3] {
    [entry(parts[0], name, view(0)), entry(parts[1], name, view(1)), entry(parts[2], name, view(2))]
}

/// A norm of each block.
fn norm(number: usize, [gain, bias]: [&'static str; 2]) -> [Entry; 2] {
    let (w, b) = if number == 1 { (Ln1W, Ln1B) } else { (Ln2W, Ln2B) };
    [entry(w, gain, AsIs), entry(b, bias, AsIs)]
}

fn names(config: &Config, json: &ConfigJson) -> Result<Vec<Entry>> {
    let new = json.get_or("new_decoder_architecture", false)?;
    let view = if new || config.n_key_value_heads == 1 { QkvPerGroup } else { QkvPerHead };
    let input = ["transformer.h.{l}.input_layernorm.weight", "transformer.h.{l}.input_layernorm.bias"];
    let after =
        ["transformer.h.{l}.post_attention_layernorm.weight", "transformer.h.{l}.post_attention_layernorm.bias"];
    let attn = ["transformer.h.{l}.ln_attn.weight", "transformer.h.{l}.ln_attn.bias"];
    let mlp = ["transformer.h.{l}.ln_mlp.weight", "transformer.h.{l}.ln_mlp.bias"];
    let two = json.get("num_ln_in_parallel_attn")?.unwrap_or(if new { 2 } else { 1 }) == 2;
    let norms = match config.parallel_attn_mlp {
        false => [norm(1, input), norm(2, after)],
        true if two && new => [norm(1, attn), norm(2, mlp)],
        true if two => {
            return Err(json.refuse("num_ln_in_parallel_attn", 2, "only the new architecture has two norms"))
        }
        true => [norm(1, input), norm(2, input)],
    };
    let has_biases = json.get_or("bias", false)?;
    let weights = qkv([Q, K, V], "transformer.h.{l}.self_attention.query_key_value.weight", view);
    let biases = qkv([QB, KB, VB], "transformer.h.{l}.self_attention.query_key_value.bias", view);
    let biases = if has_biases { &biases[..] } else { &[] };
    Ok([MATRICES, &weights, biases, entries_if(has_biases, BIASES), &norms.concat()].concat())
}
