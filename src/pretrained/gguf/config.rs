//! The metadata of a GGUF file as the `config.json` of its family. Every key of the architecture is read or refused.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{json, Map, Value as Json};

use super::architecture::{Architecture, MIXTRAL};
use crate::format::gguf::{Gguf, Value};
use crate::format::quantized::ggml::GgmlType;
use crate::format::{Dtype, Numbers};
use crate::{Error, Result};

/// Keys that a configuration has under one name in all families.
const FIELDS: &[(&str, &str)] = &[
    ("context_length", "max_position_embeddings"),
    ("block_count", "num_hidden_layers"),
    ("embedding_length", "hidden_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.sliding_window_pattern", "sliding_window_pattern"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];

/// Keys that change nothing: what a file was made from, and what other keys or tensors say as well.
const HARMLESS: &[&str] = &["tensor_data_layout", "vocab_size", "rope.scaling.finetuned"];

/// The keys of an architecture, of which each that is asked for is remembered.
struct Keys<'a> {
    gguf: &'a Gguf<'a>,
    bytes: &'a [u8],
    prefix: String,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    fn get(&self, key: &str) -> Option<&'a Value<'a>> {
        let key = format!("{}{key}", self.prefix);
        let found = self.gguf.metadata.get(key.as_str());
        self.read.borrow_mut().insert(key);
        found
    }

    /// The value as JSON; an array, as the entry that all are.
    fn json(&self, key: &str) -> Result<Option<Json>> {
        let of = |value: &Value| match value {
            Value::Unsigned(n) => Some(json!(n)),
            Value::Signed(n) => Some(json!(n)),
            Value::Float(x) => Some(json!(x)),
            Value::Bool(it) => Some(json!(it)),
            Value::Text(text) => Some(json!(text)),
            Value::Array(_) => None,
        };
        let Some(value) = self.get(key) else { return Ok(None) };
        let one = match value.array() {
            None => of(value),
            Some(array) => {
                let first = array.iter().next();
                first.filter(|first| array.iter().all(|entry| entry == *first)).and_then(|first| of(&first))
            }
        };
        one.map(Some).ok_or_else(|| self.refuse(key, "a list", "here it must be the same in all layers"))
    }

    fn count(&self, key: &str) -> Result<Option<u64>> {
        match self.json(key)? {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(count) => Ok(Some(count)),
                None => Err(self.refuse(key, value, "it must be a number of things")),
            },
        }
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        match self.json(key)? {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.refuse(key, value, "it must be a number")),
            },
        }
    }

    fn refuse(&self, key: &str, value: impl ToString, why: &str) -> Error {
        Error::field(&format!("{}{key}", self.prefix), value, why)
    }

    fn has(&self, tensor: &str) -> bool {
        self.gguf.tensors.contains_key(tensor)
    }

    /// The numbers of a small fp32 tensor.
    fn numbers(&self, tensor: &str) -> Option<Vec<f32>> {
        let place = self.gguf.tensors.get(tensor).filter(|place| place.kind == GgmlType::F32)?;
        let bytes = self.bytes.get(place.bytes.clone())?;
        let numbers = Numbers { dtype: Dtype::F32, shape: &[], bytes };
        Some((0..numbers.len()).map(|i| numbers.get(i)).collect())
    }

    /// The first key of the architecture that nothing asked for.
    fn unread(&self) -> Option<(&str, &Value<'a>)> {
        let read = self.read.borrow();
        let own = self.gguf.metadata.iter().filter(|(key, _)| key.starts_with(&self.prefix));
        own.into_iter().find(|(key, _)| !read.contains(**key)).map(|(key, value)| (*key, value))
    }
}

