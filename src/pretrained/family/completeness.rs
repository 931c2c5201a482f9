//! No field of any family's `config.json` is skipped in silence: every field that transformers knows is read, refused, or listed
//! here.

use std::path::Path;

use serde_json::{json, Map, Value};

use super::{find, transformer_lens, ConfigJson, FAMILIES};
use crate::pretrained::config_json::HARMLESS;
use crate::pretrained::multimodal::language_model;
use crate::Result;

/// Fields of some families that change nothing in a forward pass: dropout and other settings of training, heads that a language
/// model does not have, and how transformers computes rather than what.
const CHANGE_NOTHING: &[&str] = &[
    "_sliding_window_pattern", // written beside `layer_types`, which counts
    "activation_dropout",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attention_layers", // written beside `attention_types`, which counts
    "attention_softmax_in_fp32",
    "attn_config.attn_impl",
    "attn_config.attn_pdrop",
    "attn_pdrop",
    "classifier_dropout",
    "cls_token_id",
    "dropout",
    "emb_pdrop",
    "embd_pdrop",
    "embed_dropout",
    "embedding_dropout",
    "embedding_fraction", // of the gradient
    "eod_token_id",
    "hidden_dropout",
    "hidden_dropout_prob",
    "init_device",
    "initializer_cutoff_factor",
    "init_std",
    "lambda_std_dev",
    "layerdrop",
    "mlp_dropout",
    "learned_pos_emb", // with ALiBi there are none
    "output_router_logits",
    "pretraining_tp",
    "reorder_and_upcast_attn",
    "resid_dropout",
    "resid_pdrop",
    "residual_dropout",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "scale_attention_softmax_in_fp32",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
];

/// Fields that transformers has for a family, and does not use in its forward pass.
const UNUSED: &[(&str, &str)] = &[
    ("biogpt", "layer_norm_eps"),
    ("codegen", "n_ctx"),
    ("cohere_compass_text", "pooling"),
    ("ministral3", "rope_parameters.max_position_embeddings"),
    ("ministral3", "rope_parameters.type"), // written beside `rope_type`, which counts
];

/// Fields that count only beside others than their family's defaults, each tested in `tests/suite/gradual.rs` or
/// `tests/suite/transformers_families.rs`.
const COUNT_ELSEWHERE: &[(&str, &str)] = &[
    ("qwen2", "max_window_layers"), // `layer_types` counts, and without a window there is nothing to count
    ("qwen2", "sliding_window"),
    ("qwen2", "use_sliding_window"),
    ("qwen3", "max_window_layers"),
    ("qwen3", "sliding_window"),
    ("qwen3", "use_sliding_window"),
    ("phi3", "original_max_position_embeddings"), // of longrope
    ("cohere_compass_text", "sliding_window"),    // `layer_types` counts, as in the next ones
    ("exaone4", "sliding_window_pattern"),
    ("qwen2_vl_text", "max_window_layers"),
    ("qwen2_vl_text", "sliding_window"),
    ("qwen2_vl_text", "use_sliding_window"),
    ("qwen2_5_vl_text", "max_window_layers"),
    ("qwen2_5_vl_text", "sliding_window"),
    ("qwen2_5_vl_text", "use_sliding_window"),
    ("modernbert-decoder", "local_attention"), // `sliding_window` counts
    ("smollm3", "no_rope_layer_interval"),     // `no_rope_layers` counts
    ("smollm3", "sliding_window"),
    ("smollm3", "use_sliding_window"),
    ("falcon", "num_kv_heads"), // of the new architecture, as the next one
    ("falcon", "num_ln_in_parallel_attn"),
    ("granite_swa", "rope_parameters.rope_theta"), // `layer_rope_theta` counts
];

/// Everything that is made of a `config.json`, and the fields that were not read.
fn read(fields: &Map<String, Value>) -> Result<(String, Vec<String>)> {
    let json = ConfigJson::new(fields.clone());
    let family = find(&json)?;
    let config = (family.config)(&json)?;
    let names = (family.names)(&config, &json)?;
    config.validate()?;
    Ok((format!("{config:?} {names:?}"), json.unread()))
}

