//! What a saved cache costs: to write, to open with its model and without, and to read one activation of it; and the hash of a model's
//! weights, by which a file knows its model.
//!
//! ```text
//! cargo run --release -p tch-lens-benches --bin saved_caches [GIGABYTES]
//! ```

use std::error::Error;
use std::time::Instant;

#[path = "../support/mod.rs"]
mod support;

use support::gpt2_small;
use tch::{Device, Kind, Tensor};
use tch_lens::{ActivationCache, FileSink, HookedTransformer, ReturnType, RunOptions};

fn main() -> Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let wanted = std::env::args().nth(1).map_or(Ok(1.0), |text| text.parse::<f64>())?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("cache.safetensors");
    let model = HookedTransformer::toy()?;
    let run = || RunOptions::new().cache(model.hook_names()).return_type(ReturnType::None);

    // As many rows as the file is to have: one row first.
    let tokens = |rows: i64| Tensor::arange(rows * 64, (Kind::Int64, Device::Cpu)).remainder(1000).view([rows, 64]);
    let one: usize =
        model.run(tokens(1), run())?.cache.items().map(|(_, x)| x.numel() * x.kind().elt_size_in_bytes()).sum();
    let rows = (wanted * 1e9 / one as f64).ceil() as i64;
    let start = Instant::now();
    model.run(tokens(rows), run().sink(FileSink::new(&path)))?;
    let bytes = std::fs::metadata(&path)?.len() as f64;
    println!("written by a run of {rows} x 64 tokens: {:.2} GB in {:.2} s", bytes / 1e9, start.elapsed().as_secs_f64());

    let before = resident();
    println!("{:<28}{:>10}{:>14}{:>18}{:>14}", "", "opened", "in memory", "one activation", "in memory");
    for what in ["with the model", "with the model, again", "without the model"] {
        let start = Instant::now();
        let cache = match what {
            "without the model" => ActivationCache::open(&path)?,
            _ => model.open_cache(&path)?,
        };
        let (opened, then) = (start.elapsed().as_secs_f64(), resident() - before);
        let start = Instant::now();
        let sum = cache[("z", 2)].sum(Kind::Double).double_value(&[]);
        assert!(sum.is_finite());
        let (read, now) = (start.elapsed().as_secs_f64(), resident() - before);
        println!("{what:<28}{:>7.2} ms{then:>+11.0} MB{:>15.2} ms{now:>+11.0} MB", opened * 1e3, read * 1e3);
    }

    let gpt2 = gpt2_small();
    let bytes: usize = gpt2.parameters().iter().map(|(_, x)| x.numel() * x.kind().elt_size_in_bytes()).sum();
    let start = Instant::now();
    let hash = gpt2.weights_hash()?;
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "hash of {:.2} GB of weights, once for a model: {:.2} s, {:.2} s a GB ({}…)",
        bytes as f64 / 1e9,
        seconds,
        seconds / (bytes as f64 / 1e9),
        &hash[..8]
    );
    Ok(())
}

/// The memory of this process, in MB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e3
}
