//! What a family does not support is an error that names the field and its value, before any weight is read.

use serde_json::{json, Value};
use tch_lens::{Error, HookedTransformer, Load};

/// Architecture, what its `config.json` has, and the field and value that the error names: the file's own, but for
/// those that only the shape as a whole refuses, which have the names of [`tch_lens::Config`].
fn unsupported() -> Vec<(&'static str, Value, &'static str, &'static str)> {
    let spiral = json!({"rope_parameters": {"sliding_attention": {"rope_type": "spiral"}}});
    let mpt = |field: &str, value: Value| json!({"attn_config": {field: value}});
    let rope = |fields: Value| json!({ "rope_scaling": fields });
    vec![
        // Of every family.
        ("LlamaForCausalLM", json!({"quantization_config": {"bits": 4}}), "quantization_config", "{\"bits\":4}"),
        ("GPT2LMHeadModel", json!({"pruned_heads": {"0": [1]}}), "pruned_heads", "{\"0\":[1]}"),
        ("LlamaForCausalLM", json!({"is_encoder_decoder": true}), "is_encoder_decoder", "true"),
        ("GPT2LMHeadModel", json!({"add_cross_attention": true}), "add_cross_attention", "true"),
        ("LlamaForCausalLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("GPTNeoForCausalLM", json!({"activation_function": "relu2"}), "activation_function", "relu2"),
        ("LlamaForCausalLM", json!({"hidden_size": "wide"}), "hidden_size", "wide"),
        ("LlamaForCausalLM", json!({"num_key_value_heads": -1}), "num_key_value_heads", "-1"),
        ("LlamaForCausalLM", json!({"num_key_value_heads": 5}), "n_key_value_heads", "5"),
        ("Olmo2ForCausalLM", json!({"num_attention_heads": 0}), "n_heads", "0"),
        // Rotations.
        ("LlamaForCausalLM", rope(json!({"rope_type": "axial"})), "rope_scaling.rope_type", "axial"),
        ("LlamaForCausalLM", rope(json!({"type": "xpos"})), "rope_scaling.rope_type", "xpos"),
        ("LlamaForCausalLM", rope(json!({"type": "linear"})), "rope_scaling.factor", "absent"),
        ("LlamaForCausalLM", rope(json!({"type": "linear", "factor": "two"})), "rope_scaling.factor", "two"),
        ("Qwen2ForCausalLM", rope(json!({"type": "longrope"})), "rope_scaling.short_factor", "absent"),
        (
            "Phi3ForCausalLM",
            rope(json!({"type": "su", "short_factor": [1.0], "long_factor": [1.0]})),
            "rope_scaling.short_factor",
            "a list of 1",
        ),
        ("Phi3ForCausalLM", rope(json!({"type": "linear", "factor": 2})), "rope_type", "linear"),
        ("LlamaForCausalLM", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor", "0.5"),
        (
            "MistralForCausalLM",
            json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
            "rope_parameters.partial_rotary_factor",
            "0.5",
        ),
        ("PhiForCausalLM", json!({"partial_rotary_factor": 0.3}), "partial_rotary_factor", "0.3"),
        ("StableLmForCausalLM", json!({"partial_rotary_factor": 0.01}), "partial_rotary_factor", "0.01"),
        ("GPTNeoXForCausalLM", json!({"rope_theta": 500.0}), "rope_theta", "500"),
        ("GPTJForCausalLM", json!({"rotary_dim": 5}), "rotary_dim", "5"),
        ("GPTJForCausalLM", json!({"rotary_dim": null}), "rotary_dim", "null"),
        ("Gemma3ForCausalLM", spiral.clone(), "rope_parameters.sliding_attention.rope_type", "spiral"),
        ("Olmo3ForCausalLM", spiral, "rope_parameters.sliding_attention.rope_type", "spiral"),
        ("Olmo3ForCausalLM", json!({"rope_theta": 10000.0}), "rope_theta", "10000"),
        // What transformers has a field for, and only one value in use.
        (
            "GPTNeoForCausalLM",
            json!({"attention_types": [[["strided"], 24]]}),
            "attention_types",
            "[[[\"strided\"],24]]",
        ),
        ("GPTNeoForCausalLM", json!({"attention_types": [[["global"], 3]]}), "attention_types", "[[[\"global\"],3]]"),
        ("OPTForCausalLM", json!({"do_layer_norm_before": false}), "do_layer_norm_before", "false"),
        ("OPTForCausalLM", json!({"word_embed_proj_dim": 512}), "word_embed_proj_dim", "512"),
        ("OPTForCausalLM", json!({"_remove_final_layer_norm": true}), "_remove_final_layer_norm", "true"),
        (
            "BloomForCausalLM",
            json!({"apply_residual_connection_post_layernorm": true}),
            "apply_residual_connection_post_layernorm",
            "true",
        ),
        ("BloomForCausalLM", json!({"slow_but_exact": true}), "slow_but_exact", "true"),
        ("MptForCausalLM", json!({"logit_scale": "inv_sqrt_d_model"}), "logit_scale", "inv_sqrt_d_model"),
        ("MptForCausalLM", json!({"no_bias": false}), "no_bias", "false"),
        ("MptForCausalLM", json!({"expansion_ratio": 8}), "expansion_ratio", "8"),
        ("MptForCausalLM", json!({"norm_type": "rmsnorm"}), "norm_type", "rmsnorm"),
        ("MptForCausalLM", mpt("alibi", json!(false)), "attn_config.alibi", "false"),
        ("MptForCausalLM", mpt("alibi_bias_max", json!(16)), "attn_config.alibi_bias_max", "16"),
        ("MptForCausalLM", mpt("attn_type", json!("grouped")), "attn_config.attn_type", "grouped"),
        ("MptForCausalLM", mpt("prefix_lm", json!(true)), "attn_config.prefix_lm", "true"),
        ("MptForCausalLM", mpt("qk_ln", json!(true)), "attn_config.qk_ln", "true"),
        ("MptForCausalLM", mpt("attn_uses_sequence_id", json!(true)), "attn_config.attn_uses_sequence_id", "true"),
        (
            "Qwen2ForCausalLM",
            json!({"num_hidden_layers": 1, "layer_types": ["chunked_attention"]}),
            "layer_types",
            "chunked_attention",
        ),
        ("Qwen3ForCausalLM", json!({"layer_types": ["full_attention"]}), "layer_types", "a list of 1"),
        (
            "Qwen3ForCausalLM",
            json!({"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}),
            "sliding_window",
            "absent",
        ),
        ("Gemma2ForCausalLM", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention", "true"),
        ("GemmaForCausalLM", json!({"hidden_activation": "relu"}), "hidden_activation", "relu"),
        ("Gemma3ForCausalLM", json!({"attn_logit_softcapping": 50.0}), "attn_logit_softcapping", "50"),
        ("Phi3ForCausalLM", json!({"attention_bias": true}), "attention_bias", "true"),
        ("StableLmForCausalLM", json!({"head_dim": 64}), "head_dim", "64"),
        ("GPTBigCodeForCausalLM", json!({"num_key_value_heads": 4}), "num_key_value_heads", "4"),
        ("ApertusForCausalLM", json!({"post_norm": true}), "post_norm", "true"),
        ("MixtralForCausalLM", json!({"num_experts_per_tok": 9}), "mlp.experts_per_token", "9"),
        ("GptOssForCausalLM", json!({"sliding_window": null}), "sliding_window", "absent"),
        ("OlmoForCausalLM", json!({"clip_qkv": [1.0]}), "clip_qkv", "[1.0]"),
        ("OlmoeForCausalLM", json!({"norm_topk_prob": "yes"}), "norm_topk_prob", "yes"),
    ]
}

#[test]
fn a_value_that_is_not_supported_is_named() {
    let cases = unsupported();
    for (architecture, mut config, field, value) in cases.clone() {
        config["architectures"] = json!([architecture]);
        match open(&config) {
            Err(Error::ConfigField { field: found, value: its, .. }) => {
                assert_eq!((found.as_str(), its.trim_matches('"')), (field, value), "{config}");
            }
            Err(other) => panic!("{config}: {other}"),
            Ok(_) => panic!("{config} was accepted"),
        }
    }
    let mut tested: Vec<&str> = cases.iter().map(|(architecture, ..)| *architecture).collect();
    tested.sort();
    tested.dedup();
    let mut known = HookedTransformer::supported();
    known.sort();
    assert_eq!(tested, known, "every architecture has a row");
    println!("{} values of {} architectures", cases.len(), tested.len());
}

#[test]
fn an_unknown_architecture_is_answered_with_those_that_are_known() {
    let config = json!({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}});
    let message = open(&config).unwrap_err().to_string();
    assert!(message.contains("Gemma3ForConditionalGeneration"), "{message}");
    for known in HookedTransformer::supported() {
        assert!(message.contains(known), "{known} is not in: {message}");
    }
}

/// A folder with nothing in it but this `config.json`.
fn open(config: &Value) -> Result<HookedTransformer, Error> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    Load::new().open(folder.path())
}
