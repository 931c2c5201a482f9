//! What the tests share: a corpus that the toy model knows, and harvests of it.
#![allow(dead_code)] // each test binary uses a part

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch_lens::HookedTransformer;
use tch_lens_harvest::manifest::CorpusFormat;
use tch_lens_harvest::{DType, Job, Manifest, PlanOptions, Store};

pub const POINT: &str = "blocks.1.hook_resid_post";
pub const NEURONS: &str = "blocks.2.mlp.hook_post";

pub type Outcome = Result<(), Box<dyn std::error::Error>>;

const SENTENCES: [&str; 5] = [
    "The capital of France is Paris.",
    "The keys near the cabinet are",
    "When Mary and John went to the shop, John gave a bag to Mary",
    "The war lasted from 1732 to 1745",
    "Mary and John",
];

/// Documents of one to three sentences.
pub fn documents(n: usize) -> Vec<String> {
    (0..n)
        .map(|i| (0..1 + i % 3).map(|j| SENTENCES[(7 * i + 3 * j + i / 5) % 5]).collect::<Vec<_>>().join(" "))
        .collect()
}

/// A file with a document a line.
pub fn lines(folder: &Path, documents: &[String]) -> PathBuf {
    let path = folder.join("corpus.txt");
    std::fs::write(&path, documents.iter().map(|document| format!("{document}\n")).collect::<String>()).unwrap();
    path
}

/// Two points in a few small shards.
pub fn options() -> PlanOptions {
    PlanOptions::new("toy").point(POINT, DType::Fp32).point(NEURONS, DType::Fp16).shard_tokens(400).batch_tokens(256)
}

pub fn plan(options: PlanOptions, corpus: &Path) -> tch_lens_harvest::Result<Manifest> {
    options.plan(&HookedTransformer::toy()?, CorpusFormat::Lines, &[corpus.display().to_string()])
}

pub fn store(folder: &Path) -> Store {
    Store::open(&folder.display().to_string()).unwrap()
}

pub fn job(manifest: &Manifest, folder: &Path) -> tch_lens_harvest::Result<Job> {
    Job::new(manifest.clone(), HookedTransformer::toy()?, store(folder))
}

/// All files of a folder but unfinished ones, by their paths in it.
pub fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn visit(folder: &Path, root: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => visit(&path, root, found),
                false => {
                    found.insert(path.strip_prefix(root).unwrap().to_path_buf(), std::fs::read(&path).unwrap());
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    visit(folder, folder, &mut found);
    found
}

/// That two harvests have the same files with the same bytes, and nothing else.
pub fn assert_equal(folder: &Path, other: &Path) {
    let (found, expected) = (files(folder), files(other));
    let names = |files: &BTreeMap<PathBuf, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&expected));
    for (path, bytes) in &expected {
        assert!(found[path] == *bytes, "{} differs", path.display());
    }
}
