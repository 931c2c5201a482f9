//! Quantised checkpoints against what transformers computes with their dequantised weights: the folders of
//! `tests/fixtures/quantized`, GGUF files and `quantization_config`s. A folder more is a case more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rstest::rstest;
use serde_json::{json, Value};
use tch::{Kind, Tensor};
use tch_lens::{HookedTransformer, LoadOptions};

use crate::common::{fixtures, read, Tally};

const TOLERANCE: f64 = 1e-4;

fn folder(name: &str) -> PathBuf {
    fixtures().join("quantized").join(name)
}

/// The names of all cases, in alphabetical order.
fn cases() -> Vec<String> {
    let entries = std::fs::read_dir(fixtures().join("quantized")).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
    let mut names: Vec<String> = folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A copy of a case, whose files can be changed.
fn copy(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(folder(name)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

/// The tensors that a model has in its family's own form.
fn hugging_face(model: &HookedTransformer) -> BTreeMap<String, Tensor> {
    let folder = tempfile::tempdir().unwrap();
    model.save_hugging_face(folder.path(), Kind::Float).unwrap();
    let config: Value = serde_json::from_slice(&std::fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    assert!(config.get("quantization_config").is_none());
    read(&folder.path().join("model.safetensors"))
}

#[test]
fn logits_are_those_of_the_dequantised_weights() {
    let mut tally = Tally::default();
    let names = cases();
    for name in &names {
        let expected = read(&folder(name).join("expected.safetensors"));
        for (how, load) in [("raw", LoadOptions::new().no_processing()), ("processed", LoadOptions::new())] {
            match load.open(folder(name)) {
                Ok(model) => {
                    let log_probs = |logits: &Tensor| logits.log_softmax(-1, Kind::Float);
                    let logits = model.forward(&expected["tokens"]).unwrap();
                    let what = format!("{name}, {how}");
                    tally.compare(&what, &log_probs(&logits), &log_probs(&expected["logits"]), TOLERANCE);
                    if how == "raw" {
                        tally.compare(&what, &logits, &expected["logits"], TOLERANCE);
                    }
                }
                Err(error) => tally.failures.push(format!("{name}, {how}: {error}")),
            }
        }
    }
    println!("{} quantised checkpoints", names.len());
    assert!(names.len() >= 30);
    tally.finish("logits of quantised checkpoints");
}

/// The numbers themselves, bit for bit, of the methods of `quantization_config`. Those of GGUF are in `src/format/quantized`.
#[test]
fn weights_are_the_references_bit_for_bit() {
    let mut tally = Tally::default();
    let mut count = 0;
    for name in cases().iter().filter(|name| !folder(name).join("model.gguf").exists()) {
        let expected = read(&folder(name).join("expected.safetensors"));
        let model = LoadOptions::new().no_processing().open(folder(name)).unwrap();
        let found = hugging_face(&model);
        for (key, want) in &expected {
            let Some(weight) = key.strip_prefix("weight.") else { continue };
            tally.compare(&format!("{name}, {weight}"), &found[weight], want, 0.0);
            count += 1;
        }
    }
    println!("{count} dequantised weights");
    assert!(count >= 30);
    tally.finish("dequantised weights");
}

/// What is loaded of a quantised checkpoint is saved and loaded like any other.
#[rstest]
#[case("falcon_40b")]
#[case("gptq_gpt2")]
#[case("mxfp4")]
fn a_dequantised_model_is_saved_as_a_plain_one(#[case] name: &str) {
    let tokens = &read(&folder(name).join("expected.safetensors"))["tokens"];
    let model = LoadOptions::new().no_processing().open(folder(name)).unwrap();
    let logits = model.forward(tokens).unwrap();
    let saved = tempfile::tempdir().unwrap();
    model.save_pretrained(saved.path()).unwrap();
    assert!(LoadOptions::new().open(saved.path()).unwrap().forward(tokens).unwrap().equal(&logits));
    let saved = tempfile::tempdir().unwrap();
    model.save_hugging_face(saved.path(), Kind::Float).unwrap();
    let again = LoadOptions::new().no_processing().open(saved.path()).unwrap();
    assert!(again.forward(tokens).unwrap().equal(&logits));
}

/// Mapped or read, as a file or as its folder, and in another kind.
#[test]
fn a_gguf_file_is_a_model_by_itself() {
    let file = folder("llama_bpe").join("model.gguf");
    let of_folder = HookedTransformer::from_pretrained(folder("llama_bpe")).unwrap();
    let logits = of_folder.forward([1, 2, 3]).unwrap();
    for map in [true, false] {
        let model = LoadOptions::new().memory_map(map).open(&file).unwrap();
        assert!(model.forward([1, 2, 3]).unwrap().equal(&logits));
        assert_eq!(model.config().model_name, "model");
    }
    let half = LoadOptions::new().kind(Kind::BFloat16).open(&file).unwrap();
    assert_eq!(half.forward([1, 2, 3]).unwrap().kind(), Kind::BFloat16);
}

#[test]
fn a_gguf_file_has_its_tokenizer() {
    let text = std::fs::read(fixtures().join("quantized/tokens.json")).unwrap();
    let expected: Value = serde_json::from_slice(&text).unwrap();
    for name in ["llama_bpe", "llama_spm"] {
        let model = HookedTransformer::from_pretrained(folder(name)).unwrap();
        let tokenizer = model.tokenizer().unwrap().clone().allow_unknown(true);
        for (text, want) in expected["texts"].as_array().unwrap().iter().zip(expected[name].as_array().unwrap()) {
            let text = text.as_str().unwrap();
            let want: Vec<i64> = serde_json::from_value(want.clone()).unwrap();
            let ids = tokenizer.encode(text, false).unwrap();
            assert_eq!(ids, want, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{name}");
        }
        let bos = if name == "llama_bpe" { "<|end|>" } else { "<s>" };
        assert_eq!(model.to_str_tokens("Mary").unwrap()[0], bos);
    }
}

#[test]
fn of_several_gguf_files_one_is_to_be_named() {
    let copy = copy("qwen2");
    std::fs::copy(copy.path().join("model.gguf"), copy.path().join("other.gguf")).unwrap();
    let error = LoadOptions::new().open(copy.path()).unwrap_err().to_string();
    assert!(
        error.ends_with("2 GGUF files are here: choose one with `gguf_file`: `model.gguf`, `other.gguf`"),
        "{error}"
    );
    assert!(LoadOptions::new().open(copy.path().join("other.gguf")).is_ok());
}

/// What changes the weights is refused by name; what does not, is read.
#[rstest]
#[case("gptq", json!({"bits": 3}), "quantization_config.bits` is 3")]
#[case("gptq", json!({"checkpoint_format": "marlin"}), "quantization_config.checkpoint_format` is marlin")]
#[case("gptq", json!({"dynamic": {"+:.*gate.*": {"bits": 8}}}), "modules of other bits are not supported")]
#[case("gptq", json!({"group_size": 0}), "quantization_config.group_size` is 0")]
#[case("gptq", json!({"spin": 1}), "quantization_config.spin` is given")]
#[case("gptq", json!({"bits": 8}), "`qzeros` has not the shape and dtype that its other tensors imply")]
#[case("gptq", json!({"quant_method": "hqq"}), "the method hqq is not supported: gptq, awq")]
#[case("awq", json!({"version": "gemv"}), "quantization_config.version` is gemv")]
#[case("awq", json!({"bits": 8}), "quantization_config.bits` is 8")]
#[case("awq", json!({"zero_point": false}), "quantization_config.zero_point` is false")]
#[case("awq", json!({"quant_method": "bitsandbytes"}), "is not a field of this method")]
#[case("fp8", json!({"weight_block_size": [16, 32]}), "`weight_scale_inv` has not the shape")]
#[case("fp8", json!({"fmt": "e5m2"}), "quantization_config.fmt` is e5m2")]
fn a_setting_that_is_not_supported_says_so(#[case] name: &str, #[case] change: Value, #[case] says: &str) {
    let copy = copy(name);
    let path = copy.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (field, value) in change.as_object().unwrap() {
        config["quantization_config"][field] = value.clone();
    }
    std::fs::write(&path, config.to_string()).unwrap();
    let error = LoadOptions::new().open(copy.path()).unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}

/// A file of the header, with some bytes changed.
fn changed(path: &Path, from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    bytes.splice(at..at + from.len(), to.iter().copied());
    bytes
}

/// A key that is not read, an architecture and a type that are not known.
#[rstest]
#[case("qwen2.context_length", "qwen2.context_lengti", "config field `qwen2.context_lengti` is Unsigned(64)")]
#[case(
    "general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0qwen2",
    "general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0mamba",
    "these architectures are supported: llama, qwen2"
)]
#[case("blk.0.attn_q.weight", "blk.0.attn_x.weight", "model.layers.0.self_attn.q_proj.weight")]
fn a_gguf_file_that_is_not_understood_says_so(#[case] from: &str, #[case] to: &str, #[case] says: &str) {
    let copy = copy("qwen2");
    let path = copy.path().join("model.gguf");
    std::fs::write(&path, changed(&path, from.as_bytes(), to.as_bytes())).unwrap();
    let error = LoadOptions::new().open(copy.path()).unwrap_err().to_string();
    assert!(error.contains(says), "{error}");
}

/// Any part opens the model of all, and one that is missing is named.
#[test]
fn a_gguf_file_in_parts_is_one_model() {
    let tokens = &read(&folder("split").join("expected.safetensors"))["tokens"];
    let whole = LoadOptions::new().open(folder("llama_bpe")).unwrap().forward(tokens).unwrap();
    let copy = copy("split");
    let part = |i: usize| copy.path().join(format!("model-{i:05}-of-00003.gguf"));
    for path in [copy.path().to_path_buf(), part(1), part(3)] {
        assert!(LoadOptions::new().open(path).unwrap().forward(tokens).unwrap().equal(&whole));
    }
    let named = LoadOptions::new().gguf_file("model-00002-of-00003.gguf").open(copy.path()).unwrap();
    assert!(named.forward(tokens).unwrap().equal(&whole));
    let error = LoadOptions::new().gguf_file("none.gguf").open(copy.path()).unwrap_err().to_string();
    assert!(error.ends_with("none.gguf: there is no such GGUF file"), "{error}");
    std::fs::remove_file(part(2)).unwrap();
    let error = LoadOptions::new().open(copy.path()).unwrap_err().to_string();
    assert!(error.ends_with("it is one of 3 parts, and `model-00002-of-00003.gguf` is not beside it"), "{error}");
}
