//! Checkpoints that were saved without a head, as `BertModel`, `LlamaModel` and `T5EncoderModel` are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::{fixtures, read, Tally};
use rstest::rstest;
use serde_json::{json, Value};
use tch::Tensor;
use tch_lens::{hook, HookedEncoder, HookedTransformer, LoadOptions, ReturnType, RunOptions};

/// The checkpoint in `folder` as transformers saves it without a head: `rename` gives each tensor's name, or leaves it out.
fn saved(folder: &Path, architecture: &str, rename: impl Fn(&str) -> Option<String>) -> tempfile::TempDir {
    let mut config: Value = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    config["architectures"] = json!([architecture]);
    if architecture.ends_with("EncoderModel") {
        config["is_encoder_decoder"] = json!(false);
    }
    let tensors: BTreeMap<String, Tensor> = read(&folder.join("model.safetensors"));
    let renamed = tensors.iter().filter_map(|(name, tensor)| Some((rename(name)?, tensor)));
    let copy = tempfile::tempdir().unwrap();
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    Tensor::write_safetensors(&renamed.collect::<Vec<_>>(), copy.path().join("model.safetensors")).unwrap();
    copy
}

fn of_transformers(name: &str) -> PathBuf {
    fixtures().join("transformers").join(name)
}

/// A model whose unembedding is its embedding has logits without a head.
#[rstest]
#[case(fixtures().join("llama_gqa_tied"), "LlamaModel", "model.")]
#[case(fixtures().join("gpt2"), "GPT2Model", "transformer.")]
#[case(fixtures().join("gemma"), "GemmaModel", "model.")]
fn tied_models_have_logits(#[case] folder: PathBuf, #[case] architecture: &str, #[case] prefix: &str) {
    let copy = saved(&folder, architecture, |name| name.strip_prefix(prefix).map(String::from));
    let load = LoadOptions::new().no_processing();
    let expected = load.open(&folder).unwrap().forward([3, 1, 4, 1, 5]).unwrap();
    assert_eq!(load.open(copy.path()).unwrap().forward([3, 1, 4, 1, 5]).unwrap(), expected);
}

/// The names lack the module around the model, though the architecture has a head.
#[test]
fn a_module_that_names_lack_is_added() {
    let folder = fixtures().join("llama");
    let copy = saved(&folder, "LlamaForCausalLM", |name| Some(name.strip_prefix("model.").unwrap_or(name).into()));
    let load = LoadOptions::new().no_processing();
    let expected = load.open(&folder).unwrap().forward([3, 1, 4, 1, 5]).unwrap();
    assert_eq!(load.open(copy.path()).unwrap().forward([3, 1, 4, 1, 5]).unwrap(), expected);
}

#[test]
fn a_missing_unembedding_is_an_error() {
    let copy = saved(&fixtures().join("llama"), "LlamaModel", |name| name.strip_prefix("model.").map(String::from));
    let error = HookedTransformer::from_pretrained(copy.path()).unwrap_err().to_string();
    assert!(error.contains("LlamaModel has no unembedding, and `tie_word_embeddings` is false"), "{error}");
}

/// The streams of an encoder are those of the model with its head.
#[rstest]
#[case("bert", "BertModel", "bert.")]
#[case("roberta", "RobertaModel", "roberta.")]
#[case("distilbert", "DistilBertModel", "distilbert.")]
#[case("modernbert", "ModernBertModel", "model.")]
#[case("deberta-v2", "DebertaV2Model", "deberta.")]
fn encoders_end_with_their_stream(#[case] name: &str, #[case] architecture: &str, #[case] prefix: &str) {
    let folder = of_transformers(name);
    let copy = saved(&folder, architecture, |name| name.strip_prefix(prefix).map(String::from));
    let headless = HookedEncoder::from_pretrained(copy.path()).unwrap();
    let whole = HookedEncoder::from_pretrained(&folder).unwrap();
    let mut tally = Tally::default();
    let tokens = &read(&folder.join("expected.safetensors"))["tokens"];
    let (_, expected) = whole.run_with_cache(tokens).unwrap();
    let run = RunOptions::new().cache(tch_lens::HookFilter::All).return_type(ReturnType::None);
    let cache = headless.run(tokens, run).unwrap().cache;
    for layer in 0..whole.config().n_layers {
        for point in [hook::resid_pre(layer), hook::pattern(layer), hook::resid_post(layer)] {
            tally.compare(&format!("{name}, {point}"), &cache[point], &expected[point], 0.0);
        }
    }
    tally.finish("a model without its head");
    let error = headless.predictions("a text").unwrap_err().to_string();
    assert!(error.contains("has no head"), "{error}");
    assert!(headless.w_u().is_err() && headless.classify(tokens).is_err());
}

/// The encoder of an encoder-decoder, from a file of its own and from the whole one.
#[rstest]
#[case("t5", "T5EncoderModel", false)]
#[case("t5", "T5EncoderModel", true)]
#[case("umt5", "UMT5EncoderModel", false)]
fn an_encoder_stands_alone(#[case] name: &str, #[case] architecture: &str, #[case] whole: bool) {
    let folder = fixtures().join("encoder_decoders").join(name);
    let copy = saved(&folder, architecture, |name| (whole || !name.starts_with("decoder.")).then(|| name.to_string()));
    let encoder = HookedEncoder::from_pretrained(copy.path()).unwrap();
    let expected = read(&folder.join("expected.safetensors"));
    let run = RunOptions::new().cache(tch_lens::HookFilter::All).return_type(ReturnType::None);
    let cache = encoder.run(&expected["tokens"], run).unwrap().cache;
    let mut tally = Tally::default();
    for layer in 0..encoder.config().n_layers {
        let of = |what: &str| &expected[&format!("encoder.{what}.{layer}")];
        tally.compare(&format!("stream {layer}"), &cache[hook::resid_pre(layer)], of("hidden"), 1e-4);
        tally.compare(&format!("pattern {layer}"), &cache[hook::pattern(layer)], of("pattern"), 1e-4);
    }
    tally.finish("an encoder alone");
}
