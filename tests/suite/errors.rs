//! Bad input gets an error of one clear sentence, and never a panic: what was expected, what came, what to do.

use std::fs;

use crate::common::{raw, tokenizer};
use rstest::rstest;
use serde_json::{json, Value};
use tch::{Kind, Tensor};
use tch_lens::config::{Activation, MlpConfig};
use tch_lens::{
    hook, Bos, Config, Error, HookFilter, HookPoint, HookedTransformer, Hooks, Input, LoadOptions, ReturnType,
    RunOptions, Slice, Tokens,
};
use tempfile::TempDir;

/// The sentence of an error, whose paths are given without `folder`.
fn sentence<T>(result: Result<T, Error>, folder: Option<&TempDir>) -> String {
    let Err(error) = result else { panic!("expected an error") };
    let mut text = error.to_string();
    if let Some(folder) = folder {
        text = text.replace(&folder.path().display().to_string(), "…");
    }
    assert!(!text.contains('\n') && text.len() < 800, "no sentence: {text}");
    text
}

/// Asserts that `result` is an error of this sentence.
#[track_caller]
fn says<T>(result: Result<T, Error>, expected: &str) {
    assert_eq!(sentence(result, None), expected);
}

// --- checkpoints ------------------------------------------------------------------------------------------------------

/// A safetensors file taken apart.
struct Parts {
    header: Value,
    data: Vec<u8>,
}

impl Parts {
    fn of(family: &str) -> Self {
        let bytes = fs::read(fixture(family).join("model.safetensors")).unwrap();
        let start = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        Parts { header: serde_json::from_slice(&bytes[8..start]).unwrap(), data: bytes[start..].to_vec() }
    }

    fn bytes(&self) -> Vec<u8> {
        let header = self.header.to_string();
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &self.data].concat()
    }

    /// Adds an fp32 tensor of zeros.
    fn add(&mut self, name: &str, shape: &[usize]) {
        let (start, len) = (self.data.len(), 4 * shape.iter().product::<usize>());
        self.data.extend(vec![0; len]);
        self.header[name] = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, start + len] });
    }

    /// Takes a tensor's name away, so that it is another one; its bytes stay.
    fn rename(&mut self, name: &str, to: &str) {
        let entry = self.header.as_object_mut().unwrap().remove(name).unwrap();
        self.header[to] = entry;
    }

    /// The same tensors with nothing between their bytes.
    fn without_gaps(&self) -> Parts {
        let mut packed = Parts { header: json!({}), data: Vec::new() };
        for (name, entry) in self.header.as_object().unwrap() {
            let Some(offsets) = entry["data_offsets"].as_array() else { continue };
            let (start, end) = (offsets[0].as_u64().unwrap() as usize, offsets[1].as_u64().unwrap() as usize);
            packed.header[name] = entry.clone();
            packed.header[name]["data_offsets"] = json!([packed.data.len(), packed.data.len() + end - start]);
            packed.data.extend(&self.data[start..end]);
        }
        packed
    }
}

fn fixture(family: &str) -> std::path::PathBuf {
    crate::common::fixtures().join(family)
}

/// A folder with the configuration of `gpt2` and these weights.
fn folder(weights: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture("gpt2").join("config.json"), folder.path().join("config.json")).unwrap();
    fs::write(folder.path().join("model.safetensors"), weights).unwrap();
    folder
}

/// What loading `folder` says.
fn loading(folder: &TempDir) -> String {
    sentence(LoadOptions::new().open(folder.path()), Some(folder))
}

const WTE: &str = "transformer.wte.weight";

#[test]
fn the_parts_of_a_whole_file_are_a_whole_file() {
    assert!(LoadOptions::new().open(folder(&Parts::of("gpt2").bytes()).path()).is_ok());
}

#[test]
fn no_such_folder() {
    says(HookedTransformer::from_pretrained("no/such/folder"), "no/such/folder: there is no such folder");
}

#[test]
fn a_folder_without_a_config() {
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(loading(&empty), "…/config.json: No such file or directory (os error 2)");
}

#[rstest]
#[case("{", "…/config.json: EOF while parsing an object at line 1 column 1")]
#[case("[]", "…/config.json: invalid type: sequence, expected a map at line 1 column 0")]
#[case("\u{0}", "…/config.json: expected value at line 1 column 1")]
#[case("", "…/config.json: EOF while parsing a value at line 1 column 0")]
fn a_config_that_is_no_json_object(#[case] text: &str, #[case] expected: &str) {
    let folder = folder(&Parts::of("gpt2").bytes());
    fs::write(folder.path().join("config.json"), text).unwrap();
    assert_eq!(loading(&folder), expected);
}

