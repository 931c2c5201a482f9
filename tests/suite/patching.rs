//! Activation patching: TransformerLens' own figures, and for every family those of one run a patch.

use std::collections::BTreeMap;

use rstest::rstest;
use tch::Tensor;
use tch_lens::hook::HookPart;
use tch_lens::patching::{self, MetricMap, PatchAxis, PatchIndex, PatchingOptions};
use tch_lens::{
    hook, ActivationCache, Answer, HookFilter, HookPoint, HookedTransformer, Hooks, LoadOptions, Metric, PaddingSide,
    Patch, Result, RunOptions, Tokens,
};

use crate::common::models::in_fp64;
use crate::common::{families, fixtures, max_diff, mechanisms, raw, read, Tally};

/// Of TransformerLens' figures.
const TOLERANCE: f64 = 1e-4;
/// Of the same run in another batch.
const SAME: f64 = 1e-5;

/// A pair of prompts, and what TransformerLens computes of it.
pub struct Pair {
    pub model: HookedTransformer,
    pub expected: BTreeMap<String, Tensor>,
}

impl Pair {
    pub fn open(name: &str) -> Self {
        let model = match name.starts_with("toy") {
            true => LoadOptions::new().no_processing().toy().unwrap(),
            false => raw(name),
        };
        Pair { model, expected: read(&fixtures().join(format!("interventions/{name}.safetensors"))) }
    }

    pub fn tokens(&self, which: &str) -> Tensor {
        self.expected[&format!("{which}_tokens")].shallow_clone()
    }

    pub fn cache(&self, which: &str) -> ActivationCache {
        self.model.run_with_cache(self.tokens(which)).unwrap().1
    }

    /// The difference of the two answers' logits at the last position.
    pub fn metric(&self) -> Metric<'static> {
        let of = |i| Vec::<i64>::try_from(self.expected["answers"].select(1, i)).unwrap();
        Metric::logit_diff(Answer::per_row(of(0)), Answer::per_row(of(1)))
    }
}

