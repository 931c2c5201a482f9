//! The parameter tree: tied weights stay tied by every move, counts and names agree, and a Hugging Face folder is written back
//! as it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rstest::rstest;
use tch::nn::{self, OptimizerConfig};
use tch::{Device, Kind, Tensor};
use tch_lens::{CheckpointError, Error, HookedTransformer, LoadOptions, ReturnType, RunOptions};

use crate::common;

/// The folder of every fixture that is a model of ours, and its model as the checkpoint has it.
fn models() -> impl Iterator<Item = (String, PathBuf, HookedTransformer)> {
    common::families().into_iter().filter_map(|name| {
        let folder = common::fixtures().join(&name);
        let model = HookedTransformer::from_pretrained_no_processing(&folder).ok()?; // an encoder
        Some((name, folder, model))
    })
}

/// Whether the unembedding lies in the embedding's memory.
fn is_tied(model: &HookedTransformer) -> bool {
    model.w_e().unwrap().data_ptr() == model.w_u().unwrap().data_ptr()
}

fn tied_models() -> Vec<(String, HookedTransformer)> {
    let tied: Vec<_> = models().filter(|(_, _, model)| is_tied(model)).map(|(name, _, model)| (name, model)).collect();
    assert!(tied.len() >= 9, "{} models are tied", tied.len());
    tied
}

#[rstest]
#[case::double("to_kind(Double)", |model: &HookedTransformer| model.to_kind(Kind::Double).unwrap())]
#[case::half("to_kind(Half)", |model: &HookedTransformer| model.to_kind(Kind::Half).unwrap())]
#[case::device("to(Cpu)", |model: &HookedTransformer| model.to(Device::Cpu).unwrap())]
#[case::state_dict("state_dict", |model: &HookedTransformer| {
    LoadOptions::new().no_processing().state_dict(model.config().clone(), model.state_dict().unwrap()).unwrap()
})]
#[case::saved("save_pretrained", |model: &HookedTransformer| {
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path()).unwrap();
    HookedTransformer::from_pretrained(folder.path()).unwrap()
})]
#[case::hugging_face("save_hugging_face", |model: &HookedTransformer| {
    let folder = tempfile::tempdir().unwrap();
    model.save_hugging_face(folder.path(), Kind::Float).unwrap();
    HookedTransformer::from_pretrained_no_processing(folder.path()).unwrap()
})]
fn tied_weights_stay_tied(#[case] what: &str, #[case] change: fn(&HookedTransformer) -> HookedTransformer) {
    for (name, model) in tied_models() {
        let changed = change(&model);
        assert!(is_tied(&changed), "{name}: {what}");
        assert_eq!(changed.n_params(), model.n_params(), "{name}: {what}");
        assert!(changed.config().tie_word_embeddings, "{name}: {what}");
        let same = changed.to_kind(Kind::Float).unwrap().w_e().unwrap();
        let diff = (same - model.w_e().unwrap()).abs().max().double_value(&[]);
        assert!(diff < 2e-3, "{name}: {what}: {diff}");
    }
}

#[test]
fn a_model_in_another_kind_is_another_model() {
    let model = common::raw("llama");
    let double = model.to_kind(Kind::Double).unwrap();
    assert_eq!((model.kind(), double.kind()), (Kind::Float, Kind::Double));
    assert!(double.parameters().iter().all(|(_, tensor)| tensor.kind() == Kind::Double));
    let loaded = LoadOptions::new().no_processing().kind(Kind::Double).open(common::Fixture::folder("llama")).unwrap();
    let tokens = [1, 2, 3, 10];
    assert_eq!(double.forward(tokens).unwrap(), loaded.forward(tokens).unwrap());
    // Back again, the numbers are the same, in memory of their own.
    let back = double.to_kind(Kind::Float).unwrap();
    assert_eq!(back.forward(tokens).unwrap(), model.forward(tokens).unwrap());
    assert_ne!(back.w_e().unwrap().data_ptr(), model.w_e().unwrap().data_ptr());
    // What is of that kind already is shared.
    assert_eq!(model.to_kind(Kind::Float).unwrap().w_e().unwrap().data_ptr(), model.w_e().unwrap().data_ptr());
}

/// Converting a model is loading it in that kind, tensor by tensor; xIELU's constants stay in fp32.
#[rstest]
fn converting_is_loading(#[values(Kind::BFloat16, Kind::Half)] kind: Kind) {
    let (mut models_compared, mut constants) = (0, 0);
    for (name, folder, model) in models() {
        let loaded = LoadOptions::new().no_processing().kind(kind).open(&folder).unwrap().state_dict().unwrap();
        let converted = model.to_kind(kind).unwrap().state_dict().unwrap();
        assert_eq!(converted.len(), loaded.len(), "{name}");
        for ((tensor, ours), (other, theirs)) in converted.iter().zip(&loaded) {
            assert_eq!(tensor, other, "{name}");
            let is_constant = tensor.contains("act_fn");
            assert_eq!(ours.kind(), if is_constant { Kind::Float } else { kind }, "{name}: {tensor}");
            assert!(ours.kind() == theirs.kind() && ours.equal(theirs), "{name}: {tensor}");
            constants += usize::from(is_constant);
        }
        models_compared += 1;
    }
    assert!(models_compared >= 40 && constants > 0, "{models_compared} models, {constants} constants");
}

