//! What the benchmarks share: models of a size, and ratios of things timed in turns within one run.
#![allow(dead_code)]

use std::sync::OnceLock;
use std::time::Instant;

use tch::{Device, Kind, Tensor};
use tch_lens::{Config, HookedTransformer};

/// GPT-2 small's shape, with random weights.
pub fn gpt2_small() -> HookedTransformer {
    let config = Config {
        model_name: "gpt2-small-shaped".into(),
        tie_word_embeddings: true,
        ..Config::new(12, 768, 12, 50_257, 1024)
    };
    HookedTransformer::init(config, 0).unwrap()
}

/// Random tokens: `[batch, pos]`.
pub fn tokens(batch: i64, pos: i64) -> Tensor {
    Tensor::randint(50257, [batch, pos], (Kind::Int64, Device::Cpu))
}

/// Milliseconds since some time: of the wall's clock, or with `BENCH_CPU_TIME=1` those that this thread computed, which is what to
/// compare on a machine that does other things, too, with `OMP_NUM_THREADS=1`.
fn clock() -> f64 {
    static START: OnceLock<(Instant, bool)> = OnceLock::new();
    let (start, cpu) = START.get_or_init(|| (Instant::now(), std::env::var("BENCH_CPU_TIME").is_ok_and(|v| v == "1")));
    if !cpu {
        return start.elapsed().as_secs_f64() * 1e3;
    }
    let times = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    times.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e6
}

/// Times each of these in turns, and gives their medians in milliseconds: what else the machine does falls on all alike.
pub fn in_turns(rounds: usize, things: &mut [(&str, &mut dyn FnMut())]) -> Vec<f64> {
    for (_, thing) in things.iter_mut() {
        thing(); // warm up
    }
    let mut times = vec![Vec::with_capacity(rounds); things.len()];
    for _ in 0..rounds {
        for ((_, thing), times) in things.iter_mut().zip(&mut times) {
            let start = clock();
            thing();
            times.push(clock() - start);
        }
    }
    let medians = times.iter_mut().map(|times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    let medians: Vec<f64> = medians.collect();
    for (((name, _), times), median) in things.iter().zip(&times).zip(&medians) {
        let (min, max) = (times[0], times[times.len() - 1]);
        println!("{name:<44} {median:>9.2} ms  (min {min:.2}, max {max:.2}, {rounds} rounds)");
    }
    medians
}

/// The process' largest memory so far, in MB, from the system.
pub fn peak_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN) / 1e3
}

/// Forgets the largest memory so far.
pub fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
