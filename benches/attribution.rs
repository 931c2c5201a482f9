//! Attributions beside the forward pass whose cache they read: a GPT-2-small-shaped model with random weights.
//!
//! `cargo bench -p tch-lens-benches --bench attribution` prints criterion's figures, and ratios of things timed in turns.

mod support;

use criterion::{criterion_group, Criterion};
use support::{gpt2_small, in_turns, peak_mb, reset_peak, tokens};
use tch_lens::{ActivationCache, FullOptions, HeadOptions, HookedTransformer, Target};

fn cache(model: &HookedTransformer, pos: i64) -> ActivationCache {
    model.run_with_cache(tokens(1, pos)).unwrap().1
}

fn everything(cache: &ActivationCache) {
    let attrs = cache.logit_attrs(FullOptions::new().target(Target::Unembed), 5).unwrap();
    assert_eq!(attrs.rows().len(), 36_864 + 144 + 3);
}

fn heads(cache: &ActivationCache) {
    cache.logit_attrs(HeadOptions::new(), 5).unwrap();
}

fn attribution(criterion: &mut Criterion) {
    let model = gpt2_small();
    let (at_32, at_128) = (cache(&model, 32), cache(&model, 128));
    let mut group = criterion.benchmark_group("attribution");
    group.sample_size(20);
    group.bench_function("36,864 neurons and 144 heads, 32 positions", |b| b.iter(|| everything(&at_32)));
    group.bench_function("144 heads, 128 positions", |b| b.iter(|| heads(&at_128)));
    group.finish();
}

criterion_group!(benches, attribution);

fn main() {
    benches();
    let model = gpt2_small();
    let (at_32, at_128) = (cache(&model, 32), cache(&model, 128));
    let (tokens_32, tokens_128) = (tokens(1, 32), tokens(1, 128));

    reset_peak();
    let before = peak_mb();
    everything(&at_32);
    println!(
        "\nmemory that the attribution of all neurons and heads at 32 positions takes: {:.1} MB",
        peak_mb() - before
    );

    println!();
    let times = in_turns(
        21,
        &mut [
            ("forward, 32 positions", &mut || drop(model.forward(&tokens_32).unwrap())),
            ("all neurons and heads, 32 positions", &mut || everything(&at_32)),
            ("forward, 128 positions", &mut || drop(model.forward(&tokens_128).unwrap())),
            ("all heads, 128 positions", &mut || heads(&at_128)),
        ],
    );
    println!("\nall neurons and heads / forward, 32 positions: {:.3}", times[1] / times[0]);
    println!("all heads / forward, 128 positions:            {:.3}", times[3] / times[2]);
}