/// The fields of the family's `config.json`.
///
/// # Errors
///
/// [`Error::ConfigField`] of a key that cannot be read, or is not supported.
pub(super) fn fields(
    architecture: &Architecture,
    gguf: &Gguf,
    bytes: &[u8],
    parts: usize,
) -> Result<Map<String, Json>> {
    let keys = Keys { gguf, bytes, prefix: format!("{}.", architecture.name), read: RefCell::default() };
    for key in HARMLESS {
        keys.get(key);
    }
    let count = gguf.metadata.get("split.count").and_then(Value::count).filter(|count| *count > 1);
    if let Some(count) = count.filter(|count| *count != parts as u64) {
        let why = "its parts are found by their names: name each as NAME-00001-of-00003.gguf";
        return Err(Error::field("split.count", count, why));
    }
    let mut fields = Map::from_iter([
        ("model_type".to_string(), json!(architecture.model_type)),
        ("architectures".to_string(), json!([architecture.class])),
        ("tie_word_embeddings".to_string(), json!(!keys.has("output.weight"))),
    ]);
    let mut set = |field: &str, value: Option<Json>| {
        if let Some(value) = value {
            fields.insert(field.into(), value);
        }
    };
    for (key, field) in FIELDS {
        set(field, keys.json(key)?);
    }
    set(architecture.d_mlp, keys.json("feed_forward_length")?);
    set("vocab_size", gguf.tensors.get("token_embd.weight").and_then(|place| place.shape.first()).map(|n| json!(n)));
    let eps = [keys.json("attention.layer_norm_rms_epsilon")?, keys.json("attention.layer_norm_epsilon")?];
    set(architecture.eps, eps.into_iter().flatten().next());
    let heads = keys.count("attention.head_count")?.filter(|heads| *heads > 0);
    let heads = heads.ok_or_else(|| keys.refuse("attention.head_count", "absent", "it is needed here"))?;
    let kv_heads = keys.count("attention.head_count_kv")?;
    match (architecture.kv_heads, kv_heads) {
        (Some(field), kv_heads) => set(field, kv_heads.map(|n| json!(n))),
        (None, Some(kv_heads)) if kv_heads != heads => {
            return Err(keys.refuse("attention.head_count_kv", kv_heads, "here there are as many as heads"));
        }
        (None, _) => {}
    }
    rotation(architecture, &keys, heads, &mut set)?;
    if let Some(Value::Bool(false)) = keys.get("attention.causal") {
        return Err(keys.refuse("attention.causal", false, "only causal attention is supported"));
    }
    let (experts, used) = (keys.count("expert_count")?, keys.count("expert_used_count")?);
    match architecture.model_type == MIXTRAL.model_type {
        true => {
            set("num_local_experts", experts.map(|n| json!(n)));
            set("num_experts_per_tok", used.map(|n| json!(n)));
        }
        false if experts.unwrap_or(0) > 0 => {
            return Err(keys.refuse("expert_count", experts.unwrap_or(0), "experts are not supported here"));
        }
        false => {}
    }
    family(architecture, &keys, heads, kv_heads, &mut set)?;
    match keys.unread() {
        None => Ok(fields),
        Some((key, Value::Array(_))) => Err(Error::field(key, "a list", "this key is not supported")),
        Some((key, value)) => Err(Error::field(key, format!("{value:?}"), "this key is not supported")),
    }
}