#[rstest]
#[case(Kind::Int)]
#[case(Kind::Int64)]
#[case(Kind::Bool)]
#[case(Kind::Uint8)]
#[case(Kind::ComplexFloat)]
#[case(Kind::Float8e4m3fn)]
fn other_kinds_are_refused(#[case] kind: Kind) {
    let refused = |result: tch_lens::Result<HookedTransformer>| match result {
        Err(Error::UnsupportedKind { kind: found }) => assert_eq!(found, kind),
        other => panic!("{other:?}"),
    };
    let folder = common::Fixture::folder("gpt2");
    let model = common::raw("gpt2");
    refused(LoadOptions::new().kind(kind).open(&folder));
    refused(LoadOptions::new().kind(kind).state_dict(model.config().clone(), model.state_dict().unwrap()));
    refused(model.to_kind(kind));
    let saved = tempfile::tempdir().unwrap();
    refused(model.save_hugging_face(saved.path().join("model"), kind).map(|_| model));
    assert!(!saved.path().join("model").exists());
}

#[test]
fn a_device_that_is_not_there_is_an_error() {
    let error = common::raw("gpt2").to(Device::Cuda(99)).unwrap_err();
    assert!(matches!(error, Error::NoDevice { .. }), "{error}");
}

#[test]
fn a_moved_model_keeps_its_tokenizer_and_its_report() {
    let model = HookedTransformer::toy().unwrap();
    let moved = model.to_kind(Kind::Double).unwrap().to(Device::Cpu).unwrap();
    assert_eq!(moved.processing(), model.processing());
    assert_eq!(moved.to_str_tokens("Mary and John").unwrap(), model.to_str_tokens("Mary and John").unwrap());
}

#[test]
fn parameters_have_names_of_their_own_and_are_counted_once() {
    for (name, _, model) in models() {
        let parameters = model.parameters();
        let names: std::collections::BTreeSet<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.len(), parameters.len(), "{name}");
        let numbers: usize = parameters.iter().map(|(_, tensor)| tensor.numel()).sum();
        assert_eq!(model.n_params(), numbers, "{name}");
        // The state dict has the same numbers, a tied matrix twice, and xIELU's constants.
        let in_state_dict: usize = model
            .state_dict()
            .unwrap()
            .iter()
            .filter(|(tensor, _)| !(tensor.contains("act_fn") || is_tied(&model) && tensor == "unembed.W_U"))
            .map(|(_, tensor)| tensor.numel())
            .sum();
        assert_eq!(in_state_dict, numbers, "{name}");
    }
}

/// A file's tensors that a forward pass reads.
fn file(folder: &Path) -> BTreeMap<String, Tensor> {
    common::read(&folder.join("model.safetensors"))
}

#[test]
fn a_hugging_face_folder_is_written_back_as_it_was() {
    let (mut same, mut refused) = (0, Vec::new());
    for (name, folder, model) in models() {
        if !folder.join("config.json").exists() || !folder.join("model.safetensors").exists() {
            continue; // in TransformerLens' form
        }
        let written = tempfile::tempdir().unwrap();
        match model.save_hugging_face(written.path(), Kind::Float) {
            Err(error) => {
                assert!(
                    matches!(error, Error::Checkpoint(CheckpointError::NotRepresentable { .. })),
                    "{name}: {error}"
                );
                refused.push(format!("{name}: {error}"));
                continue;
            }
            Ok(()) => same += 1,
        }
        let (ours, theirs) = (file(written.path()), file(&folder));
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, ours) in &ours {
            // OPT's first two positions are never read, and are zero.
            let first = if tensor.ends_with("embed_positions.weight") { 2 } else { 0 };
            let rows = |t: &Tensor| t.slice(0, first, None, 1);
            let diff = common::max_diff(&format!("{name}: {tensor}"), &rows(ours), &rows(&theirs[tensor]));
            // `1 + w` was rounded once.
            let tolerance = if name.starts_with("gemma") { 1.2e-7 } else { 0.0 };
            assert!(diff <= tolerance, "{name}: {tensor} differs by {diff}");
        }
        let again = HookedTransformer::from_pretrained_no_processing(written.path()).unwrap();
        let tokens = [1, 2, 3, 10];
        assert_eq!(again.forward(tokens).unwrap(), model.forward(tokens).unwrap(), "{name}");
    }
    println!("{same} folders written back; {refused:#?}");
    assert!(same >= 25, "{same}");
    // xIELU's parameters are kept after their softplus.
    assert!(refused.iter().all(|error| error.starts_with("apertus")), "{refused:#?}");
}

