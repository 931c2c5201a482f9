//! How much memory sweeps of patches take beside the model and the two runs: at most their budget. And how much the scores of edges take.
//!
//! Measured in a process of its own for each case, in which large tensors are given back to the system as soon as they are dropped.

use tch::Tensor;
use tch_lens::circuits::{Ablation, CircuitTask, EdgeMethod};
use tch_lens::patching::{activation_patch, path_patch, PatchAxis, PatchIndex, PatchingOptions, PathOptions};
use tch_lens::{hook, Config, HookedTransformer, Metric};

use crate::common::child;
use crate::common::memory::largest_of;

const MB: usize = 1 << 20;
/// What an allocator and libtorch's threads take besides.
const SLACK: usize = MB;
const BUDGETS: [usize; 2] = [2 * MB, 10 * MB];
const POS: usize = 48;

fn model() -> HookedTransformer {
    HookedTransformer::init(Config { n_key_value_heads: 2, ..Config::new(3, 64, 4, 1000, POS) }, 0).unwrap()
}

/// Two rows of tokens; with `by` zero, those of the clean run.
fn tokens(by: i64) -> Tensor {
    let ids = Tensor::arange(2 * POS as i64, (tch::Kind::Int64, tch::Device::Cpu)) * 7919 + by;
    ids.remainder(1000).view([2, POS as i64])
}

/// Runs the rest of a test in a child, and shows what it printed.
#[track_caller]
fn fails_in_a_child(test: &str, case: &str) -> bool {
    let exact = |command: &mut std::process::Command| {
        command.env("MALLOC_MMAP_THRESHOLD_", "65536").env("MALLOC_ARENA_MAX", "1");
    };
    let (text, failed) = match child::run(test, case, exact) {
        Ok(text) => (text, false),
        Err(text) => (text, true),
    };
    println!("{}", text.lines().filter(|line| line.contains(" MB")).collect::<Vec<_>>().join("\n"));
    failed
}

#[test]
fn sweeps_stay_within_their_budget() {
    let Some(case) = child::argument() else {
        let mut cases = vec!["resid_pre", "z", "pattern", "result", "paths", "together"];
        cases.retain(|case| fails_in_a_child("memory_of_sweeps::sweeps_stay_within_their_budget", case));
        assert!(cases.is_empty(), "more than the budget: {cases:?}");
        return;
    };
    let model = model();
    let (_, clean) = match case.as_str() {
        "paths" => model.run_with_cache(tokens(0)).unwrap(),
        "together" => model.run_with_cache_of(tokens(0), "z").unwrap(),
        site => model.run_with_cache_of(tokens(0), site).unwrap(),
    };
    let metric = Metric::logit_diff(5, 7);
    let axes: &[PatchAxis] = match case.as_str() {
        "pattern" => &[PatchAxis::Layer, PatchAxis::Head, PatchAxis::DestPos],
        "resid_pre" | "mlp_out" => &[PatchAxis::Layer, PatchAxis::Pos],
        _ => &[PatchAxis::Layer, PatchAxis::Pos, PatchAxis::Head],
    };
    let sweep = |budget: usize, pos: usize, heads: usize| {
        let budget = budget as u64;
        let chosen = |index: PatchIndex, has_pos: bool, has_heads: bool| {
            let index = if has_pos { index.pos(..pos as i64) } else { index };
            if has_heads {
                index.heads(..heads as i64)
            } else {
                index
            }
        };
        match case.as_str() {
            "paths" => {
                let senders = PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::Pos, PatchAxis::Head]).layers(..2);
                let senders = chosen(senders, true, true);
                let options = PathOptions::new().budget(budget);
                let receiver = PatchIndex::of([hook::resid_post(-1).into()]);
                path_patch(&model, tokens(1), &clean, &metric, &senders, &receiver, options).unwrap()
            }
            // Patches that all begin at one position: nothing but the budget keeps them apart.
            "together" => {
                let patches = if pos == 1 { 1 } else { 96 };
                let parts: Vec<_> = (0..patches).map(|i| hook::z(1).head(i % 4)).collect();
                let options = PatchingOptions::new().budget(budget);
                activation_patch(&model, tokens(1), &clean, &metric, &PatchIndex::of(parts), options).unwrap()
            }
            site => {
                let index = PatchIndex::new(site, axes.to_vec()).layers(1..2);
                let index = chosen(index, axes.contains(&PatchAxis::Pos), axes.contains(&PatchAxis::Head));
                let options = PatchingOptions::new().budget(budget);
                activation_patch(&model, tokens(1), &clean, &metric, &index, options).unwrap()
            }
        }
    };
    // Everything once before, so that what libtorch makes once for a shape is there; a sweep of one patch shows what the corrupted run needs.
    let _ = sweep(2 * MB, 1, 1);
    let (_, base) = largest_of(|| sweep(2 * MB, 1, 1));
    let mut failed = false;
    for budget in BUDGETS {
        let _ = sweep(budget, POS, 2);
        let (map, peak) = largest_of(|| sweep(budget, POS, 2));
        let patches = map.tensor().numel();
        println!(
            "{case}: {patches} patches, budget {} MB, {:.1} MB at most, {:.1} MB of the corrupted run",
            budget / MB,
            peak as f64 / MB as f64,
            base as f64 / MB as f64
        );
        failed |= peak > budget + base + SLACK;
    }
    assert!(!failed, "{case} took more than its budget");
}

/// The scores of edges take a few times what all nodes write, however many edges there are.
#[test]
fn scores_of_edges_take_no_matrix_for_each_edge() {
    let Some(case) = child::argument() else {
        assert!(!fails_in_a_child("memory_of_sweeps::scores_of_edges_take_no_matrix_for_each_edge", "gpt2"));
        return;
    };
    let config = Config::new(6, 96, 12, 1000, POS);
    let model = HookedTransformer::init(config, 0).unwrap();
    let metric = Metric::logit_diff(5, 7);
    let score = || {
        let task = CircuitTask::new(&model, tokens(0), Ablation::counterfactual(tokens(1)), &metric).unwrap();
        task.edge_scores(EdgeMethod::Gradient).unwrap()
    };
    let _ = score();
    let (scores, peak) = largest_of(score);
    let graph = scores.graph();
    let written = graph.n_senders() * 2 * POS * 96 * 4;
    let times = peak as f64 / written as f64;
    println!(
        "{case}: {} edges, what nodes write {:.1} MB, {:.1} MB at most: {times:.2} times",
        graph.n_edges(),
        written as f64 / MB as f64,
        peak as f64 / MB as f64
    );
    assert!(times <= 6.0, "{times:.2} times");
}
