//! How much memory loading takes: at most 1.3 times the weights in the kind that they are loaded as.
//!
//! Measured in a process of its own for each case, on a random GPT-2 of 100 MB: its embedding is a third of it, as in
//! GPT-2 small, so that no tensor may be held twice. Counted are the pages that are the process' own (`RssAnon`), many times
//! a millisecond; those of the mapped file are the system's to drop. In fp32 they count as well, over loading and a run of 128
//! positions: at most 1.5 times the weights in all.

use crate::common::child;
use crate::common::memory::{peak_of, status};
use tch::Kind;
use tch_lens::{Config, HookedTransformer, LoadOptions};

#[test]
fn loading_takes_at_most_1_3_times_the_weights() {
    if let Some(case) = child::argument() {
        return measure(&case);
    }
    let folder = tempfile::tempdir().unwrap();
    let (n_layers, d_model) = (8, 384);
    let config = Config { tie_word_embeddings: true, ..Config::new(n_layers, d_model, 6, 24_000, 512) };
    let model = HookedTransformer::init(config, 0).unwrap();
    println!(
        "checkpoint: {} MB of fp32, {} MB of it the embedding",
        mb(4 * model.n_params()),
        mb(4 * 24_000 * d_model)
    );
    model.save_hugging_face(folder.path(), Kind::Float).unwrap();
    drop(model);
    let mut failed = Vec::new();
    for case in ["fp32 raw", "fp32 processed", "bf16 raw", "bf16 processed", "fp16 processed"] {
        let argument = format!("{case}|{}", folder.path().display());
        match child::run("memory::loading_takes_at_most_1_3_times_the_weights", &argument, |_| ()) {
            Ok(text) => {
                let figures: Vec<&str> = text.lines().filter(|line| line.starts_with(case)).collect();
                assert!(!figures.is_empty(), "{case} measured nothing:\n{text}");
                println!("{}", figures.join("\n"));
            }
            Err(text) => {
                println!("{text}");
                failed.push(case);
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

fn measure(case: &str) {
    let (case, folder) = case.split_once('|').unwrap();
    let (kind, processed) = case.split_once(' ').unwrap();
    let kind = match kind {
        "fp32" => Kind::Float,
        "bf16" => Kind::BFloat16,
        _ => Kind::Half,
    };
    let load = LoadOptions::new().kind(kind);
    let load = if processed == "raw" { load.no_processing() } else { load };
    // The start of libtorch costs memory as well, and so does the code that loads and runs: a small model has passed it before.
    let small = tempfile::tempdir().unwrap();
    HookedTransformer::init(Config::new(1, 8, 1, 16, 16), 0)
        .unwrap()
        .save_hugging_face(small.path(), Kind::Float)
        .unwrap();
    let _ = load.open(small.path()).unwrap().forward(vec![0, 1, 2]).unwrap();
    let counts_all = std::fs::write("/proc/self/clear_refs", "5").is_ok(); // forgets the largest size so far
    let all_before = status("VmRSS:");
    let start = std::time::Instant::now();
    let (model, peak) = peak_of(|| load.open(folder).unwrap());
    let seconds = start.elapsed().as_secs_f64();
    let weights: usize = model.parameters().iter().map(|(_, w)| w.numel() * w.kind().elt_size_in_bytes()).sum();
    let times = peak as f64 / weights as f64;
    println!(
        "\n{case}: {} MB of weights, at most {} MB at once: {times:.2} times, {seconds:.2} s",
        mb(weights),
        mb(peak)
    );
    assert!(times <= 1.3, "{case}: {times:.2}");
    if kind == Kind::Float && counts_all {
        let ids: Vec<i64> = (0..128).collect();
        let _ = model.forward(ids).unwrap();
        let times = (status("VmHWM:") - all_before) as f64 / weights as f64;
        println!("{case}: with a run and the file's pages {times:.2} times");
        assert!(times <= 1.5, "{case}: {times:.2} with the file's pages");
    }
}

fn mb(bytes: usize) -> usize {
    bytes >> 20
}