#[rstest]
#[case("n_head", json!(0), "config field `n_heads` is 0: it must be between 1 and 2^28")]
#[case("n_head", json!(-3), "config field `n_head` is -3: it cannot be read: invalid value: integer `-3`, expected usize")]
#[case("n_head", json!("three"), "config field `n_head` is \"three\": it cannot be read: invalid type: string \"three\", expected usize")]
#[case("n_layer", json!(1u64 << 40), "config field `n_layers` is 1099511627776: it must be between 1 and 4096")]
#[case("activation_function", json!("hardswish"), "config field `activation_function` is hardswish: this activation function is not supported")]
#[case("add_cross_attention", json!(true), "config field `add_cross_attention` is true: only false is supported")]
fn a_config_of_nonsense(#[case] field: &str, #[case] value: Value, #[case] expected: &str) {
    let folder = folder(&Parts::of("gpt2").bytes());
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[field] = value;
    fs::write(&path, config.to_string()).unwrap();
    assert_eq!(loading(&folder), expected);
}

#[rstest]
#[case(json!({ "architectures": ["BertModel"] }), "architecture `BertModel` is not supported")]
#[case(json!({ "model_type": "blip" }), "architecture `blip` is not supported")]
#[case(json!({}), "architecture `(none)` is not supported")]
fn an_unknown_architecture(#[case] config: Value, #[case] expected: &str) {
    let folder = folder(&[]);
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let found = loading(&folder);
    let known = HookedTransformer::supported().len();
    assert_eq!(found, format!("{expected}; `HookedTransformer::supported()` lists the {known} that are"));
}

#[test]
fn no_weights() {
    let folder = folder(&[]);
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let expected =
        "…: no weights here: expected model.safetensors, pytorch_model.bin, or shards of either and their index";
    assert_eq!(loading(&folder), expected);
}

/// What is wrong with a file whose header lies, or that ends too early.
#[rstest]
#[case::empty(|_: &mut Parts| vec![], "header too small")]
#[case::four_bytes(|p: &mut Parts| p.bytes()[..4].to_vec(), "header too small")]
#[case::half_a_header(|p: &mut Parts| p.bytes()[..100].to_vec(), "invalid header length")]
#[case::half_the_data(|p: &mut Parts| { let all = p.bytes(); all[..all.len() / 2].to_vec() }, "incomplete metadata, file not fully covered")]
#[case::huge_length(|p: &mut Parts| { let mut all = p.bytes(); all[..8].fill(0xff); all }, "header too large")]
#[case::long_length(|p: &mut Parts| { let mut all = p.bytes(); all[..8].copy_from_slice(&(90u64 << 20).to_le_bytes()); all }, "invalid header length")]
#[case::no_json(|p: &mut Parts| { let mut all = p.bytes(); all[8] = b'['; all }, "invalid JSON in header")]
#[case::no_text(|p: &mut Parts| { let mut all = p.bytes(); all[20] = 0xff; all }, "invalid UTF-8 in header")]
#[case::beyond_the_file(|p: &mut Parts| { p.data.truncate(100); p.bytes() }, "incomplete metadata, file not fully covered")]
#[case::bytes_left_over(|p: &mut Parts| { p.data.extend([0; 4]); p.bytes() }, "incomplete metadata, file not fully covered")]
#[case::overlapping(|p: &mut Parts| { p.add("extra", &[4]); p.header["extra"]["data_offsets"] = json!([0, 16]); p.bytes() }, "invalid offset for tensor")]
#[case::backwards(|p: &mut Parts| { p.add("extra", &[4]); let end = p.data.len(); p.header["extra"]["data_offsets"] = json!([end, end - 16]); p.bytes() }, "invalid offset for tensor `extra`")]
#[case::wrong_dtype(|p: &mut Parts| { p.header[WTE]["dtype"] = json!("F64"); p.bytes() }, "invalid shape, data type, or offset for tensor")]
#[case::no_dtype(|p: &mut Parts| { p.header[WTE]["dtype"] = json!("F7"); p.bytes() }, "invalid JSON in header: unknown variant `F7`")]
#[case::overflowing(|p: &mut Parts| { p.header[WTE]["shape"] = json!([1u64 << 40, 1u64 << 40]); p.bytes() }, "overflow computing buffer size")]
#[case::negative(|p: &mut Parts| { p.header[WTE]["shape"] = json!([-96, -24]); p.bytes() }, "invalid JSON in header")]
fn a_damaged_or_lying_safetensors_file(#[case] damage: fn(&mut Parts) -> Vec<u8>, #[case] expected: &str) {
    let found = loading(&folder(&damage(&mut Parts::of("gpt2"))));
    let expected = format!("…/model.safetensors: this is not a whole safetensors file: {expected}");
    assert!(found.starts_with(&expected), "{found}");
}

