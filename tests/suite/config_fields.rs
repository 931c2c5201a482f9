//! What a family does not support is an error that names the field and its value, before any weight is read.

use serde_json::{json, Value};
use tch_lens::{CheckpointError, Error, HookedTransformer, LoadOptions};

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
        ("GPTNeoForCausalLM", json!({"activation_function": "mish"}), "activation_function", "mish"),
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
        // What came later.
        ("CohereForCausalLM", json!({"logit_scale": 0.0}), "logit_scale", "0"),
        ("Cohere2ForCausalLM", json!({"head_dim": 64}), "head_dim", "64"),
        ("Cohere2ForCausalLM", json!({"sliding_window": null}), "sliding_window", "absent"),
        (
            "CohereCompassForCausalLM",
            json!({"num_hidden_layers": 1, "layer_types": ["chunked"]}),
            "layer_types",
            "chunked",
        ),
        ("GraniteForCausalLM", json!({"residual_multiplier": 0.0}), "residual_multiplier", "0"),
        ("GraniteForCausalLM", json!({"attention_multiplier": 1e-9}), "attention.scale", "999999999.9999999"),
        ("GraniteSWAForCausalLM", json!({"layer_rope_theta": [5000.0]}), "layer_rope_theta", "a list of 1"),
        ("HyperCLOVAXForCausalLM", json!({"logits_scaling": 0.0}), "logits_scaling", "0"),
        ("FalconForCausalLM", json!({"multi_query": false, "num_kv_heads": 2}), "num_kv_heads", "2"),
        ("FalconForCausalLM", json!({"num_ln_in_parallel_attn": 2}), "num_ln_in_parallel_attn", "2"),
        (
            "FalconForCausalLM",
            json!({"new_decoder_architecture": true, "parallel_attn": false}),
            "parallel_attn",
            "false",
        ),
        ("GlmForCausalLM", json!({"partial_rotary_factor": 0.005}), "partial_rotary_factor", "0.005"),
        ("Glm4ForCausalLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("NemotronForCausalLM", json!({"norm_eps": "small"}), "norm_eps", "small"),
        ("Starcoder2ForCausalLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("SmolLM3ForCausalLM", json!({"no_rope_layers": [1]}), "no_rope_layers", "a list of 1"),
        ("Exaone4ForCausalLM", json!({"sliding_window_pattern": "LLLG"}), "sliding_window_pattern", "LLLG"),
        ("Ernie4_5ForCausalLM", json!({"use_bias": "yes"}), "use_bias", "yes"),
        ("ArceeForCausalLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("Jais2ForCausalLM", json!({"mlp_bias": "yes"}), "mlp_bias", "yes"),
        ("HeliumForCausalLM", json!({"num_key_value_heads": 3}), "n_key_value_heads", "3"),
        ("PersimmonForCausalLM", json!({"num_key_value_heads": 8}), "num_key_value_heads", "8"),
        (
            "BitNetForCausalLM",
            json!({"quantization_config": {"quant_method": "bitnet"}}),
            "quantization_config",
            "{\"quant_method\":\"bitnet\"}",
        ),
        ("VaultGemmaForCausalLM", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention", "true"),
        (
            "HunYuanDenseV1ForCausalLM",
            json!({"rope_scaling": {"rope_type": "spiral"}}),
            "rope_scaling.rope_type",
            "spiral",
        ),
        ("NanoChatForCausalLM", json!({"final_logit_softcapping": -1.0}), "output_logits_soft_cap", "-1"),
        ("SeedOssForCausalLM", json!({"attention_out_bias": "yes"}), "attention_out_bias", "yes"),
        ("CwmForCausalLM", json!({"sliding_window": 0}), "sliding_window", "absent"),
        ("MinistralForCausalLM", json!({"num_hidden_layers": 1, "layer_types": ["chunked"]}), "layer_types", "chunked"),
        (
            "Ministral3ForCausalLM",
            json!({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 4}}),
            "rope_scaling.llama_4_scaling_beta",
            "absent",
        ),
        ("InternLM3ForCausalLM", json!({"qkv_bias": "yes"}), "qkv_bias", "yes"),
        ("IQuestCoderForCausalLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("Emu3ForCausalLM", json!({"mlp_bias": true}), "mlp_bias", "true"),
        ("MllamaForCausalLM", json!({"cross_attention_layers": "none"}), "cross_attention_layers", "none"),
        ("CodeGenForCausalLM", json!({"n_head": 6, "n_embd": 384}), "n_head", "6"),
        ("GPTNeoXJapaneseForCausalLM", json!({"intermediate_size": 100}), "intermediate_size", "100"),
        ("CTRLLMHeadModel", json!({"n_embd": 81, "n_head": 9}), "d_model", "81"),
        ("BioGptForCausalLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("XGLMForCausalLM", json!({"d_model": 2, "attention_heads": 1}), "positions.steps", "0"),
        ("DiffLlamaForCausalLM", json!({"num_attention_heads": 3, "hidden_size": 96}), "n_key_value_heads", "3"),
        ("ModernBertDecoderForCausalLM", json!({"classifier_activation": "xielu"}), "head.activation", "Xielu"),
        ("OpenAIGPTLMHeadModel", json!({"afn": "mish"}), "afn", "mish"),
        ("Qwen2VLForConditionalGeneration", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        (
            "Qwen2_5_VLForConditionalGeneration",
            json!({"rope_scaling": {"rope_type": "spiral"}}),
            "rope_scaling.rope_type",
            "spiral",
        ),
        ("Qwen3VLForConditionalGeneration", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        // Mixtures and latent attention.
        (
            "Qwen2MoeForCausalLM",
            json!({"use_sliding_window": true, "sliding_window": null}),
            "sliding_window",
            "absent",
        ),
        ("Qwen3MoeForCausalLM", json!({"num_experts_per_tok": 200}), "mlp.experts_per_token", "200"),
        ("DeepseekV2ForCausalLM", json!({"num_experts_per_tok": 6, "topk_method": "best"}), "topk_method", "best"),
        ("DeepseekV2ForCausalLM", json!({"num_experts_per_tok": 6, "mlp_bias": true}), "mlp_bias", "true"),
        ("DeepseekV2ForCausalLM", json!({}), "num_experts_per_tok", "absent"),
        ("DeepseekV3ForCausalLM", json!({"scoring_func": "softmax"}), "scoring_func", "softmax"),
        ("DeepseekV3ForCausalLM", json!({"n_group": 7}), "mlp.routing.groups.groups", "7"),
        ("DeepseekV3ForCausalLM", json!({"moe_layer_freq": 2}), "moe_layer_freq", "2"),
        ("DeepseekV3ForCausalLM", json!({"num_key_value_heads": 8}), "attention.latent", "set"),
        ("Glm4MoeForCausalLM", json!({"topk_group": 2, "n_group": 1}), "mlp.routing.groups.kept", "2"),
        ("Glm4MoeLiteForCausalLM", json!({"mlp_layer_types": ["dense"]}), "mlp_layer_types", "a list of 1"),
        ("DeepseekV32ForCausalLM", json!({"q_lora_rank": null}), "attention.indexer", "set"),
        ("DeepseekV32ForCausalLM", json!({"index_head_dim": 32}), "attention.indexer.d_head", "32"),
        ("DeepseekV32ForCausalLM", json!({"index_topk": 0}), "attention.indexer.keep", "0"),
        ("GlmMoeDsaForCausalLM", json!({"indexer_types": ["full"]}), "indexer_types", "a list of 1"),
        ("GlmMoeDsaForCausalLM", json!({"num_hidden_layers": 1, "index_topk_pattern": "T"}), "index_topk_pattern", "T"),
        (
            "GlmMoeDsaForCausalLM",
            json!({"num_hidden_layers": 2, "index_topk_pattern": ["shared", "full"]}),
            "attention.indexer.shares_choice",
            "true of layer 0",
        ),
        ("YoutuForCausalLM", json!({"kv_lora_rank": 0}), "attention.latent.key_value_rank", "0"),
        ("SolarOpenForCausalLM", json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor", "0.5"),
        ("Dots1ForCausalLM", json!({"layer_types": ["linear_attention"]}), "layer_types", "a list of 1"),
        ("MiniMaxM2ForCausalLM", json!({"num_local_experts": 4}), "mlp.experts_per_token", "8"),
        ("PhimoeForCausalLM", json!({"num_experts_per_tok": 1}), "num_experts_per_tok", "1"),
        ("DbrxForCausalLM", json!({"tie_word_embeddings": true}), "tie_word_embeddings", "true"),
        ("Ernie4_5_MoeForCausalLM", json!({"moe_k": 65}), "mlp.experts_per_token", "65"),
        ("AriaTextForCausalLM", json!({"moe_topk": 9}), "mlp.experts_per_token", "9"),
        ("HYV3ForCausalLM", json!({"mlp_bias": true}), "mlp_bias", "true"),
        ("AXK1ForCausalLM", json!({"topk_group": 9}), "mlp.routing.groups.kept", "9"),
        ("GraniteMoeForCausalLM", json!({"residual_multiplier": 0}), "residual_multiplier", "0"),
        ("GraniteMoeSharedForCausalLM", json!({"num_local_experts": 1}), "mlp.experts_per_token", "2"),
        ("GraniteMoeHybridForCausalLM", json!({"layer_types": ["mamba"]}), "layer_types", "mamba"),
        ("GraniteMoeHybridForCausalLM", json!({}), "layer_types", "absent, so state-space layers"),
        ("GraniteMoeSWAForCausalLM", json!({"layer_rope_theta": [1e4]}), "layer_rope_theta", "a list of 1"),
        ("HunYuanMoEV1ForCausalLM", json!({"moe_topk": [1, 2]}), "moe_topk", "[1,2]"),
        ("ExaoneMoeForCausalLM", json!({"mlp_layer_types": ["odd"]}), "mlp_layer_types", "a list of 1"),
        ("Kolibri1ForCausalLM", json!({"sliding_window": null}), "sliding_window", "absent"),
        ("FlintForCausalLM", json!({"num_experts_per_tok": 257}), "mlp.experts_per_token", "257"),
        ("AfmoeForCausalLM", json!({"sliding_window": null}), "sliding_window", "absent"),
        ("MellumForCausalLM", json!({"num_hidden_layers": 1, "mlp_layer_types": ["odd"]}), "mlp_layer_types", "odd"),
        ("MiniCPM3ForCausalLM", json!({"scale_emb": 0}), "scale_emb", "0"),
        (
            "Mistral4ForCausalLM",
            rope(json!({"type": "default"})),
            "rope_scaling.original_max_position_embeddings",
            "absent",
        ),
        ("Llama4ForCausalLM", json!({"attention_chunk_size": null}), "attention_chunk_size", "null"),
        ("Llama4ForCausalLM", json!({"no_rope_layers": [1]}), "no_rope_layers", "a list of 1"),
        ("Cohere2MoeForCausalLM", json!({"expert_selection_fn": "relu"}), "expert_selection_fn", "relu"),
        (
            "LagunaForCausalLM",
            json!({"num_attention_heads_per_layer": [4]}),
            "num_attention_heads_per_layer",
            "a list of 1",
        ),
        ("MiMoV2FlashForCausalLM", json!({"attention_value_scale": 0}), "attention_value_scale", "0"),
        ("Gemma4ForCausalLM", json!({"use_bidirectional_attention": "all"}), "use_bidirectional_attention", "all"),
        (
            "Gemma4ForCausalLM",
            json!({"per_layer_config": {"5": {"hidden_size": 8}}}),
            "per_layer_config.5.hidden_size",
            "set",
        ),
        ("Gemma4ForCausalLM", json!({"num_kv_shared_layers": 28}), "num_kv_shared_layers", "28"),
        ("Gemma4ForCausalLM", json!({"vocab_size_per_layer_input": 7}), "stream.layer_embedding.d_vocab", "7"),
        (
            "Gemma4UnifiedForCausalLM",
            json!({"use_bidirectional_attention": "all"}),
            "use_bidirectional_attention",
            "all",
        ),
        ("DogeForCausalLM", json!({"is_moe": true}), "is_moe", "true"),
        ("BeamForCausalLM", json!({"layer_types": ["chunked"]}), "layer_types", "a list of 1"),
        ("JetMoeForCausalLM", json!({"num_experts_per_tok": 9}), "attention.experts.experts_per_token", "9"),
        ("FlexOlmoForCausalLM", json!({"num_experts_per_tok": 8}), "mlp.experts_per_token", "8"),
        ("AlbertForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("BartForCausalLM", json!({"activation_function": "mish"}), "activation_function", "mish"),
        ("BertForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("BertGenerationDecoder", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("BigBirdForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("CamembertForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("Data2VecTextForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("DebertaForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("DebertaV2ForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("DistilBertForMaskedLM", json!({"activation": "mish"}), "activation", "mish"),
        ("ElectraForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("ErnieForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        (
            "EsmForMaskedLM",
            json!({"vocab_size": 64, "position_embedding_type": "mish"}),
            "position_embedding_type",
            "mish",
        ),
        ("EuroBertForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("GteForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("JinaEmbeddingsV3ForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("MPNetForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("MegatronBertForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("ModernBertForMaskedLM", json!({"hidden_activation": "mish"}), "hidden_activation", "mish"),
        ("NomicBertForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("RemBertForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("RoFormerForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("RobertaForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("RobertaPreLayerNormForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("TrOCRForCausalLM", json!({"activation_function": "mish"}), "activation_function", "mish"),
        ("XLMRobertaForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
        ("XLMRobertaXLForMaskedLM", json!({"hidden_act": "mish"}), "hidden_act", "mish"),
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
    let mut known: Vec<&str> = HookedTransformer::supported().iter().map(|it| it.architecture).collect();
    known.sort();
    assert_eq!(tested, known, "every architecture has a row");
    println!("{} values of {} architectures", cases.len(), tested.len());
}

/// Numbers that are not what their field holds, or that no model can have: architecture, what its `config.json` has, and the
/// field that the error names. Of the numbers that only the shape as a whole refuses, that is [`tch_lens::Config`]'s.
fn numbers_that_cannot_be() -> Vec<(&'static str, Value, &'static str)> {
    let rope = |fields: Value| json!({ "rope_scaling": fields });
    let yarn = |field: &str, value: Value| {
        let mut fields = json!({"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64});
        fields[field] = value;
        json!({ "rope_scaling": fields })
    };
    vec![
        // A fraction where a whole number belongs, even if its fraction is zero.
        ("GPT2LMHeadModel", json!({"n_embd": 768.0}), "n_embd"),
        ("GPT2LMHeadModel", json!({"vocab_size": 50257.5}), "vocab_size"),
        ("LlamaForCausalLM", json!({"hidden_size": 64.0}), "hidden_size"),
        ("LlamaForCausalLM", json!({"num_hidden_layers": 2.5}), "num_hidden_layers"),
        ("LlamaForCausalLM", json!({"head_dim": 1e2}), "head_dim"),
        ("MistralForCausalLM", json!({"sliding_window": 16.0}), "sliding_window"),
        ("MixtralForCausalLM", json!({"num_experts_per_tok": 2.0}), "num_experts_per_tok"),
        ("GPTJForCausalLM", json!({"rotary_dim": 64.0}), "rotary_dim"),
        ("GPTNeoForCausalLM", json!({"window_size": 256.5}), "window_size"),
        ("Qwen2ForCausalLM", json!({"max_window_layers": 1.0}), "max_window_layers"),
        (
            "Qwen2ForCausalLM",
            yarn("original_max_position_embeddings", json!(64.0)),
            "rope_scaling.original_max_position_embeddings",
        ),
        // Sizes.
        ("GPT2LMHeadModel", json!({"n_embd": 0}), "d_model"),
        ("BloomForCausalLM", json!({"n_embed": 4611686018427387904u64}), "d_model"),
        ("MistralForCausalLM", json!({"num_hidden_layers": 9223372036854775807i64}), "n_layers"),
        ("Gemma2ForCausalLM", json!({"num_hidden_layers": 9223372036854775807i64}), "n_layers"),
        ("LlamaForCausalLM", json!({"head_dim": 4294967296u64}), "d_head"),
        ("MixtralForCausalLM", json!({"num_local_experts": 4294967296u64}), "mlp.num_experts"),
        // Windows.
        ("MistralForCausalLM", json!({"sliding_window": 0}), "attention.reach"),
        ("MistralForCausalLM", json!({"sliding_window": u64::MAX}), "attention.reach"),
        ("Gemma3ForCausalLM", json!({"sliding_window": 0}), "attention.reach"),
        ("GPTNeoForCausalLM", json!({"window_size": 0}), "attention.reach"),
        // Rotations.
        ("LlamaForCausalLM", json!({"rope_theta": 0}), "positions.base"),
        ("LlamaForCausalLM", json!({"rope_theta": -10000.0}), "positions.base"),
        ("LlamaForCausalLM", json!({"rope_theta": 1e300}), "positions.base"),
        ("Gemma3ForCausalLM", json!({"rope_local_base_freq": 0}), "positions.base"),
        ("LlamaForCausalLM", rope(json!({"type": "linear", "factor": 0})), "positions.scaling.factor"),
        ("LlamaForCausalLM", rope(json!({"type": "linear", "factor": -2})), "positions.scaling.factor"),
        ("LlamaForCausalLM", rope(json!({"type": "dynamic", "factor": 0.0})), "positions.scaling.factor"),
        (
            "LlamaForCausalLM",
            json!({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
            "positions.dim",
        ),
        (
            "LlamaForCausalLM",
            rope(json!({"type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4})),
            "positions.scaling.high_freq_factor",
        ),
        ("Qwen2ForCausalLM", yarn("factor", json!(0)), "positions.scaling.factor"),
        ("Qwen2ForCausalLM", yarn("beta_fast", json!(0.5)), "positions.scaling.beta_fast"),
        ("Qwen2ForCausalLM", yarn("beta_slow", json!(0)), "positions.scaling.beta_slow"),
        ("Qwen2ForCausalLM", yarn("attention_factor", json!(0)), "positions.scaling.attention_factor"),
        (
            "Qwen2ForCausalLM",
            yarn("original_max_position_embeddings", json!(0)),
            "rope_scaling.original_max_position_embeddings",
        ),
        // Scores, logits, norms, clamps.
        ("LlamaForCausalLM", json!({"rms_norm_eps": 0}), "norms.eps"),
        ("GPT2LMHeadModel", json!({"layer_norm_epsilon": -1e-5}), "norms.eps"),
        ("Gemma2ForCausalLM", json!({"query_pre_attn_scalar": 0}), "attention.scale"),
        ("Gemma2ForCausalLM", json!({"query_pre_attn_scalar": -256}), "attention.scale"),
        ("Gemma2ForCausalLM", json!({"attn_logit_softcapping": 0.0}), "attention.scores_soft_cap"),
        ("Gemma2ForCausalLM", json!({"final_logit_softcapping": -30.0}), "output_logits_soft_cap"),
        ("OlmoForCausalLM", json!({"clip_qkv": 0}), "attention.clip_qkv"),
        ("OlmoForCausalLM", json!({"clip_qkv": 1e39}), "attention.clip_qkv"),
        ("MptForCausalLM", json!({"attn_config": {"softmax_scale": 0}}), "attention.scale"),
        ("GptOssForCausalLM", json!({"swiglu_limit": 0}), "mlp.gate.limit"),
        ("MixtralForCausalLM", json!({"num_experts_per_tok": 0}), "mlp.experts_per_token"),
    ]
}

#[test]
fn a_number_that_cannot_be_is_named() {
    let cases = numbers_that_cannot_be();
    for (architecture, mut config, field) in cases.clone() {
        config["architectures"] = json!([architecture]);
        match open(&config) {
            Err(Error::ConfigField { field: found, .. }) => assert_eq!(found, field, "{config}"),
            Err(other) => panic!("{config}: {other}"),
            Ok(_) => panic!("{config} was accepted"),
        }
    }
    println!("{} numbers", cases.len());
}

/// The same of TransformerLens' `cfg.json`.
#[test]
fn a_number_that_cannot_be_in_cfg_json_is_named() {
    let good = json!({
        "n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_vocab": 20, "n_ctx": 12, "d_mlp": 32, "act_fn": "relu",
        "normalization_type": "LN", "d_vocab_out": -1, "attn_scale": -1.0, "attn_scores_soft_cap": -1.0,
    });
    let cases = [
        (json!({"n_layers": 2.0}), "n_layers"),
        (json!({"d_head": -8}), "d_head"),
        (json!({"d_vocab_out": -2}), "d_vocab_out"),
        (json!({"d_vocab_out": 0}), "d_vocab_out"),
        (json!({"d_mlp": null}), "d_mlp"),
        (json!({"act_fn": null}), "act_fn"),
        (json!({"eps": 0}), "norms.eps"),
        (json!({"attn_scale": 0.0}), "attention.scale"),
        (json!({"attn_scale": -2.0}), "attention.scale"),
        (json!({"attn_scores_soft_cap": 0.0}), "attention.scores_soft_cap"),
        (json!({"output_logits_soft_cap": -3.0}), "output_logits_soft_cap"),
        (json!({"use_local_attn": true, "attn_types": ["local", "local"]}), "window_size"),
        (json!({"use_local_attn": true, "attn_types": ["local"], "window_size": 4}), "attn_types"),
        (json!({"use_local_attn": true, "attn_types": ["near", "far"], "window_size": 4}), "attn_types"),
        (json!({"use_local_attn": true}), "attn_types"),
        (json!({"positional_embedding_type": "rotary", "rotary_dim": 3}), "positions.dim"),
        (json!({"positional_embedding_type": "rotary", "rotary_base": 0}), "positions.base"),
        (json!({"num_experts": 4}), "experts_per_token"),
        (json!({"num_experts": 4, "experts_per_token": 5}), "mlp.experts_per_token"),
    ];
    let opened = |fields: &Value| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cfg.json"), fields.to_string()).unwrap();
        // A checkpoint without a tensor: what is missing is an error after every number has been read.
        safetensors::serialize_to_file(
            [] as [(&str, safetensors::tensor::TensorView); 0],
            None,
            &folder.path().join("model.safetensors"),
        )
        .unwrap();
        LoadOptions::new().open(folder.path()).unwrap_err()
    };
    assert!(matches!(opened(&good), Error::Checkpoint(CheckpointError::MissingTensor { .. })), "{}", opened(&good));
    for (change, field) in cases {
        let mut fields = good.clone();
        fields.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        match opened(&fields) {
            Error::ConfigField { field: found, .. } => assert_eq!(found, field, "{change}"),
            other => panic!("{change}: {other}"),
        }
    }
}

/// A folder with nothing in it but this `config.json`.
fn open(config: &Value) -> Result<HookedTransformer, Error> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    LoadOptions::new().open(folder.path())
}
