//! How many threads a model needs: time and CPU time of a run on one thread, on two, and so on to all cores.
//!
//! Small products cost less than the threads that share them: the other threads wait for work, and waiting is CPU time.
//!
//! ```text
//! cargo run --release -p tch-lens-benches --bin threads
//! ```

use std::error::Error;
use std::time::Instant;

#[path = "../support/mod.rs"]
mod support;

use support::gpt2_small;
use tch::{Device, Kind, Tensor};
use tch_lens::HookedTransformer;

/// Each figure is of runs for at least this many seconds.
const SECONDS: f64 = 2.0;

fn main() -> Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let cores = std::thread::available_parallelism()?.get();
    let counts: Vec<usize> = (0..).map(|power| 1 << power).take_while(|count| *count < cores).chain([cores]).collect();
    println!("{:<24}{:>9}{:>12}{:>12}", "", "threads", "time", "CPU time");
    let (toy, gpt2) = (HookedTransformer::toy()?, gpt2_small());
    for (name, model, batch, pos) in [
        ("toy, 1 x 16", &toy, 1, 16),
        ("toy, 32 x 32", &toy, 32, 32),
        ("GPT-2 small, 1 x 16", &gpt2, 1, 16),
        ("GPT-2 small, 1 x 128", &gpt2, 1, 128),
        ("GPT-2 small, 8 x 128", &gpt2, 8, 128),
    ] {
        let tokens = Tensor::arange(batch * pos, (Kind::Int64, Device::Cpu)).remainder(500).view([batch, pos]);
        for threads in &counts {
            tch::set_num_threads(*threads as i32);
            let (time, cpu) = measured(model, &tokens)?;
            println!("{name:<24}{threads:>9}{time:>9.2} ms{cpu:>9.2} ms");
        }
    }
    Ok(())
}

/// Milliseconds of a run with a full cache: by the clock, and of all threads' CPU time.
fn measured(model: &HookedTransformer, tokens: &Tensor) -> tch_lens::Result<(f64, f64)> {
    let _ = model.run_with_cache(tokens)?;
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let mut runs = 0.0;
    while start.elapsed().as_secs_f64() < SECONDS {
        let _ = model.run_with_cache(tokens)?;
        runs += 1.0;
    }
    Ok((start.elapsed().as_secs_f64() * 1e3 / runs, (cpu_seconds() - cpu) * 1e3 / runs))
}

/// CPU seconds of all of this process' threads so far, as Linux counts them, to a hundredth.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / 100.0
}
