//! Checkpoints that are broken, or lie, or mean harm: each is an error of one sentence, and none panics or hangs.
//!
//! The seeds of the fuzz targets (`fuzz/`) are changed at random and opened as a user would, 1000 times each or as often as
//! `PROPTEST_CASES` says; a nightly compiler and cargo-fuzz go further.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use tch_lens::{hook, DictionaryOptions, Error, FormatError, HookedTransformer, LoadOptions};

fn fixture(name: &str) -> PathBuf {
    crate::common::fixtures().join("torch_files").join(name)
}

/// A model's folder in which one file can be written.
struct Folder(tempfile::TempDir);

impl Folder {
    /// A copy of a fixture.
    fn of(name: &str) -> Self {
        Folder::at(&fixture(name))
    }

    /// A copy of a folder.
    fn at(path: &Path) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(path).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        Folder(folder)
    }

    /// Opens the model with this file in place of its own; what it says, if it does not open.
    fn open_with(&self, file: &str, bytes: &[u8]) -> Option<String> {
        std::fs::write(self.0.path().join(file), bytes).unwrap();
        let start = Instant::now();
        let opened = match file {
            "params.npz" => DictionaryOptions::new().hook_in(hook::resid_post(0)).open(self.0.path()).map(drop),
            "cfg.json" | "sae_weights.safetensors" => DictionaryOptions::new().open(self.0.path()).map(drop),
            "config.yaml" => DictionaryOptions::new().open_set(self.0.path()).map(drop),
            _ => LoadOptions::new().open(self.0.path()).map(drop),
        };
        assert!(start.elapsed() < Duration::from_secs(60), "{file} took {:?}", start.elapsed());
        opened.err().map(|error| error.to_string())
    }
}

/// One change of a file.
#[derive(Clone, Debug)]
enum Change {
    Flip {
        at: prop::sample::Index,
        bit: u8,
    },
    Set {
        at: prop::sample::Index,
        byte: u8,
    },
    /// A number of eight bytes that readers trip over.
    Number {
        at: prop::sample::Index,
        number: u64,
    },
    Cut {
        at: prop::sample::Index,
    },
    Remove {
        at: prop::sample::Index,
        len: usize,
    },
    Insert {
        at: prop::sample::Index,
        bytes: Vec<u8>,
    },
    /// A piece of the file again, elsewhere.
    Splice {
        from: prop::sample::Index,
        len: usize,
        to: prop::sample::Index,
    },
}

impl Change {
    fn any() -> impl Strategy<Value = Change> {
        let at = any::<prop::sample::Index>;
        let numbers =
            vec![0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, 1 << 32, 1 << 62, u64::MAX / 8, u64::MAX];
        prop_oneof![
            4 => (at(), 0..8u8).prop_map(|(at, bit)| Change::Flip { at, bit }),
            4 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set { at, byte }),
            2 => (at(), prop::sample::select(numbers)).prop_map(|(at, number)| Change::Number { at, number }),
            1 => at().prop_map(|at| Change::Cut { at }),
            1 => (at(), 1..64usize).prop_map(|(at, len)| Change::Remove { at, len }),
            1 => (at(), prop::collection::vec(any::<u8>(), 1..32)).prop_map(|(at, bytes)| Change::Insert { at, bytes }),
            2 => (at(), 1..64usize, at()).prop_map(|(from, len, to)| Change::Splice { from, len, to }),
        ]
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let len_from = |at: usize, len: usize, bytes: &[u8]| len.min(bytes.len() - at);
        match self {
            Change::Flip { at, bit } => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Change::Set { at, byte } => {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            Change::Number { at, number } => {
                let at = at.index(bytes.len());
                let len = len_from(at, 8, bytes);
                bytes[at..at + len].copy_from_slice(&number.to_le_bytes()[..len]);
            }
            Change::Cut { at } => bytes.truncate(at.index(bytes.len())),
            Change::Remove { at, len } => {
                let at = at.index(bytes.len());
                let len = len_from(at, *len, bytes);
                bytes.drain(at..at + len);
            }
            Change::Insert { at, bytes: new } => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
            Change::Splice { from, len, to } => {
                let from = from.index(bytes.len());
                let piece = bytes[from..from + len_from(from, *len, bytes)].to_vec();
                let to = to.index(bytes.len());
                bytes.splice(to..to, piece);
            }
        }
    }
}