#[test]
fn a_kind_of_number_that_no_weight_has() {
    let mut parts = Parts::of("gpt2");
    parts.add("extra", &[4]);
    parts.header["extra"]["dtype"] = json!("F8_E5M2");
    parts.header["extra"]["shape"] = json!([16]);
    assert_eq!(
        loading(&folder(&parts.bytes())),
        "…/model.safetensors: tensor `extra` has dtype F8_E5M2, which is not supported"
    );
}

/// Whatever bytes a file holds, it loads or it is an error.
#[test]
fn any_byte_of_a_header_may_be_wrong() {
    use proptest::prelude::*;
    let whole = Parts::of("gpt2").bytes();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    proptest!(crate::common::properties(), |(at in 0..header, byte in any::<u8>(), cut in any::<prop::sample::Index>())| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        let _ = LoadOptions::new().open(folder(&bytes).path());
        bytes.truncate(cut.index(whole.len()));
        prop_assert!(LoadOptions::new().open(folder(&bytes).path()).is_err());
    });
}

#[test]
fn a_missing_tensor() {
    let mut parts = Parts::of("gpt2");
    parts.header.as_object_mut().unwrap().remove(WTE);
    let expected = "the checkpoint has no tensor `transformer.wte.weight` (expected with shape [96, 24])";
    assert_eq!(loading(&folder(&parts.without_gaps().bytes())), expected);
}

#[rstest]
#[case::missing(
    "transformer.h.1.mlp.c_fc.bias",
    "the checkpoint has no tensor `transformer.h.1.mlp.c_fc.bias` (expected with shape [96])"
)]
#[case::missing_matrix(
    "transformer.h.0.attn.c_attn.weight",
    "the checkpoint has no tensor `transformer.h.0.attn.c_attn.weight` (expected with shape [24, 72])"
)]
fn a_tensor_under_another_name(#[case] name: &str, #[case] expected: &str) {
    let mut parts = Parts::of("gpt2");
    parts.rename(name, "transformer.other");
    assert_eq!(loading(&folder(&parts.bytes())), expected);
}

#[test]
fn extra_tensors() {
    let mut parts = Parts::of("gpt2");
    parts.add("transformer.h.0.attn.extra", &[3, 4]);
    let expected =
        "the checkpoint has 1 tensor(s) that this configuration does not use: `transformer.h.0.attn.extra` [3, 4]";
    assert_eq!(loading(&folder(&parts.bytes())), expected);
    for i in 1..8 {
        parts.add(&format!("transformer.h.{i}.attn.extra"), &[i]);
    }
    let found = loading(&folder(&parts.bytes()));
    assert!(
        found.starts_with("the checkpoint has 8 tensor(s)") && found.ends_with("`transformer.h.4.attn.extra` [4], …"),
        "{found}"
    );
}

#[rstest]
#[case(WTE, json!([24, 96]), "has shape [24, 96] in the checkpoint, but the configuration implies [96, 24]")]
#[case(WTE, json!([2304]), "has shape [2304] in the checkpoint, but the configuration implies [96, 24]")]
#[case("transformer.ln_f.weight", json!([4, 6]), "has shape [4, 6] in the checkpoint, but the configuration implies [24]")]
#[case("transformer.h.0.mlp.c_fc.weight", json!([96, 24]), "has shape [96, 24] in the checkpoint, but the configuration implies [24, 96]")]
fn a_misshapen_tensor(#[case] name: &str, #[case] shape: Value, #[case] expected: &str) {
    let mut parts = Parts::of("gpt2");
    parts.header[name]["shape"] = shape;
    assert_eq!(loading(&folder(&parts.bytes())), format!("tensor `{name}` {expected}"));
}

