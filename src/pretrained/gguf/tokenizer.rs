//! The tokenizer of a GGUF file, as the `tokenizer.json` that it was made from: byte-level BPE with known rules of splitting, and
//! SentencePiece's BPE, whose merges follow from the scores.

use std::collections::HashMap;

use serde_json::{json, Map, Value as Json};

use crate::format::gguf::{Gguf, Value};
use crate::text::tokenizer::Tokenizer;
use crate::Result;

/// ggml's types of tokens.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// Llama 3's rule of splitting, with up to three digits together, and that of Qwen 2, which takes them one by one.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The tokenizer; `None` where the file has none, or one of a kind that is not known here, which is said to the log.
///
/// # Errors
///
/// [`Error::Tokenizer`](crate::Error::Tokenizer) for a vocabulary from which no tokenizer can be made.
pub(super) fn read(gguf: &Gguf) -> Result<Option<Tokenizer>> {
    let key = |name: &str| gguf.metadata.get(format!("tokenizer.ggml.{name}").as_str());
    let texts = |name: &str| -> Option<Vec<&str>> { key(name)?.array()?.iter().map(|value| value.text()).collect() };
    let (Some(tokens), Some(model)) = (texts("tokens"), key("model").and_then(Value::text)) else { return Ok(None) };
    let kinds: Vec<u64> = match key("token_type").and_then(Value::array).filter(|kinds| kinds.len() == tokens.len()) {
        Some(kinds) => kinds.iter().map(|kind| kind.count().unwrap_or(0)).collect(),
        None => Vec::new(),
    };
    let added: Vec<Json> = tokens
        .iter()
        .zip(&kinds)
        .enumerate()
        .filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|(id, (token, kind))| {
            json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": *kind == CONTROL })
        })
        .collect();
    let flag = |name: &str, default: bool| key(name).and_then(Value::bool).unwrap_or(default);
    let pre = key("pre").and_then(Value::text);
    let parts = match (model, pre) {
        ("gpt2", pre) => texts("merges").and_then(|merges| byte_level(&tokens, &merges, pre)),
        ("llama", _) => {
            let scores = key("scores").and_then(Value::array).filter(|scores| scores.len() == tokens.len());
            let scores: Vec<f64> = scores.map_or(Vec::new(), |scores| {
                scores.iter().map(|score| if let Value::Float(score) = score { score } else { 0.0 }).collect()
            });
            Some(sentence_piece(&tokens, &scores, flag("add_space_prefix", true)))
        }
        _ => None,
    };
    let Some(mut json) = parts else {
        tracing::warn!(
            "the file's tokenizer is `{model}` with the rule `{}`, which is not known here: put a tokenizer.json beside it",
            pre.unwrap_or("(none)")
        );
        return Ok(None);
    };
    json.insert("version".into(), json!("1.0"));
    json.insert("added_tokens".into(), added.into());
    let mut config = Map::new();
    for (name, field) in [
        ("bos_token_id", "bos_token"),
        ("eos_token_id", "eos_token"),
        ("padding_token_id", "pad_token"),
        ("unknown_token_id", "unk_token"),
    ] {
        let id = key(name).and_then(Value::count).and_then(|id| usize::try_from(id).ok());
        if let Some(token) = id.and_then(|id| tokens.get(id)) {
            config.insert(field.into(), json!(token));
        }
    }
    if let Some(template) = gguf.metadata.get("tokenizer.chat_template").and_then(Value::text) {
        config.insert("chat_template".into(), json!(template));
    }
    let (json, config) = (Json::Object(json).to_string(), Json::Object(config).to_string());
    Tokenizer::from_bytes(json.as_bytes(), Some(config.as_bytes())).map(Some)
}

/// Ids by token.
fn vocabulary(tokens: &[&str]) -> Json {
    tokens.iter().enumerate().map(|(id, token)| (token.to_string(), json!(id))).collect::<Map<_, _>>().into()
}

fn bpe(tokens: &[&str], merges: Json, unknown: Option<&str>, byte_fallback: bool, ignore_merges: bool) -> Json {
    json!({ "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": byte_fallback, "byte_fallback": byte_fallback,
            "ignore_merges": ignore_merges, "vocab": vocabulary(tokens), "merges": merges })
}

/// GPT-2's kind; `None` where it is not known how a text is split first.
fn byte_level(tokens: &[&str], merges: &[&str], pre: Option<&str>) -> Option<Map<String, Json>> {
    let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let sequence = |first: Json, second: Json| json!({ "type": "Sequence", "pretokenizers": [first, second] });
    let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let splitter = match pre {
        None | Some("gpt-2" | "phi-2" | "olmo") => bytes(true),
        Some("llama-bpe" | "llama3" | "llama-v3") => sequence(split(LLAMA3), bytes(false)),
        Some("qwen2" | "stablelm2") => sequence(split(QWEN2), bytes(false)),
        Some("starcoder" | "smollm" | "refact" | "command-r") => {
            sequence(json!({ "type": "Digits", "individual_digits": true }), bytes(true))
        }
        Some(_) => return None,
    };
    let ignore_merges = matches!(pre, Some("llama-bpe" | "llama3" | "llama-v3"));
    let normalizer = if pre == Some("qwen2") { json!({ "type": "NFC" }) } else { Json::Null };
    Some(Map::from_iter([
        ("normalizer".to_string(), normalizer),
        ("pre_tokenizer".to_string(), splitter),
        ("decoder".to_string(), bytes(true)),
        ("model".to_string(), bpe(tokens, json!(merges), None, false, ignore_merges)),
    ]))
}

/// SentencePiece's kind, with spaces as `▁`.
fn sentence_piece(tokens: &[&str], scores: &[f64], prefix: bool) -> Map<String, Json> {
    let unknown = tokens.iter().find(|token| **token == "<unk>").copied();
    let merges: Vec<Json> = merges(tokens, scores).into_iter().map(|(left, right)| json!([left, right])).collect();
    let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let mut normalizers = vec![spaces];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Map::from_iter([
        ("normalizer".to_string(), json!({ "type": "Sequence", "normalizers": normalizers })),
        ("pre_tokenizer".to_string(), Json::Null),
        ("decoder".to_string(), json!({ "type": "Sequence", "decoders": decoders })),
        ("model".to_string(), bpe(tokens, merges.into(), unknown, true, false)),
    ])
}

/// Every way of joining two tokens to a third, that of the highest score first.
fn merges<'a>(tokens: &[&'a str], scores: &[f64]) -> Vec<(&'a str, &'a str)> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    // What is no token of a few characters is not joined from others: a file could have one of any length.
    const LONGEST: usize = 512;
    let mut merges = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(_, token)| token.len() <= LONGEST) {
        let ways = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let known = ways.filter_map(|(left, right)| Some((*ids.get(left)?, *ids.get(right)?, left, right)));
        let mut known: Vec<_> = known.collect();
        known.sort_unstable_by_key(|(left, right, ..)| (*left, *right));
        let score = scores.get(id).copied().unwrap_or(0.0);
        merges.extend(known.into_iter().map(|(.., left, right)| (score, left, right)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|(a, left_a, right_a), (b, left_b, right_b)| {
        b.total_cmp(a).then_with(|| (length(left_b), length(right_b)).cmp(&(length(left_a), length(right_a))))
    });
    merges.into_iter().map(|(_, left, right)| (left, right)).collect()
}
