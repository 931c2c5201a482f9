//! From a checkpoint on disk to a model in memory: a GPT-2-small-shaped one with random weights, in Hugging Face's layout.
//!
//! `cargo bench -p tch-lens-benches --bench loading` prints the time to load and process it, and the largest memory that loading and one run of 128
//! positions take, each in a process of its own, over the size of the weights.

mod support;

use std::path::Path;
use std::process::Command;

use support::{gpt2_small, in_turns, peak_mb, tokens};
use tch::Kind;
use tch_lens::{HookedTransformer, LoadOptions};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|arg| arg == "--peak-of") {
        return peak_of(Path::new(&args[at + 1]), args[at + 2] == "processed");
    }
    let folder = tempfile::tempdir().unwrap();
    gpt2_small().save_hugging_face(folder.path(), Kind::Float).unwrap();
    let size: u64 = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
    println!("checkpoint of {:.0} MB, in the system's file cache", size as f64 / 1e6);

    in_turns(
        7,
        &mut [
            ("load and process", &mut || drop(LoadOptions::new().open(folder.path()).unwrap())),
            ("load as it is", &mut || drop(LoadOptions::new().no_processing().open(folder.path()).unwrap())),
        ],
    );
    for how in ["processed", "as it is"] {
        let program = std::env::current_exe().unwrap();
        let status = Command::new(program).arg("--peak-of").arg(folder.path()).arg(how).status().unwrap();
        assert!(status.success());
    }
}

/// Loads the model and runs it once, and prints what that took.
fn peak_of(folder: &Path, processed: bool) {
    let load = if processed { LoadOptions::new() } else { LoadOptions::new().no_processing() };
    let model: HookedTransformer = load.open(folder).unwrap();
    let loaded = peak_mb();
    let _ = model.forward(tokens(1, 128)).unwrap();
    let weights = model.parameters().iter().map(|(_, t)| t.numel() * t.kind().elt_size_in_bytes()).sum::<usize>();
    let (weights, peak) = (weights as f64 / 1e6, peak_mb());
    let how = if processed { "processed" } else { "as it is" };
    println!(
        "{how}: peak {loaded:.0} MB loaded, {peak:.0} MB after one run at 1 x 128; weights {weights:.0} MB; {:.2}",
        peak / weights
    );
}
