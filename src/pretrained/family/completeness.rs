//! No field of any family's `config.json` is skipped in silence: every field that transformers knows is read, refused, or listed
//! here.

use std::path::Path;

use serde_json::{json, Map, Value};

use super::{encoder_decoder, find, transformer_lens, ConfigJson, FAMILIES};
use crate::pretrained::config_json::HARMLESS;
use crate::pretrained::multimodal::language_model;
use crate::Result;

/// Fields of some families that change nothing in a forward pass: dropout and other settings of training, heads that a language
/// model does not have, and how transformers computes rather than what.
const CHANGE_NOTHING: &[&str] = &[
    "aux_loss_coef",
    "dropout_rate",
    "encoder_layerdrop",
    "decoder_layerdrop",
    "classifier_dropout_rate",
    "decoder.attention_dropout", // of T5Gemma's stacks, as the next ones
    "decoder.dropout_rate",
    "decoder.tie_word_embeddings",
    "encoder.attention_dropout",
    "encoder.dropout_rate",
    "encoder.tie_word_embeddings",
    "encoder.final_logit_softcapping", // of logits that an encoder has not
    "initializer_factor",
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
    "classifier_dropout_prob",
    "classifier_pooling", // of classifiers of texts
    "cls_token_id",
    "dropout",
    "emb_pdrop",
    "embd_pdrop",
    "attn_config.is_encoder_decoder",
    "embed_dropout",
    "embedding_dropout",
    "embedding_initializer_range",
    "embedding_fraction", // of the gradient
    "eod_token_id",
    "enable_moe_fp32_combine", // how a sum is rounded
    "ffn_config.hidden_size",  // the width is `d_model`
    "ffn_config.is_encoder_decoder",
    "ffn_config.moe_jitter_eps",
    "ffn_config.moe_loss_weight",
    "hidden_dropout",
    "hidden_dropout_prob",
    "init_device",
    "init_std",
    "initializer_cutoff_factor",
    "input_jitter_noise",
    "lambda_std_dev",
    "layerdrop",
    "mamba_chunk_size", // of state-space layers, which are refused
    "mamba_conv_bias",
    "mamba_d_conv",
    "mamba_d_head",
    "mamba_d_state",
    "mamba_expand",
    "mamba_n_groups",
    "mamba_n_heads",
    "mamba_proj_bias",
    "mlp_dropout",
    "learned_pos_emb", // with ALiBi there are none
    "mtp_layer_types", // of layers that predict further tokens
    "mtp_mlp_layer_types",
    "num_nextn_predict_layers",
    "output_router_logits",
    "pooler_dropout",
    "pretraining_tp",
    "qa_dropout",
    "qk_head_dim", // the sum of two others
    "reorder_and_upcast_attn",
    "resid_dropout",
    "resid_pdrop",
    "residual_dropout",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "scale_attention_softmax_in_fp32",
    "seq_classif_dropout",
    "summary_activation",
    "summary_first_dropout",
    "summary_last_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "time_step_limit",
];

/// Fields that transformers has for a family, and does not use in its forward pass.
const UNUSED: &[(&str, &str)] = &[
    ("fsmt", "langs"),
    ("t5gemma", "vocab_size"),      // that of the decoder counts
    ("mt5", "tie_word_embeddings"), // overwritten
    ("umt5", "tie_word_embeddings"),
    ("biogpt", "layer_norm_eps"),
    ("deepseek_v32", "layer_types"), // all layers are `indexed_attention`
    ("deepseek_v32", "mlp_bias"),
    ("glm_moe_dsa", "layer_types"),
    ("glm_moe_dsa", "mlp_bias"),
    ("distilbert", "sinusoidal_pos_embds"), // the table is in the file either way
    ("esm", "esmfold_config"),              // of another model
    ("esm", "vocab_list"),
    ("eurobert", "mask_token_id"),
    ("modernbert", "deterministic_flash_attn"),
    ("modernbert", "sparse_pred_ignore_index"), // of training, with labels
    ("modernbert", "sparse_prediction"),
    ("codegen", "n_ctx"),
    ("cohere_compass_text", "pooling"),
    ("ministral3", "rope_parameters.max_position_embeddings"),
    ("ministral3", "rope_parameters.type"), // written beside `rope_type`, which counts
];