type Function = fn(&HookedTransformer, Tensor, &ActivationCache, &Metric<'_>) -> Result<MetricMap>;

const FUNCTIONS: [(&str, Function); 18] = [
    ("resid_pre", |m, t, c, f| patching::get_act_patch_resid_pre(m, t, c, f)),
    ("resid_mid", |m, t, c, f| patching::get_act_patch_resid_mid(m, t, c, f)),
    ("attn_out", |m, t, c, f| patching::get_act_patch_attn_out(m, t, c, f)),
    ("mlp_out", |m, t, c, f| patching::get_act_patch_mlp_out(m, t, c, f)),
    ("attn_head_out_by_pos", |m, t, c, f| patching::get_act_patch_attn_head_out_by_pos(m, t, c, f)),
    ("attn_head_q_by_pos", |m, t, c, f| patching::get_act_patch_attn_head_q_by_pos(m, t, c, f)),
    ("attn_head_k_by_pos", |m, t, c, f| patching::get_act_patch_attn_head_k_by_pos(m, t, c, f)),
    ("attn_head_v_by_pos", |m, t, c, f| patching::get_act_patch_attn_head_v_by_pos(m, t, c, f)),
    ("attn_head_pattern_by_pos", |m, t, c, f| patching::get_act_patch_attn_head_pattern_by_pos(m, t, c, f)),
    ("attn_head_pattern_dest_src_pos", |m, t, c, f| patching::get_act_patch_attn_head_pattern_dest_src_pos(m, t, c, f)),
    ("attn_head_out_all_pos", |m, t, c, f| patching::get_act_patch_attn_head_out_all_pos(m, t, c, f)),
    ("attn_head_q_all_pos", |m, t, c, f| patching::get_act_patch_attn_head_q_all_pos(m, t, c, f)),
    ("attn_head_k_all_pos", |m, t, c, f| patching::get_act_patch_attn_head_k_all_pos(m, t, c, f)),
    ("attn_head_v_all_pos", |m, t, c, f| patching::get_act_patch_attn_head_v_all_pos(m, t, c, f)),
    ("attn_head_pattern_all_pos", |m, t, c, f| patching::get_act_patch_attn_head_pattern_all_pos(m, t, c, f)),
    ("attn_head_all_pos_every", |m, t, c, f| patching::get_act_patch_attn_head_all_pos_every(m, t, c, f)),
    ("attn_head_by_pos_every", |m, t, c, f| patching::get_act_patch_attn_head_by_pos_every(m, t, c, f)),
    ("block_every", |m, t, c, f| patching::get_act_patch_block_every(m, t, c, f)),
];

#[rstest]
#[case("toy_ioi_one")]
#[case("toy_ioi_two")]
#[case("llama_gqa_tied")]
fn the_functions_give_transformer_lens_figures(#[case] name: &str) {
    let pair = Pair::open(name);
    let (clean, metric) = (pair.cache("clean"), pair.metric());
    let mut tally = Tally::default();
    for (function, patch) in FUNCTIONS {
        let Some(expected) = pair.expected.get(&format!("patch.{function}")) else { continue };
        let map = patch(&pair.model, pair.tokens("corrupted"), &clean, &metric).unwrap();
        tally.compare(function, &map.tensor(), expected, TOLERANCE);
        tally.compare("corrupted", &map.baseline(), &pair.expected["corrupted_metric"], TOLERANCE);
    }
    assert!(tally.count >= 34, "{}", tally.count);
    tally.finish(name);
}

/// Two rows of six tokens, which differ from the third and from the fourth position on.
fn pair() -> (Vec<Vec<i64>>, Vec<Vec<i64>>) {
    (vec![vec![1, 5, 3, 8, 2, 9], vec![4, 4, 9, 1, 7, 2]], vec![vec![1, 5, 6, 8, 1, 9], vec![4, 4, 9, 3, 7, 5]])
}

/// Parts of every kind of point that a model has.
fn parts(model: &HookedTransformer) -> Vec<HookPart> {
    let config = model.config();
    let points = HookFilter::All.resolve(config).unwrap().into_iter();
    let on_request = ["q_input", "k_input", "v_input", "mlp_in", "result"].into_iter().flat_map(|site| {
        (0..config.n_layers).filter_map(move |layer| hook::HookName::resolve(&(site, layer), config).ok())
    });
    let mut parts = Vec::new();
    for (i, point) in points.chain(on_request).enumerate() {
        if point.expert().is_some() || point.to_string().contains("expert_indices") {
            continue;
        }
        let (axes, i) = (point.axes(), i as i64);
        parts.push(HookPart::from(point));
        if axes.position.is_some() {
            parts.push(point.pos(2 + i % 4));
            parts.push(point.pos([0, 3 + i % 3]));
            parts.push(point.rows(i % 2).pos(-1));
        }
        if axes.head.is_some() {
            parts.push(point.head(0));
            parts.push(point.head(0).pos(4));
        }
    }
    parts
}

/// The metric with each part alone, in runs from tokens.
fn one_by_one(
    model: &HookedTransformer,
    corrupted: &Tokens,
    clean: &ActivationCache,
    metric: &Metric,
    parts: &[HookPart],
) -> Tensor {
    let needs = metric.needs(model.config()).unwrap();
    let rows = parts.iter().map(|part| {
        let hooks = Hooks::new().patch(part.clone(), Patch::set(clean));
        let run = RunOptions::new().hooks(hooks);
        let run = if needs.is_empty() { run } else { run.cache(needs.clone()) };
        let output = model.run(corrupted.clone(), run).unwrap();
        metric.rows(output.logits().unwrap(), &output.cache).unwrap()
    });
    Tensor::stack(&rows.collect::<Vec<_>>(), 0)
}

fn clean_cache(model: &HookedTransformer, clean: Vec<Vec<i64>>, parts: &[HookPart]) -> ActivationCache {
    let points: Vec<HookPoint> = parts.iter().map(HookPart::point).collect();
    model.run(clean, RunOptions::new().cache(points)).unwrap().cache
}

fn swept(
    model: &HookedTransformer,
    corrupted: &Tokens,
    clean: &ActivationCache,
    metric: &Metric,
    parts: &[HookPart],
) -> Tensor {
    let index = PatchIndex::of(parts);
    let map = patching::activation_patch(model, corrupted.clone(), clean, metric, &index, PatchingOptions::new());
    map.unwrap().rows().unwrap()
}

fn ids(rows: Vec<Vec<i64>>) -> Tokens {
    Tokens::padded(&rows, 0, PaddingSide::Right).unwrap()
}

/// Compares sweeps of some parts of each model, others for each metric, with runs from tokens.
fn compare_sweeps(models: Vec<(String, HookedTransformer)>, tolerance: f64) -> Tally {
    let mut tally = Tally::default();
    for (i, (family, model)) in models.into_iter().enumerate() {
        let (clean, corrupted) = pair();
        let all = parts(&model);
        let cache = clean_cache(&model, clean, &all);
        let metrics = [
            Metric::logit_diff(1, 3),
            Metric::prob(2).pos([3, 1]),
            Metric::new(|logits| logits.square().mean_dim([1i64, 2].as_slice(), false, None)),
        ];
        for (j, metric) in metrics.iter().enumerate() {
            let parts: Vec<HookPart> = all.iter().skip((i + 13 * j) % 40).step_by(40).cloned().collect();
            let ours = swept(&model, &ids(corrupted.clone()), &cache, metric, &parts);
            let expected = one_by_one(&model, &ids(corrupted.clone()), &cache, metric, &parts);
            for (i, part) in parts.iter().enumerate() {
                let i = i as i64;
                // Of figures far from 1, the relative difference counts.
                let size = expected.get(i).abs().max().double_value(&[]).max(1.0);
                let what = format!("{family}, {part}, metric {j}");
                tally.compare(&what, &(ours.get(i) / size), &(expected.get(i) / size), tolerance);
            }
        }
    }
    tally
}

#[test]
fn sweeps_are_one_run_a_patch_on_every_family() {
    compare_sweeps(in_fp64(), 1e-9).finish("sweeps in fp64");
    let models = families().into_iter().chain(mechanisms()).map(|family| (family.clone(), raw(&family))).collect();
    compare_sweeps(models, SAME).finish("sweeps in fp32");
}

#[test]
fn padded_batches_and_metrics_of_activations_are_swept_too() {
    let model = raw("gpt2");
    let (clean, corrupted) = pair();
    let parts = parts(&model);
    let cache = clean_cache(&model, clean.clone(), &parts);
    let metric = Metric::with_cache("pattern", |_, cache| {
        cache[hook::pattern(1)].select(1, 0).select(1, -1).select(1, 2)
            + cache[hook::pattern(0)].select(1, 1).select(1, 3).select(1, 1)
    });
    let mut tally = Tally::default();
    let ours = swept(&model, &ids(corrupted.clone()), &cache, &metric, &parts);
    tally.compare("cache", &ours, &one_by_one(&model, &ids(corrupted.clone()), &cache, &metric, &parts), SAME);
    for side in [PaddingSide::Left, PaddingSide::Right] {
        let padded = |mut rows: Vec<Vec<i64>>| {
            rows[1].truncate(4);
            Tokens::padded(&rows, 0, side).unwrap()
        };
        let index = PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::Pos, PatchAxis::Head]);
        let (clean, corrupted) = (padded(clean.clone()), padded(corrupted.clone()));
        let cache = model.run(clean, RunOptions::new().cache("z")).unwrap().cache;
        let metric = Metric::logit_diff(1, 3);
        let map =
            patching::activation_patch(&model, corrupted.clone(), &cache, &metric, &index, PatchingOptions::new())
                .unwrap();
        let parts: Vec<HookPart> = (0..2)
            .flat_map(|layer| (0..6).flat_map(move |pos| (0..3).map(move |head| (layer, pos, head))))
            .map(|(layer, pos, head)| {
                hook::z(layer).pos(tch_lens::Positions::from(pos as i64).with_padding()).head(head as i64)
            })
            .collect();
        assert_eq!(model.config().n_heads, 3);
        let expected = one_by_one(&model, &corrupted, &cache, &metric, &parts);
        tally.compare(&format!("{side:?}"), &map.rows().unwrap().view([-1, 2]), &expected, SAME);
    }
    tally.finish("padding and caches");
}