/// Queries, keys and values lie in one tensor, of which none may be left over.
#[rstest]
#[case("gpt2", "transformer.h.0.attn.c_attn.weight", &[24, 73], "[24, 72]")]
#[case("gpt2", "transformer.h.1.attn.c_attn.bias", &[96], "[72]")]
#[case("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight", &[96, 33], "[96, 32]")]
#[case("phi3", "model.layers.0.mlp.gate_up_proj.weight", &[98, 32], "[96, 32]")]
#[case("opt", "model.decoder.embed_positions.weight", &[67, 32], "[66, 32]")]
fn a_tensor_that_holds_more_than_its_parts(
    #[case] family: &str,
    #[case] name: &str,
    #[case] shape: &[usize],
    #[case] expected: &str,
) {
    let mut parts = Parts::of(family);
    parts.rename(name, "other");
    parts.add(name, shape);
    let folder = folder(&parts.bytes());
    fs::copy(fixture(family).join("config.json"), folder.path().join("config.json")).unwrap();
    let expected =
        format!("tensor `{name}` has shape {shape:?} in the checkpoint, but the configuration implies {expected}");
    assert_eq!(loading(&folder), expected);
}

#[rstest]
#[case(r#"{ "weight_map": { "a": "one.safetensors" } }"#, "…/one.safetensors: No such file or directory (os error 2)")]
#[case(
    r#"{ "weight_map": { "a": "../x" } }"#,
    "…/model.safetensors.index.json: shard `../x` lies outside the folder of its index"
)]
#[case(
    r#"{ "weight_map": { "a": "/etc/passwd" } }"#,
    "…/model.safetensors.index.json: shard `/etc/passwd` lies outside the folder of its index"
)]
#[case(
    r#"{ "weight_map": { "a": "" } }"#,
    "…/model.safetensors.index.json: shard `` lies outside the folder of its index"
)]
#[case(r#"{ "weight_map": {} }"#, "…/model.safetensors.index.json: the file has no shards: its `weight_map` is empty")]
#[case("{}", "…/model.safetensors.index.json: missing field `weight_map` at line 1 column 2")]
#[case("weights", "…/model.safetensors.index.json: expected value at line 1 column 1")]
fn an_index_of_shards_that_are_not_there(#[case] index: &str, #[case] expected: &str) {
    let folder = folder(&[]);
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert_eq!(loading(&folder), expected);
}

#[test]
fn one_tensor_in_two_shards() {
    let folder = folder(&Parts::of("gpt2").bytes());
    let path = |name: &str| folder.path().join(name);
    fs::rename(path("model.safetensors"), path("one.safetensors")).unwrap();
    fs::copy(path("one.safetensors"), path("two.safetensors")).unwrap();
    let index = json!({ "weight_map": { "a": "one.safetensors", "b": "two.safetensors" } });
    fs::write(path("model.safetensors.index.json"), index.to_string()).unwrap();
    let found = loading(&folder);
    assert!(
        found.starts_with("…/two.safetensors: tensor `")
            && found.ends_with("` is there twice, here or in another shard"),
        "{found}"
    );
}

// --- prompts ----------------------------------------------------------------------------------------------------------

const EMPTY: &str = "the prompt has no tokens: give at least one token, or prepend the BOS token";

#[rstest]
#[case(Input::Ids(vec![]))]
#[case(Input::Ids(vec![vec![]]))]
#[case(Input::Ids(vec![vec![1, 2], vec![]]))]
#[case(Input::Texts(vec![]))]
#[case(Input::Tensor(Tensor::new()))]
#[case(Input::Tensor(Tensor::zeros([0], (Kind::Int64, tch::Device::Cpu))))]
#[case(Input::Tensor(Tensor::zeros([2, 0], (Kind::Int64, tch::Device::Cpu))))]
#[case(Input::Tensor(Tensor::zeros([0, 2], (Kind::Int64, tch::Device::Cpu))))]
fn a_prompt_of_no_tokens(#[case] input: Input) {
    says(raw("gpt2").with_tokenizer(tokenizer()).forward(input), EMPTY);
}

#[test]
fn an_empty_text() {
    let model = raw("gpt2").with_tokenizer(tokenizer());
    assert!(model.run("", RunOptions::new()).is_ok()); // BOS
    says(model.run("", RunOptions::new().prepend_bos(Bos::No)), EMPTY);
    says(model.run(vec!["the road", ""], RunOptions::new().prepend_bos(Bos::No)), EMPTY);
}

#[test]
fn a_prompt_longer_than_the_context() {
    let model = raw("gpt2");
    assert!(model.forward(vec![5; 64]).is_ok());
    says(model.forward(vec![5; 65]), "the prompt has 65 tokens, and the model's context holds 64: shorten it");
    says(
        model.forward(vec![vec![5], vec![5; 65]]),
        "the prompt has 65 tokens, and the model's context holds 64: shorten it",
    );
}

