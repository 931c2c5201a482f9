//! Where checkpoints come from: each kind of file gives the same model.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rstest::rstest;
use tch::{Kind, Tensor};
use tch_lens::{HookedTransformer, LoadOptions};

fn folder(name: &str) -> PathBuf {
    crate::common::fixtures().join("torch_files").join(name)
}

#[rstest]
#[case("gpt2_zip")]
#[case("gpt2_legacy")]
#[case("gpt2_sharded")]
fn torch_files_hold_the_same_model(#[case] name: &str) {
    let tokens = [1, 2, 3, 10];
    let want = HookedTransformer::from_pretrained(folder("gpt2")).unwrap().forward(tokens).unwrap();
    let found = HookedTransformer::from_pretrained(folder(name)).unwrap().forward(tokens).unwrap();
    assert!(found.equal(&want));
}

/// Mapped or read, of every format; and while it loads, the file is in the process' map of memory or not.
#[rstest]
#[case("gpt2", "model.safetensors")]
#[case("gpt2_zip", "pytorch_model.bin")]
#[case("gpt2_legacy", "pytorch_model.bin")]
#[case("gpt2_sharded", "pytorch_model-00002-of-00002.bin")]
fn files_are_mapped_or_read(#[case] name: &str, #[case] file: &str) {
    let folder = folder(name);
    let file = std::fs::canonicalize(folder.join(file)).unwrap();
    let want = HookedTransformer::from_pretrained(&folder).unwrap().forward([1, 2, 3, 10]).unwrap();
    for map in [true, false] {
        let mapped = Arc::new(Mutex::new(Vec::new()));
        let (watch, path) = (mapped.clone(), file.to_str().unwrap().to_string());
        let load = LoadOptions::new().memory_map(map).on_progress(move |_, _| {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
            watch.lock().unwrap().push(maps.lines().any(|line| line.ends_with(&path)));
        });
        let found = load.open(&folder).unwrap().forward([1, 2, 3, 10]).unwrap();
        assert!(found.equal(&want), "{name}, mapped: {map}");
        let mapped = mapped.lock().unwrap();
        assert!(!mapped.is_empty());
        if cfg!(target_os = "linux") {
            assert!(mapped.iter().all(|mapped| *mapped == map), "{name}, mapped: {map}: {mapped:?}");
        }
    }
}

#[test]
fn loading_says_how_far_it_is() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let watch = seen.clone();
    let load = LoadOptions::new().on_progress(move |done, of| watch.lock().unwrap().push((done, of)));
    let layers = load.open(folder("gpt2")).unwrap().config().n_layers;
    let of = layers + 2; // unembedding and embedding
    assert_eq!(*seen.lock().unwrap(), (1..=of).map(|done| (done, of)).collect::<Vec<_>>());
}

#[test]
fn safetensors_are_preferred() {
    let both = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(folder("gpt2").join(file), both.path().join(file)).unwrap();
    }
    std::fs::copy(folder("malicious.bin"), both.path().join("pytorch_model.bin")).unwrap();
    assert!(LoadOptions::new().open(both.path()).is_ok());
    std::fs::remove_file(both.path().join("model.safetensors")).unwrap();
    let error = LoadOptions::new().open(both.path()).unwrap_err().to_string();
    assert!(error.ends_with("pytorch_model.bin: the pickle wants to call `posix.system`: refused"), "{error}");
}