#[test]
fn a_budget_changes_batches_and_no_figure() {
    let pair = Pair::open("toy_ioi_two");
    let (clean, metric) = (pair.cache("clean"), pair.metric());
    let index = PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::Pos, PatchAxis::Head]);
    let with = |budget| {
        let options = PatchingOptions::new().budget(budget);
        patching::activation_patch(&pair.model, pair.tokens("corrupted"), &clean, &metric, &index, options)
    };
    let (large, small) = (with(1 << 30).unwrap(), with(1_500_000).unwrap());
    assert!(max_diff("budget", &large.tensor(), &small.tensor()) < SAME);
    let error = with(10_000).unwrap_err().to_string();
    assert!(error.contains("budget") && error.contains("one patch of this batch takes"), "{error}");
}

#[test]
fn a_map_knows_its_axes_and_its_largest_entries() {
    let pair = Pair::open("toy_ioi_one");
    let (clean, metric) = (pair.cache("clean"), pair.metric());
    let index = PatchIndex::new("resid_pre", [PatchAxis::Layer, PatchAxis::Pos]).layers(1..3).pos([9, 10, 14]);
    let map = patching::activation_patch(
        &pair.model,
        pair.tokens("corrupted"),
        &clean,
        &metric,
        &index,
        PatchingOptions::new(),
    )
    .unwrap();
    assert_eq!(map.tensor().size(), [2, 3]);
    let axes: Vec<_> = map.axes().iter().map(|axis| (axis.name.as_str(), axis.labels.join(" "))).collect();
    assert_eq!(axes, [("layer", "1 2".to_string()), ("pos", "9 10 14".to_string())]);
    let expected = &pair.expected["patch.resid_pre"];
    assert!((map.value(&[1, 2]).unwrap() - expected.double_value(&[2, 14])).abs() < TOLERANCE);
    let text = map.to_string();
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(text.lines().next().unwrap().ends_with("(pos)"), "{text}");
    let top = map.top(2).unwrap();
    assert!(top[0].0.starts_with("layer ") && top.len() == 2, "{top:?}");
    let error = map.value(&[2, 0]).unwrap_err().to_string();
    assert!(error.contains("index 2 is out of range"), "{error}");
    assert!(map.value(&[0]).is_err());
    let one_value = Metric::new(|logits| logits.mean(None));
    let two = Pair::open("toy_ioi_two");
    let map = patching::get_act_patch_resid_pre(&two.model, two.tokens("corrupted"), &two.cache("clean"), &one_value)
        .unwrap();
    assert_eq!(map.tensor().size(), [4, 15]);
    assert!(map.rows().unwrap_err().to_string().contains("one value for all 2 rows"));
}

