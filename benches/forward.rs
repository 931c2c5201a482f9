//! The forward pass, and what looking at it costs: a GPT-2-small-shaped model with random weights.
//!
//! `cargo bench -p tch-lens-benches --bench forward` prints criterion's figures, and then ratios of things timed in turns, which are what to compare
//! between versions: machines differ, and change from minute to minute.

mod support;

use criterion::{criterion_group, Criterion};
use support::{gpt2_small, in_turns, peak_mb, reset_peak, tokens};
use tch::Tensor;
use tch_lens::{hook, HookedTransformer, ReturnType, RunOptions};

const SIZES: [(i64, i64); 4] = [(1, 16), (1, 128), (8, 128), (1, 1024)];

fn forward(model: &HookedTransformer, tokens: &Tensor) {
    let _ = model.forward(tokens).unwrap();
}

fn full_cache(model: &HookedTransformer, tokens: &Tensor) {
    let _ = model.run_with_cache(tokens).unwrap();
}

fn resid_post(model: &HookedTransformer, tokens: &Tensor) {
    let _ = model.run_with_cache_of(tokens, "resid_post").unwrap();
}

/// One layer's stream, and nothing after it.
fn one_layer(model: &HookedTransformer, tokens: &Tensor, layer: usize) {
    model.run(tokens, RunOptions::new().cache(hook::resid_post(layer)).return_type(ReturnType::None)).unwrap();
}

fn criterion_figures(criterion: &mut Criterion) {
    let model = gpt2_small();
    for (batch, pos) in SIZES {
        let tokens = tokens(batch, pos);
        let mut group = criterion.benchmark_group(format!("{batch} x {pos}"));
        group.sample_size(10);
        group.bench_function("forward", |b| b.iter(|| forward(&model, &tokens)));
        group.bench_function("full cache", |b| b.iter(|| full_cache(&model, &tokens)));
        group.bench_function("resid_post only", |b| b.iter(|| resid_post(&model, &tokens)));
        group.finish();
    }
}

criterion_group!(benches, criterion_figures);

fn main() {
    let tuned = std::env::var("BENCH_TUNED").as_deref() != Ok("0");
    println!("allocator: {:?}", tuned.then(tch_lens::tune_allocator));
    if std::env::args().any(|arg| arg == "--ratios") {
        return ratios(); // cargo bench -p tch-lens-benches --bench forward -- --ratios
    }
    benches();
    ratios();
}

fn ratios() {
    let model = gpt2_small();
    for (batch, pos) in SIZES {
        let tokens = tokens(batch, pos);
        let rounds = if batch * pos > 128 { 5 } else { 11 };
        println!("\n{batch} x {pos}");
        let times = in_turns(
            rounds,
            &mut [
                ("forward", &mut || forward(&model, &tokens)),
                ("full cache", &mut || full_cache(&model, &tokens)),
                ("resid_post only", &mut || resid_post(&model, &tokens)),
            ],
        );
        println!(
            "full cache / forward: {:.2}; resid_post only / forward: {:.2}",
            times[1] / times[0],
            times[2] / times[0]
        );
    }
    let tokens = tokens(1, 128);
    println!("\none layer's resid_post without logits, 1 x 128");
    let times = in_turns(
        11,
        &mut [
            ("forward", &mut || forward(&model, &tokens)),
            ("layer 0", &mut || one_layer(&model, &tokens, 0)),
            ("layer 5", &mut || one_layer(&model, &tokens, 5)),
            ("layer 11", &mut || one_layer(&model, &tokens, 11)),
        ],
    );
    for (layer, time) in [0, 5, 11].into_iter().zip(&times[1..]) {
        let (ratio, bound) = (time / times[0], (layer as f64 + 1.0) / 12.0 + 0.05);
        println!("layer {layer} / forward: {ratio:.3} (at most {bound:.3})");
    }
    reset_peak();
    full_cache(&model, &tokens);
    println!("\npeak memory after a run with a full cache, 1 x 128: {:.0} MB", peak_mb());
}
