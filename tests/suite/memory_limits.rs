//! Memory that runs out is an error at every allocation of a tensor: no panic, no abort, no signal.
//!
//! A child process may take so much more memory than it has when the work begins (`RLIMIT_AS`), and then, again and again, a little
//! more, until all of the work succeeds. libtorch's threads are started before: creating one is no allocation of a tensor, and
//! libtorch ends the process where it fails.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use tch::{Kind, Tensor};
use tch_lens::circuits::{Ablation, CircuitTask, EdgeMethod};
use tch_lens::{
    ActivationCache, Config, DecomposeOptions, FullOptions, GenerateOptions, HookedTransformer, KeyValueStore,
    LensOptions, LoadOptions, Metric, ReturnType, RunOptions, RunOutput, StepOptions,
};

use crate::common::child;

/// What a process may take beyond what it has, from nothing to 160 MB: small steps first.
fn extras() -> impl Iterator<Item = u64> {
    (0..100u64).map(|step| (step * step) << 14)
}

/// A model, and what a run of it gave.
struct Study {
    folder: PathBuf,
    ids: Tensor,
    model: HookedTransformer,
    cache: ActivationCache,
}

type Task = fn(&Study) -> tch_lens::Result<()>;

fn greedy() -> GenerateOptions {
    GenerateOptions::new().do_sample(false).stop_at_eos(false).max_new_tokens(6)
}

/// Each takes memory.
const TASKS: [(&str, Task); 16] = [
    ("load", |study| LoadOptions::new().open(&study.folder).map(drop)),
    ("load without processing", |study| LoadOptions::new().no_processing().open(&study.folder).map(drop)),
    ("load as bf16", |study| LoadOptions::new().kind(Kind::BFloat16).open(&study.folder).map(drop)),
    ("run", |study| study.model.forward(&study.ids).map(drop)),
    ("run with a full cache", |study| study.model.run_with_cache(&study.ids).map(drop)),
    ("decompose", |study| {
        study.cache.get_full_resid_decomposition(FullOptions::default().expand_neurons(false)).map(drop)
    }),
    ("attribute", |study| {
        study.cache.logit_attrs(&study.cache.decompose_resid(DecomposeOptions::default())?, 3).map(drop)
    }),
    ("lens", |study| study.cache.logit_lens(LensOptions::new().pos(-1)).map(drop)),
    ("gradients", |study| {
        let loss = |run: &RunOutput| Ok(run.loss_tensor()?.shallow_clone());
        let run = RunOptions::new().return_type(ReturnType::Loss);
        study.model.run_with_grad(&study.ids, run, loss).map(drop)
    }),
    ("score edges", |study| {
        let metric = Metric::logit_diff(3, 5);
        let task = CircuitTask::new(&study.model, &study.ids, Ablation::zero(), &metric)?;
        task.edge_scores(EdgeMethod::Gradient).map(drop)
    }),
    ("generate", |study| study.model.generate(study.ids.narrow(1, 0, 40), &greedy()).map(drop)),
    ("continue a shared prefix", |study| {
        let mut prefix = KeyValueStore::new(&study.model, 1, 64)?;
        study.model.run(&study.ids, RunOptions::new().past(&mut prefix))?;
        let mut shared = prefix.rows(&[0, 0])?;
        shared.truncate(60)?;
        study.model.run(study.ids.narrow(1, 0, 2).f_expand([2, 2], false)?, RunOptions::new().past(&mut shared))?;
        prefix.truncate(48)?;
        let steps = StepOptions::new().past(prefix).cache("resid_post").logits(true);
        study.model.generate_with(study.ids.narrow(1, 0, 4), &greedy(), steps)?;
        shared.save(study.folder.join("prefix"))
    }),
    ("save and open a cache", |study| {
        let path = study.folder.join("cache");
        study.cache.save(&path)?;
        study.model.open_cache(&path)?.logit_lens(LensOptions::new().pos(-1)).map(drop)
    }),
    ("to another kind", |study| study.model.to_kind(Kind::Double).map(drop)),
    ("fresh weights", |study| HookedTransformer::init(study.model.config().clone(), 0).map(drop)),
    ("save", |study| study.model.save_pretrained(study.folder.join("saved"))),
];

/// How much memory the process has.
fn size() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * pages.split(' ').next().unwrap().parse::<u64>().unwrap()
}