/// A step of gradient descent by tch's optimiser is the one written out, on every weight.
#[rstest]
fn an_optimiser_trains_the_parameters(#[values("gpt2", "llama_gqa_tied", "mixtral", "gemma3")] name: &str) {
    let model = common::raw(name);
    let tokens = [1, 2, 3, 10, 4, 5];
    let store = model.var_store().unwrap();
    let names = |names: Vec<String>| names.into_iter().collect::<std::collections::BTreeSet<String>>();
    let parameters = model.parameters();
    assert_eq!(
        names(store.variables().into_keys().collect()),
        names(parameters.iter().map(|(name, _)| name.clone()).collect())
    );
    assert_eq!(store.trainable_variables().len(), parameters.len());
    let mut optimizer = nn::Sgd::default().build(&store, 0.1).unwrap();
    let loss = model.run(tokens, RunOptions::new().return_type(ReturnType::Loss)).unwrap().loss.unwrap();
    loss.backward();
    let expected: Vec<(String, Tensor, Tensor)> = parameters
        .iter()
        .filter(|(_, weight)| weight.grad().defined()) // of experts that got no token there is none
        .map(|(name, weight)| (name.clone(), weight.detach() - 0.1 * weight.grad(), weight.detach().copy()))
        .collect();
    assert!(expected.len() > parameters.len() / 2);
    optimizer.step();
    let mut changed = 0;
    for (weight, expected, before) in &expected {
        let (_, now) = model.parameters().into_iter().find(|(name, _)| name == weight).unwrap();
        let diff = common::max_diff(weight, &now.detach(), expected);
        assert!(diff < 1e-6, "{weight} differs by {diff}");
        changed += usize::from(now.detach() != *before);
    }
    assert!(changed > expected.len() / 2, "{changed} of {} weights changed", expected.len());
    assert!(model.loss(tokens).unwrap() < loss.double_value(&[]));
    // Biases and gains are a group of their own.
    let snapshot = || model.parameters().into_iter().map(|(name, weight)| (name, weight.detach().copy()));
    let before: BTreeMap<String, Tensor> = snapshot().collect();
    optimizer.set_lr_group(1, 0.0);
    let loss = model.run(tokens, RunOptions::new().return_type(ReturnType::Loss)).unwrap().loss.unwrap();
    optimizer.backward_step(&loss);
    for (weight, now) in snapshot().filter(|(weight, _)| expected.iter().any(|(changed, ..)| changed == weight)) {
        assert_eq!(now == before[&weight], now.dim() == 1, "{weight}");
    }
    let mut store = store;
    store.freeze();
    assert!(!model.forward(tokens).unwrap().requires_grad());
}

/// So a product gives the same numbers wherever the weights came from.
#[test]
fn every_weight_lies_row_by_row() {
    for (name, folder, raw) in models() {
        let processed = HookedTransformer::from_pretrained(&folder).unwrap();
        let config = raw.config().clone();
        let again = LoadOptions::new().no_processing().state_dict(config, raw.state_dict().unwrap()).unwrap();
        for model in [raw, processed, again] {
            for (weight, tensor) in model.parameters() {
                assert!(tensor.is_contiguous(), "{name}: {weight} {:?} {:?}", tensor.size(), tensor.stride());
            }
        }
    }
}

fn cannot_be_written(model: &HookedTransformer, weight: &str, why: &str) {
    let folder = tempfile::tempdir().unwrap();
    let error = model.save_hugging_face(folder.path(), Kind::Float).unwrap_err();
    assert!(matches!(error, Error::Checkpoint(CheckpointError::NotRepresentable { .. })), "{error}");
    assert!(error.to_string().contains(weight) && error.to_string().contains(why), "{error}");
}

/// GPT-J's two norms are one.
#[test]
fn parts_of_one_tensor_must_agree() {
    let model = common::raw("gptj");
    let (_, weight) = model.parameters().into_iter().find(|(name, _)| name == "blocks.1.ln2.w").unwrap();
    let _ = weight.get(3).fill_(7.0);
    cannot_be_written(&model, "`blocks.1.ln2.w`", "one tensor with `blocks.1.ln1.w`");
}

/// GPT-2's unembedding has no bias, but one of zeros is none.
#[rstest]
fn a_weight_without_a_place_must_change_nothing(#[values(0.0, 1.0)] bias: f64) {
    let model = common::raw("gpt2");
    let mut weights = model.state_dict().unwrap();
    weights.push(("unembed.b_U".into(), Tensor::full([model.config().d_vocab_out as i64], bias, tch::kind::FLOAT_CPU)));
    let model = LoadOptions::new().no_processing().state_dict(model.config().clone(), weights).unwrap();
    match bias {
        0.0 => model.save_hugging_face(tempfile::tempdir().unwrap().path(), Kind::Float).unwrap(),
        _ => cannot_be_written(&model, "`unembed.b_U`", "the format has no such weight"),
    }
}
