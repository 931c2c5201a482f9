//! Fixtures: what TransformerLens 3.9 and transformers compute on tiny models (`tests/fixtures`, made by
//! `make_reference.py` there, at whose top the grammar of the keys stands).

pub mod child;
pub mod memory;
pub mod models;
pub mod pairs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Kind, Tensor};
use tch_lens::{HookPoint, HookedTransformer, Tokenizer};

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of all fixtures.
pub fn fixtures() -> PathBuf {
    repository().join("tests/fixtures")
}

/// What was expected of one model.
pub struct Fixture {
    pub folder: PathBuf,
    pub meta: Value,
    tensors: BTreeMap<String, Tensor>,
    labels: Value,
}

impl Fixture {
    pub fn folder(name: &str) -> PathBuf {
        fixtures().join(name)
    }

    pub fn open(name: &str) -> Self {
        let folder = Fixture::folder(name);
        let json = |file: &str| -> Value {
            let text = std::fs::read_to_string(folder.join(file)).unwrap_or_else(|e| panic!("{name}/{file}: {e}"));
            // Python's writer puts NaN, which is no JSON, for sums of what TransformerLens leaves uninitialised.
            serde_json::from_str(&text.replace(":NaN", ":null")).unwrap_or_else(|e| panic!("{name}/{file}: {e}"))
        };
        let tensors = read(&folder.join("expected.safetensors"));
        Fixture { meta: json("meta.json"), labels: json("labels.json"), tensors, folder }
    }

    /// A tensor by key, aliases resolved.
    pub fn get(&self, key: &str) -> Option<Tensor> {
        if let Some(tensor) = self.tensors.get(key) {
            return Some(tensor.shallow_clone());
        }
        let alias = self.meta["aliases"].get(key)?;
        let of = self.get(alias["of"].as_str().unwrap()).unwrap();
        Some(match alias["op"].as_str().unwrap() {
            "same" => of,
            "repeat_heads" => of.unsqueeze(2).repeat([1, 1, alias["n"].as_i64().unwrap(), 1]),
            other => panic!("unknown alias {other}"),
        })
    }

    pub fn want(&self, key: &str) -> Tensor {
        self.get(key).unwrap_or_else(|| panic!("{}: no {key}", self.folder.display()))
    }

    /// Every key that begins so, aliases included.
    pub fn keys(&self, prefix: &str) -> Vec<String> {
        let aliases = self.meta["aliases"].as_object().unwrap().keys().cloned();
        let mut keys: Vec<String> =
            self.tensors.keys().cloned().chain(aliases).filter(|key| key.starts_with(prefix)).collect();
        keys.sort();
        keys
    }

    /// The row labels of a stacked analysis.
    pub fn labels(&self, key: &str) -> Vec<String> {
        let index = self.labels["keys"][key].as_u64().unwrap_or_else(|| panic!("{key} has no labels")) as usize;
        serde_json::from_value(self.labels["lists"][index].clone()).unwrap()
    }
}

/// A fixture's model, as its checkpoint has it.
pub fn raw(family: &str) -> HookedTransformer {
    HookedTransformer::from_pretrained_no_processing(Fixture::folder(family)).unwrap()
}

/// A tokenizer of five words, one a token.
pub fn tokenizer() -> Tokenizer {
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "decoder": null, "pre_tokenizer": { "type": "WhitespaceSplit" },
        "added_tokens": [{ "id": 0, "content": "<s>", "special": true, "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false }],
        "model": { "type": "WordLevel", "unk_token": "<unk>",
                   "vocab": { "<s>": 0, "<unk>": 1, "the": 2, "road": 3, "ends": 4 } },
    });
    let config = br#"{ "bos_token": "<s>" }"#;
    Tokenizer::from_bytes(json.to_string().as_bytes(), Some(config)).unwrap()
}

/// Every family that there are fixtures of.
pub fn families() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(fixtures())
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.path().join("labels.json").exists())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The fixtures of transformers with a mechanism that no model of [`families`] has.
pub fn mechanisms() -> Vec<String> {
    let names = [
        "beam",
        "bitnet",
        "cohere2",
        "ctrl",
        "diffllama",
        "falcon_rw",
        "gemma4_shared_mixture",
        "gemma4_text",
        "glm_moe_dsa",
        "granite_swa",
        "hunyuan_v1_dense",
        "ministral3",
        "modernbert-decoder",
        "nanochat",
        "openai-gpt",
    ];
    names.map(|name| format!("transformers/{name}")).to_vec()
}