#[rstest]
#[case(96)]
#[case(-1)]
#[case(i64::MAX)]
#[case(i64::MIN)]
fn a_token_id_out_of_range(#[case] id: i64) {
    let expected = format!("token id {id} is out of range: the vocabulary has 96 entries, 0 to 95");
    says(raw("gpt2").forward([5, id, 7]), &expected);
}

#[rstest]
#[case(Tensor::from_slice(&[0.5f32, 1.0]), "the tokens' tensor has shape [2], expected whole numbers, [pos] or [batch, pos]")]
#[case(Tensor::from_slice(&[1i64, 2]).reshape([1, 1, 2]), "the tokens' tensor has shape [1, 1, 2], expected whole numbers, [pos] or [batch, pos]")]
#[case(Tensor::from(3i64), "the tokens' tensor has shape [], expected whole numbers, [pos] or [batch, pos]")]
fn tokens_of_another_shape_or_kind(#[case] ids: Tensor, #[case] expected: &str) {
    says(raw("gpt2").forward(ids), expected);
}

#[test]
fn tokens_made_by_hand() {
    let ids = |shape: &[i64]| Tensor::ones(shape, (Kind::Int64, tch::Device::Cpu));
    let run = |tokens: Tokens| raw("gpt2").forward(tokens);
    says(
        run(Tokens { ids: ids(&[3]), mask: None, types: None }),
        "the tokens' tensor has shape [3], expected int64, [batch, pos]",
    );
    let short = Some(ids(&[2, 2]).to_kind(Kind::Bool));
    says(
        run(Tokens { ids: ids(&[2, 3]), mask: short, types: None }),
        "the tokens' mask has shape [2, 2], expected bools, [2, 3]",
    );
    let whole = Some(ids(&[2, 3]));
    says(
        run(Tokens { ids: ids(&[2, 3]), mask: whole, types: None }),
        "the tokens' mask has shape [2, 3], expected bools, [2, 3]",
    );
}

#[test]
fn a_text_without_a_tokenizer() {
    let model = raw("gpt2");
    let expected = "this model has no tokenizer: give token ids, or load one with `with_tokenizer`";
    says(model.forward("the road"), expected);
    says(model.to_tokens("the road"), expected);
    says(model.to_string([1]), expected);
    says(model.to_str_tokens("the road"), expected);
    says(model.to_single_token("the"), expected);
    says(model.to_single_str_token(1), expected);
}

#[test]
fn an_answer_of_several_tokens() {
    let model = raw("gpt2").with_tokenizer(tokenizer());
    says(model.to_single_token("the road"), "`the road` is 2 tokens (`the`, `road`), but exactly one is needed");
    says(model.to_single_token(""), "`` is 0 tokens (), but exactly one is needed");
    let expected = "`rode`, at character 0 of the text, is not in the tokenizer's vocabulary and would become `<unk>`";
    says(model.to_single_token("rode"), expected);
    says(
        model.forward("the rode"),
        &expected
            .replace("character 0", "character 4")
            .replace("`<unk>`", "`<unk>`; use other words, or let them pass with `Tokenizer::allow_unknown`"),
    );
    let expected = "token id 5 is out of range: the vocabulary has 5 entries, 0 to 4";
    says(model.to_string([1, 5]), expected);
    // The model's vocabulary is larger than the tokenizer's.
    assert_eq!(model.to_single_str_token(5).unwrap(), "<id 5>");
    assert_eq!(model.to_single_token("<id 95>").unwrap(), 95);
    let expected = "token id 96 is out of range: the vocabulary has 96 entries, 0 to 95";
    says(model.to_single_str_token(96), expected);
    says(model.to_single_token("<id 96>"), expected);
}

#[test]
fn a_loss_of_nothing() {
    let model = raw("gpt2");
    let expected = "a loss needs at least two tokens, because nothing predicts the first one";
    says(model.loss([5]), expected);
    says(model.run(vec![vec![5], vec![6]], RunOptions::new().return_type(ReturnType::Both)), expected);
    says(
        model.run([5, 6], RunOptions::new().return_type(ReturnType::Loss).logits_at(-1)),
        "the run's `logits_at` cannot be used: a loss needs the logits at all positions",
    );
    let classifier = raw("toy_bidir_classifier");
    let expected = "a loss needs one logit for each of 20 tokens, but this model has 5 outputs";
    says(classifier.loss([5, 6]), expected);
}

// --- names ------------------------------------------------------------------------------------------------------------

const PROMPT: [i64; 5] = [5, 17, 3, 60, 9];

/// What caching this says.
fn caching<'a>(family: &str, select: impl Into<HookFilter<'a>>) -> String {
    sentence(raw(family).run_with_cache_of(PROMPT, select), None)
}

