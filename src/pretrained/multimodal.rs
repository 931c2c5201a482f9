//! The language model of a multimodal checkpoint: its part of the configuration, and its tensors. Other weights are left out.

use serde_json::{Map, Value};

use super::checkpoint::Checkpoint;
use super::config_json::ConfigJson;
use super::family::Family;
use super::parts::{Entry, Part};
use crate::Result;

/// What the language model of a multimodal model is, by transformers' `model_type`, where `text_config` does not say.
const LANGUAGE_MODELS: &[(&str, &str)] = &[
    ("aya_vision", "cohere2"),
    ("cohere2_vision", "cohere2"),
    ("cohere_compass", "cohere_compass_text"),
    ("emu3", "emu3_text_model"),
    ("exaone4_5", "exaone4"),
    ("fast_vlm", "qwen2"),
    ("fuyu", "persimmon"),
    ("gemma3", "gemma3_text"),
    ("gemma4", "gemma4_text"),
    ("gemma4_unified", "gemma4_unified_text"),
    ("got_ocr2", "qwen2"),
    ("hyperclovax_vision_v2", "hyperclovax"),
    ("idefics2", "mistral"),
    ("idefics3", "llama"),
    ("internvl", "qwen2"),
    ("lighton_ocr", "qwen3"),
    ("llava", "llama"),
    ("llava_next", "llama"),
    ("llava_next_video", "llama"),
    ("llava_onevision", "qwen2"),
    ("mistral3", "mistral"),
    ("mllama", "mllama_text_model"),
    ("ovis2", "qwen2"),
    ("perception_lm", "llama"),
    ("qianfan_ocr", "qwen3"),
    ("qwen2_5_vl", "qwen2_5_vl_text"),
    ("qwen2_vl", "qwen2_vl_text"),
    ("qwen3_vl", "qwen3_vl_text"),
    ("shieldgemma2", "gemma3_text"),
    ("smolvlm", "llama"),
    ("video_llama_3", "qwen2"),
    ("video_llava", "llama"),
    ("vipllava", "llama"),
];

/// Multimodal models whose older files have the fields of the language model beside those of the others.
const FLAT: &[&str] = &["qwen2_vl", "qwen2_5_vl"];

/// The `config.json` of the language model within that of a multimodal model; `None` where it is that of a language model.
///
/// # Errors
///
/// [`Error::ConfigField`](crate::Error::ConfigField) of a field of the whole model that is not supported.
pub(crate) fn language_model(fields: &Map<String, Value>) -> Result<Option<Map<String, Value>>> {
    let json = ConfigJson::new(fields.clone());
    let of = |model_type| LANGUAGE_MODELS.iter().find(|(outer, _)| Some(*outer) == model_type).map(|(_, inner)| *inner);
    let model_type = json.model_type();
    let mut inner = match fields.get("text_config") {
        Some(Value::Object(inner)) => inner.clone(),
        None | Some(Value::Null) if model_type.is_some_and(|name| FLAT.contains(&name)) => {
            let mut inner = fields.clone();
            inner.retain(|field, _| !is_of_others(field));
            inner
        }
        _ => return Ok(None),
    };
    json.check_common_fields()?;
    if let Some(model_type) = model_type.filter(|model_type| *model_type == "paligemma") {
        return Err(json.refuse("model_type", model_type, "the positions of a prompt see what follows them there"));
    }
    let inner_type = inner.get("model_type").and_then(Value::as_str).filter(|name| !FLAT.contains(name));
    if let Some(inner_type) = inner_type.map(String::from).or(of(model_type).map(String::from)) {
        inner.insert("model_type".into(), inner_type.into());
    }
    inner.remove("architectures"); // those of a language model that it was made from
                                   // In transformers, what the whole model says of its tied weights counts.
    if let Some(tied) = fields.get("tie_word_embeddings").filter(|tied| !tied.is_null()) {
        inner.insert("tie_word_embeddings".into(), tied.clone());
    }
    Ok(Some(inner))
}

/// Whether a field is not of the language model.
fn is_of_others(field: &str) -> bool {
    field == "architectures" || ["vision_", "image_", "video_"].iter().any(|start| field.starts_with(start))
}

/// The tensors of the language model under the names of its own table, and how many others there are.
///
/// What lies beside the language model's embedding is the language model. All else is left out.
pub(crate) fn tensors(checkpoint: Checkpoint, table: &[Entry], family: &Family) -> Checkpoint {
    let Some(embedding) = table.iter().find(|entry| entry.part == Part::WE).map(|entry| entry.name) else {
        return checkpoint;
    };
    let (root, tail) = embedding.split_once('.').unwrap_or(("", embedding));
    let places = [
        "model.language_model.".to_string(),
        format!("language_model.{root}."),
        "model.text_model.".into(),
        format!("text_model.{root}."),
        "language_model.".into(),
        "text_model.".into(),
        format!("{root}."),
    ];
    let Some(place) = places.iter().find(|place| checkpoint.has(&format!("{place}{tail}"))) else { return checkpoint };
    // Where the language model shares its place with others, by the names of its own modules.
    let module = |rest: &str| rest.split('.').next().map(String::from);
    let modules: Vec<_> = table.iter().filter_map(|entry| module(entry.name.split_once('.')?.1)).collect();
    let shared = *place == format!("{root}.");
    let outside: Vec<&str> =
        table.iter().map(|entry| entry.name).filter(|name| !name.starts_with(&format!("{root}."))).collect();
    let mut left_out = Vec::new();
    let renamed = checkpoint.renamed(|name| {
        if let Some(rest) = name.strip_prefix(place.as_str())
            && (!shared || module(rest).is_some_and(|module| modules.contains(&module)))
        {
            return Some(format!("{root}.{rest}"));
        }
        let ends = ["", "model.", "language_model.", "text_model."];
        let found = outside.iter().find(|known| ends.iter().any(|end| name == format!("{end}{known}")));
        if found.is_none() {
            left_out.push(name.to_string());
        }
        found.map(|known| known.to_string())
    });
    if let Some(first) = left_out.first() {
        tracing::info!(
            "the language model of {} is loaded from `{place}`; {} other tensors are left out, such as `{first}`",
            family.architectures[0],
            left_out.len()
        );
    }
    renamed
}