/// The width of heads, the part of it that rotates, and the scaling of positions.
fn rotation(
    architecture: &Architecture,
    keys: &Keys,
    heads: u64,
    set: &mut impl FnMut(&str, Option<Json>),
) -> Result<()> {
    let d_model = keys.count("embedding_length")?.unwrap_or(0);
    let (key, value) = (keys.count("attention.key_length")?, keys.count("attention.value_length")?);
    if let (key, Some(value)) = (key.unwrap_or(d_model / heads), value)
        && key != value
    {
        return Err(keys.refuse("attention.value_length", value, &format!("it must be that of the keys, {key}")));
    }
    let rotates = keys.count("rope.dimension_count")?;
    // transformers takes this key for Llama's width of heads, which older files do not have.
    let d_head = key.or(rotates.filter(|_| architecture.pairs)).unwrap_or(d_model / heads);
    // GPT-2's relatives have no such field.
    if architecture.d_mlp == "intermediate_size" {
        set("head_dim", Some(json!(d_head)));
    } else if d_head * heads != d_model {
        return Err(keys.refuse("attention.key_length", d_head, "here it must be the width over the number of heads"));
    }
    match rotates {
        Some(rotates) if architecture.partial && rotates <= d_head && d_head > 0 => {
            // The least number of which a head's width gives so many dimensions, rounded down.
            let mut partial = rotates as f64 / d_head as f64;
            while ((d_head as f64 * partial) as u64) < rotates {
                partial = partial.next_up();
            }
            set("partial_rotary_factor", Some(json!(partial)));
        }
        Some(rotates) if rotates != d_head => {
            return Err(keys.refuse(
                "rope.dimension_count",
                rotates,
                &format!("here it must be {d_head}, a whole head"),
            ));
        }
        _ => {}
    }
    let kind = keys.json("rope.scaling.type")?;
    let factor = keys.float("rope.scaling.factor")?;
    let linear = keys.float("rope.scale_linear")?.filter(|factor| *factor != 1.0);
    let trained = keys.count("rope.scaling.original_context_length")?;
    let attention = keys.float("rope.scaling.attn_factor")?;
    if let (Some(factor), None) = (attention.filter(|factor| *factor != 1.0), keys.numbers("rope_factors_long.weight"))
    {
        return Err(keys.refuse("rope.scaling.attn_factor", factor, "it is supported beside divisors of pairs only"));
    }
    let list = |name: &str| {
        let found = keys.numbers(name)?;
        Some(found.into_iter().map(f64::from).collect::<Vec<_>>())
    };
    let divisors = list("rope_freqs.weight");
    let long = list("rope_factors_long.weight").zip(list("rope_factors_short.weight"));
    let scaling = match (kind.as_ref().and_then(Json::as_str), long, divisors) {
        // Llama 3's scaling, as the divisor of each pair.
        (None | Some("none"), None, Some(divisors)) => {
            Some(json!({ "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors,
                         "factor": 1.0, "attention_factor": 1.0 }))
        }
        (None | Some("none" | "longrope"), Some((long, short)), None) => {
            let mut scaling = json!({ "rope_type": "longrope", "short_factor": short, "long_factor": long });
            if let Some(attention) = attention {
                scaling["attention_factor"] = json!(attention);
            }
            if let Some(trained) = trained {
                scaling["original_max_position_embeddings"] = json!(trained);
            }
            Some(scaling)
        }
        (Some("linear"), None, None) => Some(json!({ "rope_type": "linear", "factor": factor })),
        (Some("yarn"), None, None) => {
            Some(json!({ "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained }))
        }
        (None | Some("none"), None, None) => linear.map(|factor| json!({ "rope_type": "linear", "factor": factor })),
        (other, ..) => {
            let why = "this scaling, or the tensors of divisors beside it, are not supported";
            return Err(keys.refuse("rope.scaling.type", other.unwrap_or("absent"), why));
        }
    };
    set("rope_scaling", scaling);
    Ok(())
}

/// What a family's tensors say of its configuration, or llama.cpp knows without a key.
fn family(
    architecture: &Architecture,
    keys: &Keys,
    heads: u64,
    kv_heads: Option<u64>,
    set: &mut impl FnMut(&str, Option<Json>),
) -> Result<()> {
    match architecture.name {
        "llama" | "qwen3" => {
            set("attention_bias", Some(json!(keys.has("blk.0.attn_q.bias"))));
            if architecture.model_type == "llama" {
                set("mlp_bias", Some(json!(keys.has("blk.0.ffn_up.bias"))));
            }
        }
        "stablelm" => {
            set("use_qkv_bias", Some(json!(keys.has("blk.0.attn_q.bias"))));
            set("qk_layernorm", Some(json!(keys.has("blk.0.attn_q_norm.weight"))));
            let parallel = keys.json("use_parallel_residual")?.unwrap_or(json!(!keys.has("blk.0.ffn_norm.weight")));
            set("use_parallel_residual", Some(parallel));
        }
        "falcon" => {
            let two = keys.has("blk.0.attn_norm_2.weight");
            let kv_heads = kv_heads.unwrap_or(1);
            set("num_kv_heads", Some(json!(kv_heads)));
            set("new_decoder_architecture", Some(json!(two || kv_heads > 1)));
            set("num_ln_in_parallel_attn", Some(json!(if two { 2 } else { 1 })));
            set("multi_query", Some(json!(kv_heads == 1)));
        }
        // The scores of the largest models are scaled by the share of a head, whose width is another.
        "gemma2" | "gemma3" => {
            let (layers, d_model) = (keys.count("block_count")?, keys.count("embedding_length")?.unwrap_or(0));
            if layers == Some(if architecture.name == "gemma2" { 46 } else { 62 }) {
                set("query_pre_attn_scalar", Some(json!(d_model / heads)));
            }
        }
        _ => {}
    }
    Ok(())
}