/// Fields that count only beside others than their family's defaults, each tested in `tests/suite/gradual.rs` or
/// `tests/suite/transformers_families.rs`.
const COUNT_ELSEWHERE: &[(&str, &str)] = &[
    ("marian", "decoder_vocab_size"), // of `share_encoder_decoder_embeddings`
    ("t5", "feed_forward_proj"),      // of files without `dense_act_fn` and `is_gated_act`
    ("mt5", "feed_forward_proj"),
    ("umt5", "feed_forward_proj"),
    ("t5", "tie_word_embeddings"),           // where `scale_decoder_outputs` does not say
    ("big_bird", "max_position_embeddings"), // where attention sees everything
    ("ernie", "task_type_vocab_size"),       // of `use_task_id`
    ("esm", "mask_token_id"),                // of `token_dropout`
    ("esm", "rope_theta"),                   // of rotary positions
    ("deberta", "max_relative_positions"),   // of `relative_attention`
    ("deberta-v2", "max_relative_positions"),
    ("qwen2", "max_window_layers"), // `layer_types` counts, and without a window there is nothing to count
    ("qwen2", "sliding_window"),
    ("qwen2", "use_sliding_window"),
    ("qwen3", "max_window_layers"),
    ("qwen3", "sliding_window"),
    ("qwen3", "use_sliding_window"),
    ("qwen2_moe", "max_window_layers"),
    ("qwen2_moe", "intermediate_size"), // of dense layers
    ("qwen2_moe", "mlp_only_layers"),
    ("qwen3_moe", "intermediate_size"),
    ("qwen3_moe", "mlp_only_layers"),
    ("doge", "num_experts"), // of `is_moe`, as the next ones
    ("doge", "num_experts_per_tok"),
    ("doge", "norm_topk_prob"),
    ("gemma4_text", "moe_intermediate_size"), // of `enable_moe_block`, as the next ones
    ("gemma4_text", "num_experts"),
    ("gemma4_text", "top_k_experts"),
    ("gemma4_text", "use_double_wide_mlp"), // of layers that share keys
    ("gemma4_unified_text", "use_double_wide_mlp"),
    ("jetmoe", "num_attention_heads"), // keys and values are counted, times the experts of a token
    ("deepseek_v2", "intermediate_size"),
    ("deepseek_v2", "n_group"), // of `group_limited_greedy`
    ("deepseek_v2", "topk_group"),
    ("deepseek_v2", "norm_topk_prob"), // transformers does not read it
    ("deepseek_v2", "head_dim"),       // transformers overwrites it, as it does the next ones
    ("deepseek_v32", "head_dim"),
    ("glm_moe_dsa", "head_dim"),
    ("deepseek_v32", "first_k_dense_replace"), // `mlp_layer_types` counts
    ("glm_moe_dsa", "first_k_dense_replace"),
    ("youtu", "head_dim"),
    ("axk1", "head_dim"),
    ("minicpm3", "head_dim"),
    ("mistral4", "head_dim"),
    ("mistral4", "intermediate_size"),
    ("mistral4", "rope_parameters.max_position_embeddings"), // written beside the model's own
    ("mistral4", "rope_parameters.type"),                    // written beside `rope_type`
    ("mellum", "intermediate_size"),
    ("laguna", "sliding_window"), // of layers with a window, as in the next ones
    ("laguna", "rope_parameters.sliding_attention.rope_theta"),
    ("mellum", "sliding_window"), // of layers with a window, which the default has not
    ("mellum", "rope_parameters.sliding_attention.rope_theta"),
    ("afmoe", "global_attn_every_n_layers"), // `layer_types` counts, as it does below
    ("cohere2_moe", "norm_topk_prob"),       // of sigmoids
    ("cohere2_moe", "prefix_dense_intermediate_size"),
    ("cohere2_moe", "prefix_dense_sliding_window_pattern"),
    ("cohere2_moe", "rope_theta"), // `rope_parameters` counts
    ("cohere2_moe", "sliding_window_pattern"),
    ("exaone_moe", "first_k_dense_replace"), // `mlp_layer_types` counts
    ("exaone_moe", "sliding_window_pattern"),
    ("granitemoe_swa", "rope_parameters.rope_theta"), // `layer_rope_theta` counts
    ("granitemoehybrid", "rope_parameters.rope_theta"), // without positions
    ("llama4_text", "interleave_moe_layer_step"),     // `moe_layers` counts
    ("llama4_text", "intermediate_size_mlp"),
    ("llama4_text", "no_rope_layer_interval"), // `no_rope_layers` counts
    ("llama4_text", "no_rope_layers"),         // an empty list means the default
    ("dbrx", "num_key_value_heads"),           // `attn_config.kv_n_heads` counts
    ("ernie4_5_moe", "moe_layer_end_index"),   // twice the last layer is past the end, too
    ("dots1", "intermediate_size"),
    ("dots1", "max_window_layers"),
    ("dots1", "sliding_window"),
    ("qwen2_moe", "sliding_window"),
    ("qwen2_moe", "use_sliding_window"),
    ("qwen3_moe", "sliding_window"),
    ("qwen3_moe", "use_sliding_window"),
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

/// Fields for which transformers has no value that a model could have.
const NEEDED: &[(&str, &str)] = &[
    ("deepseek_v2", "num_experts_per_tok"),
    ("granitemoehybrid", "layer_types"),
    ("dots1", "n_routed_experts"),
    ("dots1", "n_shared_experts"),
    ("dots1", "num_experts_per_tok"),
    ("esm", "vocab_size"),
    ("esm", "mask_token_id"),
    ("esm", "pad_token_id"),
];

/// Everything that is made of a `config.json`, and the fields that were not read.
fn read(fields: &Map<String, Value>) -> Result<(String, Vec<String>)> {
    let json = ConfigJson::new(fields.clone());
    if encoder_decoder::named(&json).is_some() {
        let family = encoder_decoder::find(&json)?;
        let configs = (family.config)(&json)?;
        let names = (family.names)(&configs, &json)?;
        configs.encoder.validate()?;
        configs.decoder.validate()?;
        return Ok((format!("{configs:?} {names:?}"), json.unread()));
    }
    let family = find(&json)?;
    let config = family.read_config(&json)?;
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
    known.extend(encoder_decoder::ENCODER_DECODERS.iter().map(|family| family.model_type));
    known.sort();
    known.dedup(); // BART's decoder is a family by itself, too
    known.sort();
    assert_eq!(tested, known);
}

#[test]
fn absent_fields_mean_what_transformers_takes() {
    for (family, fields) in defaults() {
        let written = read(fields.as_object().unwrap()).unwrap();
        let mut absent = Map::from_iter([("model_type".into(), json!(family))]);
        let needed = NEEDED.iter().filter(|(of, _)| *of == family);
        absent.extend(needed.map(|(_, field)| (field.to_string(), fields[*field].clone())));
        assert_eq!(written, read(&absent).unwrap_or_else(|error| panic!("{family}: {error}")), "{family}");
    }
}

#[test]
fn every_field_counts_or_is_known_to_change_nothing() {
    let (mut tried, mut skipped) = (0, Vec::new());
    for (family, fields) in defaults() {
        let fields = fields.as_object().unwrap();
        let (usual, _) = read(fields).unwrap_or_else(|error| panic!("{family}: {error}"));
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
    let folders =
        [fixtures.clone(), fixtures.join("gradual"), fixtures.join("transformers"), fixtures.join("encoder_decoders")];
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