/// Opens a model over and over, one of its files changed each time.
fn changed(folder: &str, file: &str, seeds: &[PathBuf]) {
    changed_in(&Folder::of(folder), file, seeds, 1000);
}

fn changed_in(folder: &Folder, file: &str, seeds: &[PathBuf], cases: u32) {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    let seeds: Vec<Vec<u8>> = seeds.iter().map(|seed| std::fs::read(seed).unwrap()).collect();
    let strategy = (prop::sample::select(seeds), prop::collection::vec(Change::any(), 0..6));
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let opened = std::cell::Cell::new(0);
    let tried = std::cell::Cell::new(0);
    let outcome = runner.run(&strategy, |(mut bytes, changes)| {
        changes.iter().for_each(|change| change.apply(&mut bytes));
        let error = folder.open_with(file, &bytes);
        tried.set(tried.get() + 1);
        opened.set(opened.get() + usize::from(error.is_none()));
        if let Some(error) = error {
            prop_assert!(!error.is_empty());
        }
        Ok(())
    });
    println!("{file}: {} variants, of which {} still opened", tried.get(), opened.get());
    outcome.unwrap();
}

/// The seeds of a fuzz target.
fn seeds(target: &str) -> Vec<PathBuf> {
    let folder = crate::common::repository().join("fuzz/seeds").join(target);
    let mut seeds: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|seed| seed.unwrap().path()).collect();
    seeds.sort();
    seeds
}

#[test]
fn changed_configurations() {
    let mut seeds = seeds("config_json");
    seeds.push(fixture("gpt2/config.json"));
    changed("gpt2", "config.json", &seeds);
}

#[test]
fn changed_safetensors() {
    changed("gpt2", "model.safetensors", &[fixture("gpt2/model.safetensors")]);
}

#[test]
fn changed_indices() {
    let index = "pytorch_model.bin.index.json";
    changed("gpt2_sharded", index, &[fixture("gpt2_sharded").join(index)]);
}

#[test]
fn changed_torch_files() {
    let mut seeds = seeds("torch_file");
    let own = ["gpt2_zip", "gpt2_legacy"].map(|folder| fixture(folder).join("pytorch_model.bin"));
    seeds.extend(own);
    changed("gpt2_zip", "pytorch_model.bin", &seeds);
}

/// The files of dictionaries.
#[test]
fn changed_dictionaries() {
    let sae = crate::common::fixtures().join("sae");
    let npz = sae.join("gemma_scope_res/layer_1/width_16k/average_l0_8");
    let sets = crate::common::fixtures().join("circuit_tracer/toy_plt");
    let with = |target: &str, own: PathBuf| seeds(target).into_iter().chain([own]).collect::<Vec<_>>();
    changed_in(&Folder::at(&npz), "params.npz", &with("npz", npz.join("params.npz")), 300);
    changed_in(&Folder::at(&sets), "config.yaml", &with("yaml", sets.join("config.yaml")), 200);
    let folder = Folder(tempfile::tempdir().unwrap());
    let standard = sae.join("toy_standard");
    for file in ["cfg.json", "sae_weights.safetensors"] {
        std::fs::copy(standard.join(file), folder.0.path().join(file)).unwrap();
    }
    changed_in(&folder, "cfg.json", &[standard.join("cfg.json")], 200);
}

#[test]
fn changed_gguf_files() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let seeds = seeds("gguf");
    let whole = std::fs::read(&seeds[0]).unwrap();
    assert_eq!(folder.open_with("model.gguf", &whole), None, "{}", seeds[0].display());
    changed_in(&folder, "model.gguf", &seeds, 1000);
}

/// The tensors of a quantised weight, and what the configuration says of them.
#[test]
fn changed_quantised_checkpoints() {
    for name in ["gptq_act_order", "nf4_nested"] {
        let path = crate::common::fixtures().join("quantized").join(name);
        for file in ["model.safetensors", "config.json"] {
            changed_in(&Folder::at(&path), file, &[path.join(file)], 250);
        }
    }
}