#[rstest]
#[case("blocks.0.attn.hook_qq", "blocks.0.attn.hook_q")]
#[case("blocks.1.attn.hook_patern", "blocks.1.attn.hook_pattern")]
#[case("blocks.0.atn.hook_q", "blocks.0.attn.hook_q")]
#[case("block.1.mlp.hook_pots", "blocks.1.mlp.hook_post")]
#[case("blocks.0.hook_resid_posts", "blocks.0.hook_resid_post")]
#[case("blocks.0.hook_pattern", "blocks.0.attn.hook_pattern")]
#[case("blocks.1.attn.pattern", "blocks.1.attn.hook_pattern")]
#[case("hook_embd", "hook_embed")]
#[case("embd", "hook_embed")]
#[case("patern", "blocks.0.attn.hook_pattern")]
#[case("patern1", "blocks.1.attn.hook_pattern")]
#[case("resid-post", "blocks.0.hook_resid_post")]
#[case("ln_final.hook_scal", "ln_final.hook_scale")]
fn a_mistyped_name(#[case] name: &str, #[case] nearest: &str) {
    let expected = format!("there is no hook point `{name}`; the nearest is `{nearest}`");
    assert_eq!(caching("gpt2", name), expected);
    let model = raw("gpt2");
    says(model.run_with_hooks(PROMPT, Hooks::new().observe(name, |_, _| ())), &expected);
    says(model.run_with_cache(PROMPT).unwrap().1.get(name), &expected);
}

/// The whole comparison would take minutes.
#[test]
fn a_mistyped_name_of_ten_million_characters() {
    let model = raw("gpt2");
    for name in ["blocks.1.attn.hook_patern".to_string() + &"x".repeat(10_000_000), "ü".repeat(10_000_000)] {
        let error = model.run_with_cache_of(PROMPT, name.as_str()).unwrap_err();
        assert!(matches!(&error, Error::UnknownHook { name: found, nearest } if *found == name && !nearest.is_empty()));
        let message = error.to_string();
        assert!(message.len() < 300 && message.contains('…'), "{} characters", message.len());
    }
}

#[test]
fn a_mistyped_short_hand() {
    let of = |name| caching("gpt2", name);
    let expected = "there is no hook point `blocks.1.hook_patern`; the nearest is `blocks.1.attn.hook_pattern`";
    assert_eq!(of(("patern", 1)), expected);
    let found = caching("gpt2", ("scale", 1, "ln3"));
    assert_eq!(found, "there is no hook point `blocks.1.ln3.hook_scale`; the nearest is `blocks.1.ln1.hook_scale`");
    for odd in ["", " ", "hook_", "blocks.", "blocks.0.", "blocks.x.hook_q", "0", "q0x", "q99999999999999999999", "ü"]
    {
        assert!(of((odd, 0)).starts_with("there is no hook point"), "{odd}");
        assert!(caching("gpt2", odd).starts_with("there is no hook point"), "{odd}");
    }
}

#[rstest]
#[case("toy_parallel", "blocks.0.hook_resid_mid", "its attention and MLP run in parallel; both read resid_pre")]
#[case("toy_attn_only_2l_ln", "blocks.1.hook_resid_mid", "it has no MLPs, so resid_post follows attention")]
#[case("toy_attn_only_2l_ln", "blocks.1.mlp.hook_post", "it has no MLPs")]
#[case("toy_no_norm", "blocks.0.ln1.hook_scale", "it has no norms")]
#[case("gpt2", "blocks.0.attn.hook_rot_q", "its positions are not rotary")]
#[case("gpt2", "blocks.0.mlp.hook_pre_linear", "its MLPs are not gated")]
#[case("gpt2", "blocks.0.mlp.experts.0.hook_pre", "its MLP there is not a mixture of experts")]
#[case("llama", "hook_pos_embed", "it has no learned position embeddings")]
#[case("llama", "blocks.0.mlp.hook_mid", "its neurons have no norm of their own")]
fn a_site_that_this_model_has_not(#[case] family: &str, #[case] name: &str, #[case] why: &str) {
    let expected = format!("this model has no `{name}`: {why}");
    assert_eq!(caching(family, name), expected);
    says(raw(family).run_with_cache(PROMPT).unwrap().1.get(name), &expected);
}