/// Every fixture, raw and processed, in two kinds.
#[rstest]
fn a_saved_model_loads_the_same(
    #[values(Kind::Float, Kind::BFloat16)] kind: Kind,
    #[values(false, true)] processed: bool,
) {
    let fixtures = crate::common::fixtures();
    let mut count = 0;
    for fixture in std::fs::read_dir(fixtures).unwrap() {
        let fixture = fixture.unwrap().path();
        let tokens = match read_tokens(&fixture) {
            Some(tokens) => tokens,
            None => continue,
        };
        let load = LoadOptions::new().kind(kind);
        let load = if processed { load } else { load.no_processing() };
        let Ok(model) = load.open(&fixture) else { continue }; // an encoder
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path()).unwrap();
        // The other choice of processing changes nothing: what was saved is what is wanted.
        let load = LoadOptions::new().kind(kind);
        let load = if processed { load.no_processing() } else { load };
        let again = load.open(folder.path()).unwrap();
        let what = format!("{} as {kind:?}, processed: {processed}", fixture.display());
        same_weights(&model, &again, &what);
        assert!(model.forward(&tokens).unwrap().equal(&again.forward(&tokens).unwrap()), "{what}: logits");
        assert_eq!(model.n_params(), again.n_params(), "{what}");
        assert_eq!(model.config(), again.config(), "{what}");
        count += 1;
    }
    println!("{count} models saved as {kind:?} and loaded bit for bit, processed: {processed}");
    assert!(count >= 40);
}

fn read_tokens(fixture: &Path) -> Option<Tensor> {
    let expected = Tensor::read_safetensors(fixture.join("expected.safetensors")).ok()?;
    expected.into_iter().find(|(name, _)| name == "tokens").map(|(_, tokens)| tokens)
}

fn same_weights(one: &HookedTransformer, other: &HookedTransformer, what: &str) {
    let (one, other) = (one.state_dict().unwrap(), other.state_dict().unwrap());
    assert_eq!(one.len(), other.len(), "{what}");
    for ((name, one), (other_name, other)) in one.iter().zip(&other) {
        assert_eq!(name, other_name, "{what}");
        assert!(one.kind() == other.kind() && one.equal(other), "{what}: {name}");
    }
}

#[rstest]
#[case("llama_gqa_tied")]
#[case("gpt2")]
#[case("toy_solu_ln")]
fn a_state_dict_makes_the_same_model(#[case] name: &str) {
    let fixture = crate::common::fixtures().join(name);
    let model = HookedTransformer::from_pretrained(&fixture).unwrap();
    let load = LoadOptions::new().no_processing();
    let again = load.state_dict(model.config().clone(), model.state_dict().unwrap()).unwrap();
    same_weights(&model, &again, name);
}

#[rstest]
#[case("gpt2")]
#[case("gpt2_stanford")]
fn a_gpt2_is_written_as_hugging_face_does(#[case] name: &str) {
    let fixture = crate::common::fixtures().join(name);
    let load = LoadOptions::new().no_processing();
    let model = load.open(&fixture).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_hugging_face(folder.path(), Kind::Float).unwrap();
    let file = |folder: &Path| -> std::collections::BTreeMap<String, Tensor> {
        Tensor::read_safetensors(folder.join("model.safetensors")).unwrap().into_iter().collect()
    };
    let (ours, theirs) = (file(folder.path()), file(&fixture));
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    assert!(ours.iter().all(|(name, tensor)| tensor.equal(&theirs[name])));
    let again = load.open(folder.path()).unwrap();
    let tokens = read_tokens(&fixture).unwrap();
    assert!(model.forward(&tokens).unwrap().equal(&again.forward(&tokens).unwrap()));
}

#[test]
fn what_is_no_gpt2_is_not_written_as_one() {
    let fixture = |name: &str| crate::common::fixtures().join(name);
    let folder = tempfile::tempdir().unwrap();
    let error = |load: LoadOptions, name: &str| {
        load.open(fixture(name)).unwrap().save_hugging_face(folder.path(), Kind::Float).unwrap_err().to_string()
    };
    let gated = error(LoadOptions::new().no_processing(), "toy_gated_ln");
    assert!(gated.contains("which has no gated MLP"), "{gated}");
    let folded = error(LoadOptions::new(), "gpt2");
    assert!(folded.contains("folded norms (load it with `no_processing`)"), "{folded}");
    assert!(!folder.path().join("config.json").exists());
}