#[test]
fn changed_saved_models() {
    let folder = tempfile::tempdir().unwrap();
    HookedTransformer::from_pretrained(fixture("gpt2")).unwrap().save_pretrained(folder.path()).unwrap();
    // Copied by name, so that the folder looks like a fixture.
    let own = folder.path().join("tch_lens.json");
    let model = folder.path().join("model.safetensors");
    let kept = Folder::of("gpt2");
    std::fs::copy(model, kept.0.path().join("model.safetensors")).unwrap();
    let text = std::fs::read(&own).unwrap();
    assert_eq!(kept.open_with("tch_lens.json", &text), None);
    for at in 0..text.len() {
        let mut text = text.clone();
        text[at] = b'9';
        let _ = kept.open_with("tch_lens.json", &text); // a digit of a number may do
    }
    assert!(kept.open_with("tch_lens.json", b"{\"version\": 2}").is_some());
}

#[test]
fn a_pickle_that_calls_something_is_named() {
    let folder = Folder::of("gpt2_zip");
    for (file, function) in [
        ("malicious.bin", "posix.system"),
        ("malicious_legacy.bin", "posix.system"),
        ("malicious_pickle.bin", "__builtin__.eval"),
    ] {
        let error = folder.open_with("pytorch_model.bin", &std::fs::read(fixture(file)).unwrap()).unwrap();
        assert!(error.ends_with(&format!("the pickle wants to call `{function}`: refused")), "{error}");
    }
}

/// What a file is refused for, as a program sees it.
#[test]
fn a_reason_can_be_matched_on() {
    let folder = Folder::of("gpt2_zip");
    let whole = std::fs::read(fixture("gpt2_zip/pytorch_model.bin")).unwrap();
    let reason = |bytes: &[u8]| -> FormatError {
        std::fs::write(folder.0.path().join("pytorch_model.bin"), bytes).unwrap();
        match LoadOptions::new().open(folder.0.path()).unwrap_err() {
            Error::Malformed { path, source } => {
                assert!(path.ends_with("pytorch_model.bin"));
                *source.downcast().unwrap()
            }
            other => panic!("{other}"),
        }
    };
    let malicious = std::fs::read(fixture("malicious.bin")).unwrap();
    assert!(matches!(reason(&malicious), FormatError::Refused { function } if function == "posix.system"));
    assert!(matches!(reason(&whole[..whole.len() - 1]), FormatError::Truncated { .. }));
    assert!(matches!(reason(b"no weights"), FormatError::Corrupt { .. }));

    // The directory's second entry of a storage points at the first one's bytes.
    let mut overlapping = whole.clone();
    let entries: Vec<usize> =
        whole.windows(4).enumerate().filter(|(_, four)| four == b"PK\x01\x02").map(|(i, _)| i).collect();
    let storages: Vec<usize> = entries
        .into_iter()
        .filter(|entry| whole[entry + 46..].iter().take(40).any(|b| *b == b'/'))
        .filter(|entry| whole[*entry + 46..*entry + 80].windows(6).any(|name| name == b"/data/"))
        .collect();
    let header = whole[storages[0] + 42..storages[0] + 46].to_vec();
    overlapping[storages[1] + 42..storages[1] + 46].copy_from_slice(&header);
    let sizes = whole[storages[0] + 20..storages[0] + 28].to_vec();
    overlapping[storages[1] + 20..storages[1] + 28].copy_from_slice(&sizes);
    assert!(matches!(reason(&overlapping), FormatError::Overlap { .. }));
}

