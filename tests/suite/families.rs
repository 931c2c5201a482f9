//! Every family's logits and activations, against transformers and TransformerLens, raw: one row a family.

use crate::common::{shaped_like, Fixture, Tally};
use rstest::rstest;
use tch::Tensor;
use tch_lens::{HookedTransformer, LoadOptions, ReturnType, RunOptions};

const TOLERANCE: f64 = 1e-4;

#[rstest]
#[case("gpt2")]
#[case("gpt2_stanford")]
#[case("gpt_neo")]
#[case("llama")]
#[case("llama_gqa_tied")]
#[case("llama3")]
#[case("gpt_neox")]
#[case("gpt_neox_sequential")]
#[case("gptj")]
#[case("opt")]
#[case("bloom")]
#[case("mpt")]
#[case("mistral")]
#[case("mixtral")]
#[case("qwen2")]
#[case("qwen3")]
#[case("gemma")]
#[case("gemma2")]
#[case("gemma3")]
#[case("phi")]
#[case("phi3")]
#[case("olmo")]
#[case("olmo2")]
#[case("olmo3")]
#[case("olmoe")]
#[case("stablelm")]
#[case("santacoder")]
#[case("gpt_oss")]
#[case("apertus")]
#[case("toy_attn_only_1l_lnpre")]
#[case("toy_attn_only_2l_ln")]
#[case("toy_attn_only_2l_lnpre")]
#[case("toy_bidir_classifier")]
#[case("toy_gated_ln")]
#[case("toy_gated_rms")]
#[case("toy_no_norm")]
#[case("toy_parallel")]
#[case("toy_shortformer")]
#[case("toy_solu_ln")]
#[case("toy_solu_ln_final_rms")]
fn agrees_with_transformers_and_transformer_lens(#[case] family: &str) {
    let fixture = Fixture::open(family);
    let mut tally = Tally::default();
    activations(&fixture, &LoadOptions::new().no_processing().open(&fixture.folder).unwrap(), &mut tally);
    if fixture.folder.join("config_v4.json").exists() {
        // The key style of transformers 4, which most checkpoints on the hub have.
        let folder = tempfile::tempdir().unwrap();
        for (from, to) in [("config_v4.json", "config.json"), ("model.safetensors", "model.safetensors")] {
            std::fs::copy(fixture.folder.join(from), folder.path().join(to)).unwrap();
        }
        activations(&fixture, &LoadOptions::new().no_processing().open(folder.path()).unwrap(), &mut tally);
    }
    tally.finish(family);
}

/// Logits, order and every activation, with and without what fires on request only.
fn activations(fixture: &Fixture, model: &HookedTransformer, tally: &mut Tally) {
    let tokens = fixture.want("tokens");
    let order = fixture.meta["hooks"]["raw"]["order_default"].as_array().unwrap();
    let order: Vec<&str> = order.iter().map(|name| name.as_str().unwrap()).collect();
    let (logits, cache) = match order[0] {
        // TransformerLens fires it by default where `use_hook_tokens` is set; here it always fires on request.
        "hook_tokens" => model.run_with_cache_of(&tokens, order.as_slice()).unwrap(),
        _ => model.run_with_cache(&tokens).unwrap(),
    };
    let theirs = fixture.get("hf.logits").unwrap_or_else(|| fixture.want("raw.logits"));
    tally.compare("logits", &logits, &theirs, TOLERANCE);

    let ours: Vec<String> = cache.keys().map(|point| point.to_string()).collect();
    assert_eq!(ours, order, "firing order");

    // Fused attention, where nobody looks at a pattern, is another kernel.
    tally.compare("logits without a cache", &model.forward(&tokens).unwrap(), &theirs, TOLERANCE);

    for setting in ["raw.cache.", "raw.split."] {
        let keys = fixture.keys(setting);
        let names: Vec<&str> = keys.iter().map(|key| &key[setting.len()..]).collect();
        let run = RunOptions::new().cache(names.clone()).return_type(ReturnType::None);
        let cache = model.run(&tokens, run).unwrap().cache;
        assert_eq!(cache.len(), names.len());
        for (key, name) in keys.iter().zip(names) {
            let (ours, theirs) = (cache.get(name).unwrap(), fixture.want(key));
            let point = cache.keys().find(|point| point.to_string() == name).unwrap();
            let ours = shaped_like(ours, &theirs, point, model);
            tally.compare(key, &ours, &theirs, TOLERANCE);
        }
    }

    let Some(loss) = fixture.get("raw.loss_per_token") else { return }; // a classifier has none
    let outcome = model.run(&tokens, RunOptions::new().return_type(ReturnType::LossPerToken)).unwrap();
    tally.compare("loss per token", &outcome.loss.unwrap(), &loss, TOLERANCE);
    let loss = model.loss(&tokens).unwrap() - fixture.want("raw.loss").double_value(&[0]);
    tally.compare("loss", &Tensor::from(loss), &Tensor::from(0.0), TOLERANCE);
}