#[rstest]
#[case(2)]
#[case(-3)]
#[case(i64::MAX)]
#[case(i64::MIN)]
fn a_layer_out_of_range(#[case] layer: i64) {
    let expected =
        format!("layer {layer} is out of range: the model has 2 layers, so -2 to 1 (negative ones count from the end)");
    let model = raw("gpt2");
    assert_eq!(caching("gpt2", ("resid_post", layer)), expected);
    assert_eq!(caching("gpt2", ("scale", layer, "ln1")), expected);
    says(model.run_with_cache(PROMPT).unwrap().1.get(("q", layer)), &expected);
    says(model.run_with_hooks(PROMPT, Hooks::new().observe(("q", layer), |_, _| ())), &expected);
    if layer >= 0 {
        assert_eq!(caching("gpt2", format!("blocks.{layer}.hook_resid_post")), expected);
        assert_eq!(caching("gpt2", format!("q{layer}")), expected);
        assert_eq!(caching("gpt2", hook::q(layer as usize)), expected);
    }
    if layer != 2 {
        says(model.run(PROMPT, RunOptions::new().stop_at_layer(layer)), &expected);
    }
}

#[test]
fn a_layer_past_all_numbers() {
    let found = caching("gpt2", hook::q(usize::MAX));
    assert!(found.contains("is out of range: the model has 2 layers"), "{found}");
}

#[test]
fn a_filter_that_matches_nothing() {
    assert_eq!(caching("gpt2", HookFilter::names(|_| false)), "the predicate matches no hook point of this model");
    assert_eq!(caching("gpt2", Vec::<String>::new()), "an empty list of names matches no hook point of this model");
    let found = caching("gpt2", HookFilter::names(|name| name.ends_with("hook_result")));
    let expected = "the predicate matches no hook point of this model: `blocks.0.attn.hook_result` is computed on request only, so ask for it by name";
    assert_eq!(found, expected);
    let hooks = Hooks::new().observe(HookFilter::matching(|_| false), |_, _| ());
    says(raw("gpt2").run_with_hooks(PROMPT, hooks), "the predicate matches no hook point of this model");
}

#[test]
fn a_point_beyond_the_last_layer_that_runs() {
    let model = raw("gpt2");
    let run = |name: HookPoint| model.run(PROMPT, RunOptions::new().stop_at_layer(1).cache(name));
    assert!(run(hook::resid_post(0)).is_ok());
    says(run(hook::q(1)), "`blocks.1.attn.hook_q` is never reached: the run stops before layer 1");
    says(run(hook::unembed_in()), "`unembed.hook_in` is never reached: the run stops before layer 1");
    let late = HookFilter::names(|name| name.starts_with("blocks.1."));
    let expected = "the predicate matches no hook point of this model that is reached: the run stops before layer 1";
    says(model.run(PROMPT, RunOptions::new().stop_at_layer(1).cache(late)), expected);
    let hooks = Hooks::new().replace(hook::z(1), |z, _| z.zeros_like());
    says(
        model.run(PROMPT, RunOptions::new().stop_at_layer(1).hooks(hooks)),
        "`blocks.1.attn.hook_z` is never reached: the run stops before layer 1",
    );
}

// --- hooks ------------------------------------------------------------------------------------------------------------

#[rstest]
#[case::shape(|z: &Tensor| z.narrow(1, 0, 4), "Float [1, 4, 3, 8]")]
#[case::would_broadcast(|z: &Tensor| z.narrow(2, 0, 1), "Float [1, 5, 1, 8]")]
#[case::number(|_: &Tensor| Tensor::from(0.0f32), "Float []")]
#[case::kind(|z: &Tensor| z.to_kind(Kind::Double), "Double [1, 5, 3, 8]")]
fn a_replacement_of_another_shape_or_kind(#[case] change: fn(&Tensor) -> Tensor, #[case] found: &str) {
    let hooks = Hooks::new().replace(hook::z(1), |z, _| change(z));
    let expected = format!(
        "the hook at `blocks.1.attn.hook_z` returned {found} on Cpu, but must return what it replaces: Float [1, 5, 3, 8] on Cpu"
    );
    says(raw("gpt2").run_with_hooks(PROMPT, hooks), &expected);
}

#[test]
fn a_replacement_that_is_no_tensor() {
    let hooks = Hooks::new().replace(hook::z(1), |_, _| Tensor::new());
    says(raw("gpt2").run_with_hooks(PROMPT, hooks), "the hook at `blocks.1.attn.hook_z` returned an undefined tensor");
}