/// A pickle of a megabyte that would take gigabytes: one long name for thousands of tensors, and one tensor of 64 dimensions
/// thousands of times.
#[test]
fn a_bomb_is_refused_before_it_takes_memory() {
    let folder = Folder::of("gpt2_legacy");
    let error = |state_dict: Vec<u8>| {
        // Magic number, version, system, state dict, keys: torch.save before 1.6.
        let keys = &b"\x80\x02](\x8c\x010e."[..];
        let data = [&1u64.to_le_bytes()[..], &[0; 4]].concat(); // of one storage, its length and its entry
        let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
        let bytes = [magic, &b"\x80\x02M\xe9\x03."[..], b"\x80\x02}.", &state_dict, keys, &data].concat();
        folder.open_with("pytorch_model.bin", &bytes).unwrap()
    };
    let storage = b"((\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x01tQK\x00";
    let rebuild = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nq\x00";
    let name = [&b"X"[..], &500_000u32.to_le_bytes(), &[b'a'; 500_000], b"q\x02"].concat();
    let named = [&rebuild[..], storage, b"))tRq\x01", &name, b"}(", &b"h\x02h\x01".repeat(125_000), b"u."].concat();
    let found = error(named);
    assert!(found.contains("twice") && found.len() < 400, "{found}");
    let dims = [b"(", &b"K\x01".repeat(64)[..], b"t"].concat();
    let tensors = [&rebuild[..], storage, &dims, &dims, b"tq\x01", &b"h\x00h\x01R".repeat(200_000), b"."].concat();
    let found = error(tensors);
    assert!(found.contains("bytes of memory after") && found.contains("more than any checkpoint needs"), "{found}");
}

/// A mapped file that is cut ends the process with SIGBUS, as `LoadOptions::memory_map` says; one that is read does not.
#[test]
fn a_file_that_is_cut_while_it_loads_is_whole_where_it_was_read() {
    for (name, file) in [("gpt2", "model.safetensors"), ("gpt2_zip", "pytorch_model.bin")] {
        let folder = Folder::of(name);
        let path = folder.0.path().join(file);
        let load = LoadOptions::new().memory_map(false).on_progress(move |_, _| {
            std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
        });
        let want = HookedTransformer::from_pretrained(fixture(name)).unwrap().forward([1, 2, 3]).unwrap();
        assert!(load.open(folder.0.path()).unwrap().forward([1, 2, 3]).unwrap().equal(&want), "{name}");
        assert_eq!(std::fs::metadata(folder.0.path().join(file)).unwrap().len(), 0);
    }
}

#[test]
fn an_index_names_files_beside_it_only() {
    let folder = Folder::of("gpt2_sharded");
    for shard in ["../../etc/passwd", "/etc/passwd", "..", ".", "", "a/b"] {
        let index = serde_json::json!({ "weight_map": { "wte.weight": shard } }).to_string();
        let error = folder.open_with("pytorch_model.bin.index.json", index.as_bytes()).unwrap();
        assert!(error.ends_with(&format!("shard `{shard}` lies outside the folder of its index")), "{error}");
    }
    let index = serde_json::json!({ "weight_map": {} }).to_string();
    assert!(folder.open_with("pytorch_model.bin.index.json", index.as_bytes()).unwrap().contains("has no shards"));
    let index = serde_json::json!({ "weight_map": { "wte.weight": "missing.bin" } }).to_string();
    assert!(folder.open_with("pytorch_model.bin.index.json", index.as_bytes()).unwrap().contains("missing.bin"));
}

#[test]
fn a_safetensors_header_that_lies_is_refused() {
    let folder = Folder::of("gpt2");
    let file = |header: &str, data: usize| {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
    };
    let tensor =
        |offsets: &str, shape: &str| format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
    for bytes in [
        file(&tensor("[0,16]", "[4]"), 8),                      // more than there is
        file(&tensor("[0,16]", "[5]"), 16),                     // a shape of more than its bytes
        file(&tensor("[8,4]", "[1]"), 16),                      // an end before its start
        file(&tensor("[0,16]", "[9223372036854775807,2]"), 16), // a product past any number
        file(&tensor("[0,18446744073709551615]", "[4]"), 16),   // an end past any number
        [&u64::MAX.to_le_bytes()[..], b"{}"].concat(),          // a header longer than the file
        vec![],
        vec![0; 7],
    ] {
        let error = folder.open_with("model.safetensors", &bytes).unwrap();
        assert!(error.contains("model.safetensors: "), "{error}");
    }
    // Two tensors over each other.
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let error = folder.open_with("model.safetensors", &file(header, 12)).unwrap();
    assert!(error.contains("model.safetensors: "), "{error}");
}
