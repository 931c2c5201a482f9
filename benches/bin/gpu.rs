//! What a GPU makes of a Llama-1B-shaped model in bf16, and of GPT-2 small's shape in fp32: forward, full cache, `resid_post` alone, the
//! share of the device's matrix-product rate, and a cache that moves to the CPU's memory while the run goes on.
//!
//! ```text
//! cargo run --release -p tch-lens-benches --bin gpu
//! ```
//!
//! Weights are random. Needs a libtorch with CUDA (docs/setup.md); without a GPU it says so and ends.

use std::error::Error;
use std::time::Instant;

use lexopt::prelude::*;
use tch::{Cuda, Device, Kind, Tensor};
use tch_lens::config::{Activation, MlpConfig, NormConfig, Normalization, Positions, Rotary};
use tch_lens::{hook, Config, HookFilter, HookedTransformer, LoadOptions, ReturnType, RunOptions};

const HELP: &str = "\
Forward, cache and filters on a GPU

  --batch N       (default: 8)
  --positions N   (default: 1024)
  --rounds N      how often each is timed (default: 10)";

struct Options {
    batch: i64,
    positions: i64,
    rounds: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut options = Options { batch: 8, positions: 1024, rounds: 10 };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("batch") => options.batch = arguments.value()?.parse()?,
            Long("positions") => options.positions = arguments.value()?.parse()?,
            Long("rounds") => options.rounds = arguments.value()?.parse()?,
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let device = tch_lens::cuda_if_available();
    if !device.is_cuda() {
        println!("libtorch sees no GPU, so there is nothing to measure: docs/setup.md says which libtorch has CUDA.");
        return Ok(());
    }
    tch_lens::tune_allocator();
    println!("{} x {} positions, medians of {} rounds", options.batch, options.positions, options.rounds);
    println!(
        "{:<22}{:<10}{:>12}{:>14}{:>14}{:>18}{:>12}",
        "model", "kind", "forward", "full cache", "resid_post", "cache to the CPU", "of peak"
    );
    let models = [("Llama 1B's shape", llama_1b(), Kind::BFloat16), ("GPT-2 small's", gpt2(), Kind::Float)];
    for (name, config, kind) in models {
        table_row(name, config, kind, device, &options)?;
    }
    Ok(())
}

fn table_row(name: &str, config: Config, kind: Kind, device: Device, options: &Options) -> Result<(), Box<dyn Error>> {
    // Made on the CPU, and moved.
    let weights = HookedTransformer::init(config.clone(), 0)?.state_dict()?;
    let model = LoadOptions::new().no_processing().kind(kind).device(device).state_dict(config, weights)?;
    let size = [options.batch, options.positions];
    let tokens = Tensor::randint(model.config().d_vocab as i64, size, (Kind::Int64, Device::Cpu));
    let nothing = || RunOptions::new().return_type(ReturnType::Logits);
    let entries = model.plan(&RunOptions::new().cache(HookFilter::All))?;
    let bytes = entries.estimate(options.batch as usize, options.positions as usize)?;
    let time = |run: &dyn Fn() -> RunOptions<'static>| -> Result<f64, tch_lens::Error> {
        let mut times = Vec::new();
        for _ in 0..options.rounds + 2 {
            Cuda::synchronize(0);
            let start = Instant::now();
            drop(model.run(&tokens, run())?);
            Cuda::synchronize(0);
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.drain(..2); // warming up
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    };
    let forward = time(&nothing)?;
    let full = time(&|| RunOptions::new().cache(HookFilter::All))?;
    let resid = time(&|| RunOptions::new().cache("resid_post"))?;
    // Room for one layer's: the others leave while the run goes on.
    let one = model.plan(&RunOptions::new().cache(hook::resid_post(0)))?;
    let one = one.estimate(options.batch as usize, options.positions as usize)?;
    let moved = time(&|| RunOptions::new().cache("resid_post").budget(one))?;
    let products: i64 = model.parameters().iter().filter(|(_, w)| w.dim() == 2).map(|(_, w)| w.numel() as i64).sum();
    let rate = 2.0 * (size[0] * size[1] * products) as f64 / (forward * 1e-3);
    println!(
        "{name:<22}{:<10}{forward:>9.1} ms{full:>11.1} ms{resid:>11.1} ms{moved:>15.1} ms{:>10.0} %",
        format!("{kind:?}"),
        100.0 * rate / peak(kind, device)
    );
    println!("{:<32}a full cache takes {:.1} GB", "", bytes as f64 / 1e9);
    Ok(())
}

/// Operations a second of one large matrix product.
fn peak(kind: Kind, device: Device) -> f64 {
    let (a, b) = (Tensor::ones([8192, 8192], (kind, device)), Tensor::ones([8192, 8192], (kind, device)));
    let mut best = 0.0f64;
    for _ in 0..10 {
        Cuda::synchronize(0);
        let start = Instant::now();
        let _ = a.matmul(&b);
        Cuda::synchronize(0);
        best = best.max(2.0 * 8192f64.powi(3) / start.elapsed().as_secs_f64());
    }
    best
}

fn llama_1b() -> Config {
    Config {
        n_key_value_heads: 8,
        mlp: Some(MlpConfig::gated(8192, Activation::Silu)),
        norms: NormConfig::new(Normalization::RMS),
        positions: Positions::rotary(Rotary::new(64, 500_000.0)),
        tie_word_embeddings: true,
        ..Config::new(16, 2048, 32, 128_256, 8192)
    }
}

fn gpt2() -> Config {
    Config { tie_word_embeddings: true, ..Config::new(12, 768, 12, 50_257, 1024) }
}