/// The flags that TransformerLens' `processed.` figures were made with: its defaults but those that change the function.
pub fn processed_like_transformer_lens(fixture: &Fixture) -> tch_lens::LoadOptions {
    let used: Vec<String> = serde_json::from_value(fixture.meta["processing"]["flags_used"].clone()).unwrap();
    // TransformerLens leaves short-former models as they are, whatever its flags say.
    let shortformer = fixture.folder.ends_with("toy_shortformer");
    let has = |flag: &str| used.iter().any(|used| used == flag) && !(shortformer && flag != "fold_value_biases");
    tch_lens::LoadOptions::new()
        .fold_ln(has("fold_ln"))
        .center_writing_weights(has("center_writing_weights"))
        .center_unembed(has("center_unembed"))
        .fold_value_biases(has("fold_value_biases"))
}

/// An activation in the shape that TransformerLens gives it, where ours is another view of the same.
pub fn shaped_like(ours: &Tensor, theirs: &Tensor, point: HookPoint, model: &HookedTransformer) -> Tensor {
    let shares_keys = model.config().original_architecture == "GPTBigCodeForCausalLM";
    if point.to_string().contains(".ln1.") && theirs.dim() == 4 {
        // TransformerLens runs this norm once for each head then; ours has no axis for them.
        ours.unsqueeze(2).expand_as(theirs)
    } else if ours.size() != theirs.size() && ours.numel() == theirs.numel() {
        // TransformerLens flattens the rows of what goes through experts and per-head norms.
        ours.reshape(theirs.size())
    } else if shares_keys && ours.dim() == 4 && ours.size()[2] == 1 {
        // TransformerLens repeats SantaCoder's one key and value for each head, weights and all.
        ours.expand_as(theirs)
    } else {
        ours.shallow_clone()
    }
}

/// Properties are tried often enough to find what is wrong, and leave no files behind.
pub fn properties() -> proptest::prelude::ProptestConfig {
    proptest::prelude::ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() }
}

/// All tensors of a safetensors file.
pub fn read(path: &Path) -> BTreeMap<String, Tensor> {
    let tensors = Tensor::read_safetensors(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    tensors.into_iter().collect()
}

/// The largest difference, of infinities zero where both are the same; a panic where shapes differ by more than
/// how the same rows are flattened.
pub fn max_diff(what: &str, ours: &Tensor, theirs: &Tensor) -> f64 {
    let theirs = if ours.size() == theirs.size() {
        theirs.shallow_clone()
    } else {
        panic!("{what}: shape {:?}, expected {:?}", ours.size(), theirs.size());
    };
    if ours.numel() == 0 {
        return 0.0;
    }
    let (ours, theirs) = (ours.to_kind(Kind::Double), theirs.to_kind(Kind::Double));
    let same = ours.eq_tensor(&theirs);
    let diff = (ours - theirs).abs().where_self(&same.logical_not(), &Tensor::from(0.0));
    let diff = diff.max().double_value(&[]);
    if diff.is_nan() {
        f64::INFINITY
    } else {
        diff
    }
}

/// Counts comparisons and holds the largest difference, so that a test can print both.
#[derive(Default)]
pub struct Tally {
    pub count: usize,
    pub worst: f64,
    pub worst_at: String,
    pub failures: Vec<String>,
}

impl Tally {
    pub fn compare(&mut self, what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
        let diff = max_diff(what, ours, theirs);
        self.count += 1;
        if diff > self.worst {
            (self.worst, self.worst_at) = (diff, what.into());
        }
        if diff > tolerance {
            self.failures.push(format!("{what}: differs by {diff:.3e}, more than {tolerance:.0e}"));
        }
    }

    /// Counts the comparisons of another.
    pub fn add(&mut self, other: Tally) {
        self.count += other.count;
        if other.worst > self.worst {
            (self.worst, self.worst_at) = (other.worst, other.worst_at);
        }
        self.failures.extend(other.failures);
    }

    /// Prints the figures, and fails where a comparison did.
    pub fn finish(self, what: &str) {
        println!("{what}: {} comparisons, largest difference {:.2e} ({})", self.count, self.worst, self.worst_at);
        assert!(self.failures.is_empty(), "{what}:\n{}", self.failures.join("\n"));
        assert!(self.count > 0, "{what}: nothing was compared");
    }
}

/// The stream after a layer, which a norm of the stream itself gives where there is one.
pub fn stream_after(config: &tch_lens::Config, layer: usize) -> tch_lens::HookPoint {
    match config.norm_position() {
        tch_lens::config::NormPosition::InStream => tch_lens::hook::normalized_resid_post(layer),
        _ => tch_lens::hook::resid_post(layer),
    }
}