/// transformers' own defaults, by `model_type`.
fn defaults() -> Map<String, Value> {
    from_file(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/defaults.json"))
}

fn from_file(path: &Path) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn every_family_is_tested() {
    let tested: Vec<String> = defaults().keys().cloned().collect();
    let mut known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    known.sort();
    assert_eq!(tested, known);
}

#[test]
fn absent_fields_mean_what_transformers_takes() {
    for (family, fields) in defaults() {
        let written = read(fields.as_object().unwrap()).unwrap();
        let absent = read(json!({ "model_type": family }).as_object().unwrap()).unwrap();
        assert_eq!(written, absent, "{family}");
    }
}

#[test]
fn every_field_counts_or_is_known_to_change_nothing() {
    let (mut tried, mut skipped) = (0, Vec::new());
    for (family, fields) in defaults() {
        let fields = fields.as_object().unwrap();
        let (usual, _) = read(fields).unwrap();
        for path in paths(fields, "") {
            let last = path.rsplit('.').next().unwrap();
            let known = HARMLESS.contains(&last)
                || CHANGE_NOTHING.contains(&path.as_str())
                || [UNUSED, COUNT_ELSEWHERE].concat().contains(&(family.as_str(), path.as_str()));
            let mut other = fields.clone();
            change(&mut other, &path);
            let counts = read(&other).map_or(true, |(now, _)| now != usual);
            if !counts && !known {
                skipped.push(format!("{family}: {path}"));
            }
            tried += 1;
        }
    }
    assert_eq!(skipped, Vec::<String>::new(), "these fields change nothing");
    println!("{tried} fields of {} families", FAMILIES.len());
}

#[test]
fn every_field_of_the_fixtures_is_accounted_for() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folders = [fixtures.clone(), fixtures.join("gradual"), fixtures.join("transformers")];
    let folders = folders.map(|folder| std::fs::read_dir(folder).unwrap());
    let mut files = 0;
    for folder in folders.into_iter().flatten().map(|entry| entry.unwrap().path()) {
        for name in ["config.json", "config_v4.json", "config_hub.json"].map(|name| folder.join(name)) {
            if name.is_file() {
                let fields = from_file(&name);
                let fields = language_model(&fields).unwrap().unwrap_or(fields);
                // Families that are refused: `tests/suite/transformers_families.rs` knows them.
                let Ok((_, unread)) = read(&fields) else { continue };
                assert_eq!(unread, Vec::<String>::new(), "{}", name.display());
                files += 1;
            }
        }
        if folder.join("cfg.json").is_file() {
            let json = ConfigJson::new(from_file(&folder.join("cfg.json")));
            transformer_lens::config(&json).unwrap();
            assert_eq!(json.unread(), Vec::<String>::new(), "{}", folder.display());
            files += 1;
        }
    }
    println!("{files} files");
}

/// The full names of all fields, including those of nested objects.
fn paths(fields: &Map<String, Value>, path: &str) -> Vec<String> {
    let of = |(field, value): (&String, &Value)| {
        let name = format!("{path}{field}");
        match value {
            Value::Object(fields) if !HARMLESS.contains(&field.as_str()) => paths(fields, &format!("{name}.")),
            _ => vec![name],
        }
    };
    fields.iter().flat_map(of).collect()
}

/// Replaces a value by another, of the same type where possible.
fn change(fields: &mut Map<String, Value>, path: &str) {
    if let Some((first, rest)) = path.split_once('.') {
        return change(fields[first].as_object_mut().unwrap(), rest);
    }
    let value = &mut fields[path];
    *value = match &value {
        Value::Bool(it) => json!(!it),
        Value::Number(n) if n.as_i64() == Some(0) || n.as_f64() == Some(0.0) => json!(3),
        Value::Number(n) if n.is_i64() => json!(n.as_i64().unwrap() * 2),
        Value::Number(n) => json!(n.as_f64().unwrap() * 2.0),
        Value::String(_) => json!("something else"),
        Value::Null => json!(7),
        Value::Array(_) => json!([]),
        Value::Object(_) => json!({}),
    };
}
