//! Tied weights load from a checkpoint that has them under one name only, whichever it is, and stay one tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::common::read;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tch::Tensor;
use tch_lens::{Config, HookedTransformer, LoadOptions};

/// The names of embedding and unembedding, by the beginning of the family's other names.
const NAMES: &[(&str, &str)] = &[
    ("transformer.wte.weight", "lm_head.weight"),
    ("transformer.word_embeddings.weight", "lm_head.weight"),
    ("word_embeddings.weight", "lm_head.weight"),
    ("gpt_neox.embed_in.weight", "embed_out.weight"),
    ("model.decoder.embed_tokens.weight", "lm_head.weight"),
    ("model.embed_tokens.weight", "lm_head.weight"),
    ("transformer.w.weight", "lm_head.weight"),
    ("transformer.tokens_embed.weight", "lm_head.weight"),
    ("biogpt.embed_tokens.weight", "output_projection.weight"),
    ("gpt_neox_japanese.embed_in.weight", "embed_out.weight"),
    ("model.embeddings.tok_embeddings.weight", "decoder.weight"),
    ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("bert.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("roformer.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("deberta.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("ernie.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("nomic_bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("roberta_prelayernorm.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("data2vec_text.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("mpnet.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("gte.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("esm.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    ("albert.embeddings.word_embeddings.weight", "predictions.decoder.weight"),
    ("distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
    ("electra.embeddings.word_embeddings.weight", "generator_lm_head.weight"),
];

/// The language models that have no folder of their own, whose embedding has other rows than the unembedding, or that are never tied.
const ELSEWHERE: &[&str] =
    &["dbrx", "rembert", "mllama_text_model", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text"];

/// A Hugging Face folder of each family among the fixtures.
fn folders() -> Vec<(String, PathBuf)> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let all = [fixtures.join("transformers"), fixtures];
    let all = all.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    let families = all.filter(|folder| folder.join("config.json").is_file()).map(|folder| {
        let family = config(&folder)["model_type"].as_str().unwrap().to_string();
        (family, folder)
    });
    // Those that are refused, and language models within others, are tested elsewhere.
    let loads = |(family, folder): &(String, PathBuf)| {
        let alone = !config(folder).as_object().unwrap().contains_key("text_config");
        alone && !ELSEWHERE.contains(&family.as_str()) && LoadOptions::new().open(folder).is_ok()
    };
    families.filter(loads).collect::<BTreeMap<_, _>>().into_iter().collect()
}

/// A copy of a folder whose weights are tied, with the embedding under these names of the two.
fn tied(folder: &Path, [under_its_own, under_the_other]: [bool; 2]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let mut config = config(folder);
    config["tie_word_embeddings"] = true.into();
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut new: BTreeMap<String, _> = tensors.iter().map(|(name, view)| (name.to_string(), view)).collect();
    // Families with one name for the embedding differ in the head that the unembedding belongs to.
    let has_head = |u: &str| new.keys().any(|name| u.split('.').next() == name.split('.').next());
    let candidates = NAMES.iter().filter(|(e, _)| new.contains_key(*e));
    let (e, u) = candidates.max_by_key(|(_, u)| has_head(u)).unwrap_or_else(|| panic!("{}", folder.display()));
    let embedding = new.remove(*e).unwrap();
    new.remove(*u);
    for (_, name) in [(under_its_own, e), (under_the_other, u)].into_iter().filter(|(is, _)| *is) {
        new.insert(name.to_string(), embedding.clone());
    }
    safetensors::serialize_to_file(new, None, &copy.path().join("model.safetensors")).unwrap();
    copy
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

fn same(one: &HookedTransformer, other: &HookedTransformer, tokens: &Tensor, what: &str) {
    let (one_logits, other_logits) = (one.forward(tokens).unwrap(), other.forward(tokens).unwrap());
    assert!(one_logits.equal(&other_logits), "{what}: logits");
    let other_config = Config { model_name: one.config().model_name.clone(), ..other.config().clone() }; // the folder's
    assert_eq!(one.config(), &other_config, "{what}");
    assert_eq!(one.n_params(), other.n_params(), "{what}");
}

fn is_tied(model: &HookedTransformer) -> bool {
    model.w_e().unwrap().data_ptr() == model.w_u().unwrap().data_ptr()
}

#[test]
fn every_family_loads_tied_weights_under_either_name() {
    let (mut in_one_place, mut count) = (0, 0);
    let folders = folders();
    for (what, folder) in &folders {
        let tokens = &read(&folder.join("expected.safetensors"))["tokens"];
        // Under the other name only, as safetensors' `save_model` writes it; and under both.
        let [usual, other, both] = [[true, false], [false, true], [true, true]].map(|names| tied(folder, names));
        for load in [LoadOptions::new().no_processing(), LoadOptions::new()] {
            let open = |folder: &Path| load.open(folder).unwrap_or_else(|error| panic!("{what}: {error}"));
            let usual = open(usual.path());
            for (copy, how) in [(&other, "the other name"), (&both, "both names")] {
                let model = open(copy.path());
                same(&usual, &model, tokens, &format!("{what}, {how}"));
                assert_eq!(is_tied(&model), is_tied(&usual), "{what}, {how}");
                assert_eq!(is_tied(&model), model.config().tie_word_embeddings, "{what}, {how}");
                count += 1;
            }
        }
        let raw = LoadOptions::new().no_processing().open(other.path()).unwrap();
        // A factor may be of the embedding, or the unembedding, alone.
        let scaled = raw.w_e().unwrap() != raw.w_u().unwrap().tr();
        assert_eq!(is_tied(&raw), !scaled, "{what}: raw weights are one tensor");
        in_one_place += usize::from(!scaled);
    }
    println!("{count} loads of {} families, {in_one_place} models tied in memory", folders.len());
    assert_eq!(folders.len() + ELSEWHERE.len(), HookedTransformer::supported().len(), "{folders:?}");
    assert!(in_one_place > folders.len() / 2);
}

#[test]
fn an_unembedding_that_differs_is_not_tied() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gpt2");
    // Any other matrix of this shape: here the embedding, with its bytes turned round.
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("config.json"), copy.path().join("config.json")).unwrap();
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let embedding = tensors.tensor("transformer.wte.weight").unwrap();
    assert_eq!(embedding.dtype(), Dtype::F32);
    let reversed: Vec<u8> = embedding.data().chunks(4).rev().flatten().copied().collect();
    let mut new: BTreeMap<String, _> = tensors.iter().map(|(name, view)| (name.to_string(), view)).collect();
    let other = safetensors::tensor::TensorView::new(Dtype::F32, embedding.shape().to_vec(), &reversed).unwrap();
    new.insert("lm_head.weight".into(), other);
    safetensors::serialize_to_file(new, None, &copy.path().join("model.safetensors")).unwrap();
    let model = LoadOptions::new().no_processing().open(copy.path()).unwrap();
    assert!(!model.config().tie_word_embeddings && !is_tied(&model));
    assert_eq!(model.w_u().unwrap().tr().flip([0, 1]), model.w_e().unwrap());
}

/// The same of TransformerLens' names, whose unembedding lies the other way round.
#[test]
fn a_tied_state_dict_loads_under_either_name() {
    let tied = Config { tie_word_embeddings: true, ..Config::new(2, 16, 2, 20, 12) };
    let model = HookedTransformer::init(tied.clone(), 0).unwrap();
    assert!(is_tied(&model) && model.config().tie_word_embeddings);
    let load = || LoadOptions::new().no_processing();
    let without = |name: &str| {
        let mut tensors = model.state_dict().unwrap();
        tensors.retain(|(found, _)| found != name);
        tensors
    };
    let tokens = Tensor::from_slice(&[1i64, 2, 3]);
    for gone in ["embed.W_E", "unembed.W_U", "none of them"] {
        let again = load().state_dict(tied.clone(), without(gone)).unwrap();
        same(&model, &again, &tokens, gone);
        assert!(is_tied(&again), "{gone}");
        assert!(again.w_e().unwrap().is_contiguous(), "{gone}: the embedding is read row by row");
    }
    // Of a model that is not tied, both are needed.
    let untied = Config { tie_word_embeddings: false, ..tied };
    for gone in ["embed.W_E", "unembed.W_U"] {
        let error = load().state_dict(untied.clone(), without(gone)).unwrap_err().to_string();
        assert!(error.contains(gone), "{error}");
    }
}
