//! What a long sequence takes: memory and time of a run that keeps `resid_post` alone, length by length.
//!
//! A small model with fresh weights and a context of 16,384 positions. Memory grows with the length, and not its square: no
//! scores and no masks of all queries and keys are made, whatever the attention is like.
//!
//! ```text
//! cargo run --release -p tch-lens-benches --bin long_context
//! cargo run --release -p tch-lens-benches --bin long_context -- --attention alibi
//! ```

use std::error::Error;
use std::time::Instant;

use lexopt::prelude::*;
use tch::{Device, Kind, Tensor};
use tch_lens::config::{PerLayer, Positions, Reach};
use tch_lens::{Config, HookedTransformer, ReturnType, RunOptions};

const HELP: &str = "\
Memory and time by the length of the sequence

  --attention KIND   plain, local (every other layer sees 256 positions), alibi or soft-capped, as Gemma 2's (default: plain)
  --lengths N,N,…    (default: 1024,2048,4096,8192,16384)";

#[derive(Clone, Copy)]
enum Attention {
    Plain,
    Local,
    Alibi,
    SoftCapped,
}

fn attention(name: &str) -> Result<Attention, String> {
    match name {
        "plain" => Ok(Attention::Plain),
        "local" => Ok(Attention::Local),
        "alibi" => Ok(Attention::Alibi),
        "soft-capped" => Ok(Attention::SoftCapped),
        _ => Err("the kinds are plain, local, alibi and soft-capped".into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut kind = Attention::Plain;
    let mut lengths: Vec<usize> = vec![1024, 2048, 4096, 8192, 16384];
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("attention") => kind = arguments.value()?.parse_with(attention)?,
            Long("lengths") => {
                let list = arguments.value()?.string()?;
                lengths = list.split(',').map(str::parse).collect::<Result<_, _>>()?;
            }
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let longest = lengths.iter().copied().max().unwrap_or(1);
    let mut config = Config::new(4, 128, 4, 1000, longest);
    match kind {
        Attention::Plain => {}
        Attention::Local => {
            let layers = [Reach::Window(256), Reach::Global, Reach::Window(256), Reach::Global];
            config.attention.reach = PerLayer::Each(layers.to_vec());
        }
        Attention::Alibi => config.positions = Positions::alibi(8.0),
        Attention::SoftCapped => config.attention.scores_soft_cap = Some(50.0),
    }
    let model = HookedTransformer::init(config, 0)?;
    let run = || RunOptions::new().cache("resid_post").return_type(ReturnType::None);
    model.run([1, 2, 3], run())?; // what libtorch sets up once
    println!("{:>9}{:>14}{:>14}{:>18}{:>10}", "positions", "cache", "peak memory", "bytes a position", "seconds");
    for length in lengths {
        let tokens = Tensor::randint(1000, [1, length as i64], (Kind::Int64, Device::Cpu));
        let estimate = model.plan(&run())?.estimate(1, length)?;
        let before = reset_peak();
        let start = Instant::now();
        let cache = model.run(&tokens, run())?.cache;
        let seconds = start.elapsed().as_secs_f64();
        let peak = peak() - before;
        assert_eq!(cache.len(), 4);
        let (cache, of_one) = (estimate as f64 / 1e6, peak / length as f64);
        println!("{length:>9}{cache:>11.1} MB{:>11.1} MB{of_one:>18.0}{seconds:>10.2}", peak / 1e6);
    }
    Ok(())
}

/// A line of `/proc/self/status`, in bytes.
fn status(what: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN) * 1024.0
}

/// The largest memory so far.
fn peak() -> f64 {
    status("VmHWM:")
}

/// Forgets the largest memory so far, and gives the present one.
fn reset_peak() -> f64 {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    status("VmRSS:")
}