/// Gives the heap's free end back to the system.
fn trim() {
    // SAFETY: may be called at any time.
    unsafe { libc::malloc_trim(0) };
}

/// Lets the process have so much memory.
fn limit(bytes: u64) {
    let limits = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: sets a limit of this process.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limits) }, 0);
}

const GAP: usize = 1 << 15;

/// Leaves free memory in the heap for small allocations, in gaps that no tensor of more than 32 kB fits into: where a small
/// allocation fails, Rust aborts.
fn reserve_gaps() {
    let mut blocks: Vec<Option<Box<[u8; GAP]>>> = (0..1000).map(|_| Some(Box::new([1; GAP]))).collect();
    blocks.iter_mut().step_by(2).for_each(|block| *block = None);
    std::mem::forget(blocks);
}

/// Every task, with more and more memory until it succeeds: prints how often it failed.
fn try_all(folder: PathBuf) {
    tch::set_num_threads(1);
    let ids = Tensor::from_slice(&(0..64).collect::<Vec<i64>>()).unsqueeze(0);
    let model = HookedTransformer::from_pretrained(&folder).unwrap();
    let (_, cache) = model.run_with_cache(&ids).unwrap();
    let study = Study { folder, ids, model, cache };
    reserve_gaps();
    for (name, task) in TASKS {
        let mut failures = BTreeSet::new();
        let tries = extras().take_while(|extra| {
            println!("{name}, {extra} bytes");
            trim();
            limit(size() + extra);
            let result = task(&study);
            limit(libc::RLIM_INFINITY);
            result.map_err(|error| failures.insert(error.to_string())).is_err()
        });
        println!("task {name}: {} limits, {} errors, such as {:?}", tries.count(), failures.len(), failures.first());
    }
}

#[test]
fn memory_that_runs_out_is_an_error() {
    if let Some(folder) = child::argument() {
        return try_all(folder.into());
    }
    let folder = tempfile::tempdir().unwrap();
    let config = Config { tie_word_embeddings: true, ..Config::new(2, 160, 4, 3000, 64) };
    HookedTransformer::init(config, 0).unwrap().save_hugging_face(folder.path(), Kind::Float).unwrap();
    let folder = folder.path().to_str().unwrap();
    // Each tensor of more than some kilobytes is a block that the system gives, or refuses.
    let strict = |child: &mut Command| {
        child.env("MALLOC_ARENA_MAX", "1").env("MALLOC_MMAP_THRESHOLD_", "40000");
        child.env("MALLOC_TOP_PAD_", "0").env("MALLOC_TRIM_THRESHOLD_", "1000000000");
    };
    let text = child::run("memory_limits::memory_that_runs_out_is_an_error", folder, strict)
        .unwrap_or_else(|text| panic!("{text}"));
    let tasks: Vec<&str> = text.lines().filter(|line| line.starts_with("task ")).collect();
    println!("{}", tasks.join("\n"));
    assert_eq!(tasks.len(), TASKS.len(), "{text}");
    for task in tasks {
        assert!(!task.contains(": 0 limits"), "{task}");
    }
}

/// Each matrix, or all of them together, is more than any machine has.
#[test]
fn fresh_weights_of_absurd_sizes_are_an_error() {
    if child::argument().is_none() {
        child::run("memory_limits::fresh_weights_of_absurd_sizes_are_an_error", "", |_| ()).unwrap();
        return;
    }
    limit(size() + (4 << 30)); // a system may promise more than it has
    for config in [
        Config::new(1, 1 << 12, 64, 1 << 28, 8),
        Config::new(1, 1 << 12, 64, 8, 1 << 28),
        Config::new(1, 1 << 19, 64, 8, 8),
        Config::new(1 << 12, 1 << 14, 64, 8, 8), // no matrix takes more than 4 GB
        Config { d_vocab_out: 1 << 28, ..Config::new(1, 1 << 12, 64, 8, 8) },
    ] {
        config.validate().unwrap();
        let error = HookedTransformer::init(config, 0).unwrap_err();
        assert!(matches!(error, tch_lens::Error::Torch(_)), "{error}");
    }
    let error = HookedTransformer::init(Config::new(usize::MAX, 64, 4, 8, 8), 0).unwrap_err();
    assert!(matches!(error, tch_lens::Error::ConfigField { .. }), "{error}");
}