#[rstest]
#[case(PatchIndex::of(Vec::new()), "the index of patches matches no hook point")]
#[case(PatchIndex::new("zz", [PatchAxis::Layer]), "zz")]
#[case(PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::Layer]), "names the axis `layer` twice")]
#[case(PatchIndex::new("pattern", [PatchAxis::Layer, PatchAxis::Pos, PatchAxis::DestPos]), "both `pos` and `dest_pos`")]
#[case(PatchIndex::new("z", [PatchAxis::Layer]).heads(1), "selects with `heads` along an axis that it does not name")]
#[case(PatchIndex::of([hook::z(0).into()]).layers(1), "selects with `layers`")]
#[case(PatchIndex::new("resid_pre", [PatchAxis::Layer, PatchAxis::Head]), "selects heads, but the point has no head axis")]
#[case(PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::SrcPos]), "selects keys, but the point has no key axis")]
#[case(PatchIndex::new("z", [PatchAxis::Layer, PatchAxis::Head]).heads(9), "index 9 is out of range")]
#[case(PatchIndex::of([hook::z(9).into()]), "layer 9 is out of range")]
#[case(PatchIndex::of([hook::q_input(0).head(0)]), "the cache has no `blocks.0.hook_q_input`")]
fn what_cannot_be_swept_is_an_error(#[case] index: PatchIndex, #[case] sentence: &str) {
    let model = raw("gpt2");
    let (clean, corrupted) = pair();
    let cache = model.run_with_cache(clean).unwrap().1;
    let metric = Metric::logit_diff(1, 3);
    let error = patching::activation_patch(&model, corrupted, &cache, &metric, &index, PatchingOptions::new());
    let error = error.unwrap_err().to_string();
    assert!(error.contains(sentence), "{error}");
}

#[test]
fn a_clean_cache_of_another_batch_is_an_error_and_one_row_stands_for_all() {
    let model = raw("gpt2");
    let (clean, corrupted) = pair();
    let metric = Metric::logit_diff(1, 3);
    let sweep = |cache: &ActivationCache| patching::get_act_patch_resid_pre(&model, corrupted.clone(), cache, &metric);
    let of = |tokens: Vec<Vec<i64>>| model.run_with_cache(tokens).unwrap().1;
    let error = sweep(&of(vec![clean[0].clone(); 3])).unwrap_err().to_string();
    assert!(
        error.starts_with("the clean `blocks.0.hook_resid_pre`, at positions 0 to 5, has shape [3, 6, "),
        "{error}"
    );
    assert!(sweep(&of(vec![vec![1, 2, 3], vec![4, 5, 6]])).is_err());
    let kept = model.run(clean.clone(), RunOptions::new().cache("resid_pre").pos(-1)).unwrap().cache;
    assert!(sweep(&kept).unwrap_err().to_string().contains("at positions 5, has shape [2, 1, "));
    let one = sweep(&of(vec![clean[0].clone()])).unwrap().tensor();
    let both = sweep(&of(vec![clean[0].clone(); 2])).unwrap().tensor();
    assert!(max_diff("one row", &one, &both) < SAME);
}
