//! What families do where their configuration is not the usual one: each case a checkpoint that differs in one thing, with
//! transformers' logits, made by `fixtures/make_gradual.py`, which says what each case is and how much it shows.

use crate::common::{read, Tally};
use tch::{Kind, Tensor};
use tch_lens::LoadOptions;

const CASES: &[&str] = &[
    "apertus_bf16",
    "bloom_old_keys",
    "bloom_three_heads",
    "gemma2_window",
    "gemma3_window",
    "gemma_bf16",
    "gemma_untied",
    "gpt2_n_inner",
    "gpt2_unscaled",
    "gpt2_untied",
    "gpt_bigcode_multi_head",
    "gpt_neo_window",
    "gpt_neox_five_of_ten",
    "gpt_neox_six_of_ten",
    "gpt_neox_tied",
    "gpt_oss_no_attention_bias",
    "gpt_oss_window",
    "gptj_all_of_a_head",
    "llama_biases",
    "llama_dynamic",
    "llama_dynamic_short",
    "llama_fp16",
    "llama_head_dim",
    "llama_linear",
    "llama_longrope_factor",
    "llama_sharded",
    "llama_tied",
    "llama_tied_by_name_only",
    "llama_yarn",
    "mistral_head_dim",
    "mistral_no_window",
    "mistral_window",
    "mixtral_window",
    "mpt_clip_and_scale",
    "mpt_six_heads",
    "olmo3_window",
    "olmo_tied",
    "olmoe_norm_topk_prob",
    "opt_bare",
    "phi3_five_of_ten",
    "phi3_longrope_long",
    "phi3_longrope_short",
    "phi3_six_of_ten",
    "phi3_window",
    "phi_four_of_ten",
    "phi_gqa",
    "phi_qk_layernorm",
    "qwen2_window_by_layer_types",
    "qwen2_window_on_later_layers",
    "qwen2_yarn",
    "qwen3_attention_bias",
    "qwen3_yarn_mscale",
    "stablelm_parallel_qk_layernorm",
];

#[test]
fn agrees_with_transformers_on_every_case() {
    let folder = crate::common::fixtures().join("gradual");
    let mut found: Vec<String> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    found.sort();
    assert_eq!(found, CASES, "the folders of {}", folder.display());

    let mut tally = Tally::default();
    for case in CASES {
        let folder = folder.join(case);
        let expected = read(&folder.join("expected.safetensors"));
        let model = match LoadOptions::new().no_processing().open(&folder) {
            Ok(model) => model,
            Err(error) => {
                tally.failures.push(format!("{case}: {error}"));
                continue;
            }
        };
        // With every activation, as the fused kernels have it, and with the weights processed.
        let (logits, _) = model.run_with_cache(&expected["tokens"]).unwrap();
        tally.compare(case, &logits, &expected["logits"], 1e-4);
        tally.compare(case, &model.forward(&expected["tokens"]).unwrap(), &expected["logits"], 1e-4);
        let processed = LoadOptions::new().open(&folder).unwrap().forward(&expected["tokens"]).unwrap();
        let log_probs = |logits: &Tensor| logits.log_softmax(-1, Kind::Float);
        let what = format!("{case}, processed");
        tally.compare(&what, &log_probs(&processed), &log_probs(&expected["logits"]), 1e-4);
    }
    tally.finish(&format!("{} cases", CASES.len()));
}