#[test]
fn a_hook_that_fails() {
    let hooks = Hooks::new().observe(hook::z(1), |_, _| Err::<(), _>("no probe for this layer"));
    let result = raw("gpt2").run_with_hooks(PROMPT, hooks);
    assert!(matches!(&result, Err(Error::Hook { name, .. }) if name == "blocks.1.attn.hook_z"));
    says(result, "the hook at `blocks.1.attn.hook_z` failed: no probe for this layer");
    // What a hook does with tensors may fail as well.
    let hooks = Hooks::new().replace(hook::z(1), |z, _| z.f_add(&Tensor::from_slice(&[1.0f32, 2.0, 3.0])));
    let found = sentence(raw("gpt2").run_with_hooks(PROMPT, hooks), None);
    assert!(found.starts_with("the hook at `blocks.1.attn.hook_z` failed: "), "{found}");
}

#[test]
fn one_stream_for_each_of_several_heads_that_share_keys() {
    let hooks = Hooks::new().replace("attn_in", |x, _| x.zeros_like());
    let expected =
        "a hook that changes `hook_attn_in` needs as many keys and values as heads; in this grouped-query model, hook \
                    `hook_q_input`, `hook_k_input` and `hook_v_input`";
    says(raw("llama_gqa_tied").run_with_hooks(PROMPT, hooks), expected);
}

// --- caches and slices ------------------------------------------------------------------------------------------------

#[test]
fn what_the_cache_did_not_keep() {
    let model = raw("gpt2");
    let (_, cache) = model.run_with_cache_of(PROMPT, "resid_post").unwrap();
    says(cache.get(("q", 0)), "the cache has no `blocks.0.attn.hook_q`: run again with it in the cache's filter");
    let (_, cache) = model.run_with_cache(PROMPT).unwrap();
    let expected =
        "the cache has no `blocks.0.attn.hook_result`: it is computed on request only, so run again with it \
                    in the cache's filter";
    says(cache.get(("result", 0)), expected);
    assert!(!cache.contains("result0") && !cache.contains("nonsense") && cache.contains("q0"));
}

#[test]
fn a_batch_dimension_that_cannot_go() {
    let (_, cache) = raw("gpt2").run_with_cache(vec![vec![5, 6], vec![7, 8]]).unwrap();
    let expected =
        "the batch dimension can go only where it has one row, not 2: choose one with apply_slice_to_batch_dim";
    says(cache.clone().remove_batch_dim(), expected);
    let one = cache.apply_slice_to_batch_dim(1).unwrap();
    says(one.apply_slice_to_batch_dim(0), "the cache has no batch dimension to slice: it was removed");
}

#[rstest]
#[case(Slice::from(5), "index 5 is out of range for the position axis, which has 5 entries")]
#[case(Slice::from(-6), "index -6 is out of range for the position axis, which has 5 entries")]
#[case(Slice::from([0, 5]), "the list [0, 5] is out of range for the position axis, which has 5 entries")]
#[case(Slice::from(vec![true, false]), "a mask of 2 entries is out of range for the position axis, which has 5 entries")]
#[case(Slice::from((0, 3, 0)), "the step of a slice must be at least 1, but is 0")]
#[case(Slice::from(Tensor::from_slice(&[0.5f32])), "the tensor used as a slice has shape [1], expected integers with at most one dimension, or bools with one")]
fn a_slice_out_of_range(#[case] slice: Slice, #[case] expected: &str) {
    let model = raw("gpt2");
    says(model.run(PROMPT, RunOptions::new().cache("z").pos(slice.clone())), expected);
    says(model.run(PROMPT, RunOptions::new().logits_at(slice.clone())), expected);
    let (_, cache) = model.run_with_cache(vec![PROMPT.to_vec(); 5]).unwrap();
    says(cache.apply_slice_to_batch_dim(slice), &expected.replace("position", "batch"));
}

// --- configurations of one's own --------------------------------------------------------------------------------------

#[rstest]
#[case(Config { n_heads: 3, n_key_value_heads: 2, ..small() }, "config field `n_key_value_heads` is 2: it must divide n_heads, 3")]
#[case(with(|config| config.mlp = Some(MlpConfig::plain(0, Activation::Relu))), "config field `mlp.d_mlp` is 0: it must be between 1 and 2^28")]
#[case(Config { d_vocab_out: 0, ..small() }, "config field `d_vocab_out` is 0: it must be between 1 and 2^28")]
#[case(with(|config| config.norms.eps = f64::NAN), "config field `norms.eps` is NaN: it must be a number between 1.1754943508222875e-38 and 1e0")]
fn a_shape_that_no_model_can_have(#[case] config: Config, #[case] expected: &str) {
    says(HookedTransformer::init(config, 0), expected);
}

fn with(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = small();
    change(&mut config);
    config
}

fn small() -> Config {
    Config::new(1, 8, 2, 9, 8)
}
