//! Attribution patching and integrated gradients: against TransformerLens' and captum's figures, and their own identities.

use crate::common::pairs::{in_double, pair, Pair, STRUCTURES};
use crate::common::Tally;
use rstest::rstest;
use tch::{Kind, Tensor};
use tch_lens::gradient::{AttributionPatchingOptions, IntegratedGradientsOptions, Quadrature};
use tch_lens::{hook, HookPoint};

#[rstest]
#[case("toy_ioi_one")]
#[case("toy_ioi_two")]
#[case("llama_gqa_tied")]
fn attribution_patching_is_the_tools(#[case] name: &str) {
    let pair = Pair::open(name);
    let metric = pair.metric();
    let [clean, corrupted] = ["clean", "corrupted"].map(|run| pair.tensors[&format!("{run}_tokens")].shallow_clone());
    let options = AttributionPatchingOptions::new();
    let estimates = pair.model.attribution_patching(&corrupted, &clean, &metric, options).unwrap();
    let mut tally = Tally::default();
    for (key, expected) in &pair.tensors {
        if let Some(site) = key.strip_prefix("attr.") {
            tally.compare(&format!("{name}, {site}"), &estimates.by_layer(site).unwrap(), expected, 1e-4);
        }
    }
    assert_eq!(tally.count, 9);
    for (what, ours) in [("clean", estimates.source_metric()), ("corrupted", estimates.base_metric())] {
        tally.compare(what, &Tensor::from(ours).to_kind(Kind::Float), &pair.tensors[&format!("{what}_metric")], 1e-4);
    }
    tally.finish("attribution patching");
}

#[rstest]
#[case("toy_ioi_one")]
#[case("toy_ioi_two")]
#[case("llama_gqa_tied")]
fn integrated_gradients_are_captum_s(#[case] name: &str) {
    let pair = Pair::open(name);
    let metric = pair.metric();
    let (clean, corrupted) = (&pair.tensors["clean_tokens"], &pair.tensors["corrupted_tokens"]);
    let (_, cache) = pair.model.run_with_cache_of(corrupted, hook::resid_pre(0)).unwrap();
    let stream = cache[hook::resid_pre(0)].shallow_clone();
    let mut tally = Tally::default();
    for (baseline, value) in [("zero", stream.zeros_like()), ("corrupted", stream)] {
        for (rule, quadrature) in [
            ("gausslegendre", Quadrature::GaussLegendre),
            ("riemann_left", Quadrature::Left),
            ("riemann_middle", Quadrature::Middle),
            ("riemann_right", Quadrature::Right),
            ("riemann_trapezoid", Quadrature::Trapezoid),
        ] {
            let options = IntegratedGradientsOptions::new().quadrature(quadrature).steps(16);
            let ours = pair.model.integrated_gradients(clean, hook::resid_pre(0), &value, &metric, options).unwrap();
            let what = format!("ig.{baseline}.{rule}");
            let expected = |suffix: &str| pair.tensors.get(&format!("{what}{suffix}"));
            let trapezoid = quadrature == Quadrature::Trapezoid;
            // Captum weighs the 16 points of a trapezoid with 1/16, whose sum is 15/16.
            let scale = if trapezoid { 15.0 / 16.0 } else { 1.0 };
            // At a stream of zeros a root-mean-square norm is so steep that shares go up to 6e6.
            let size = 1.0 + expected("").unwrap().abs().max().double_value(&[]);
            let relative = |x: &Tensor| x / size;
            tally.compare(
                &what,
                &relative(&(ours.by_position().unwrap() * scale)),
                &relative(expected("").unwrap()),
                1e-4,
            );
            if let Some(full) = expected(".full") {
                tally.compare(&format!("{what}.full"), ours.tensor(), full, 1e-4);
            }
            if !trapezoid {
                let delta = ours.completeness_error().unwrap();
                tally.compare(
                    &format!("{what}.delta"),
                    &relative(&delta),
                    &relative(expected(".delta").unwrap()),
                    1e-4,
                );
            }
            tally.compare("metric", ours.metric(), &pair.tensors["ig.metric_clean"], 1e-4);
            let of_baseline = &pair.tensors[&format!("ig.metric_{baseline}")];
            tally.compare("baseline", ours.baseline_metric(), of_baseline, 1e-4);
        }
    }
    tally.finish("integrated gradients");
}

/// With enough steps the shares sum to the difference of the metric, at any point and in every structure.
#[test]
fn integrated_gradients_are_complete() {
    let mut tally = Tally::default();
    for family in STRUCTURES {
        let model = in_double(family);
        let (clean, corrupted, metric) = pair();
        let (_, cache) = model.run_with_cache(&corrupted).unwrap();
        // A router's choice is no continuous function of the stream.
        let smooth = [hook::attn_out(0), hook::pattern(1), hook::z(0), hook::resid_post(1)];
        for point in smooth.into_iter().filter(|point| family != "mixtral" || *point == hook::resid_post(1)) {
            let options = IntegratedGradientsOptions::new().steps(100);
            let shares = model.integrated_gradients(&clean, point, &cache[point], &metric, options).unwrap();
            let scale = 1.0 + shares.metric().abs().max().double_value(&[]);
            let error = shares.completeness_error().unwrap() / scale;
            tally.compare(&format!("{family}, {point}"), &error, &error.zeros_like(), 1e-4);
        }
    }
    tally.finish("completeness of integrated gradients");
}

/// A masked score is −∞ in both runs, and its estimate is zero.
#[test]
fn masked_scores_have_no_effect() {
    let model = in_double("gpt2");
    let (clean, corrupted, metric) = pair();
    let options = AttributionPatchingOptions::new().points("attn_scores");
    let estimates = model.attribution_patching(&corrupted, &clean, &metric, options).unwrap();
    let of_layer = estimates.get(hook::attn_scores(1)).unwrap(); // [batch, head, query, key]
    let masked = of_layer.triu(1);
    assert_eq!(masked, masked.zeros_like());
    assert!(bool::try_from(of_layer.isfinite().all()).unwrap() && of_layer.abs().max().double_value(&[]) > 1e-6);
}

#[test]
fn what_has_no_estimate_is_refused() {
    let model = in_double("mixtral");
    let (clean, corrupted, metric) = pair();
    let failure = |point: HookPoint| {
        let options = AttributionPatchingOptions::new().points(point);
        model.attribution_patching(&corrupted, &clean, &metric, options).unwrap_err().to_string()
    };
    assert!(failure(hook::expert_post(0, 1)).contains("has the rows that are routed to an expert"));
    assert!(failure(hook::expert_indices(0)).contains("holds whole numbers"));
    let options = AttributionPatchingOptions::new;
    let short = Tensor::from_slice2(&[[5i64, 14]]);
    let error = model.attribution_patching(&short, &clean, &metric, options()).unwrap_err().to_string();
    assert!(error.contains("the source's tensor of tokens has shape [2, 4], expected [1, 2]"), "{error}");
    let estimates = model.attribution_patching(&corrupted, &clean, &metric, options().points("z")).unwrap();
    assert!(estimates.get("hook_embed").unwrap_err().to_string().contains("select it with"));
    let everything = model.attribution_patching(&corrupted, &clean, &metric, options()).unwrap();
    assert!(everything.keys().len() > 20 && everything.keys().all(|point| point.expert().is_none()));

    let integrated = |point: HookPoint, steps: usize, rule: Quadrature| {
        let options = IntegratedGradientsOptions::new().steps(steps).quadrature(rule);
        model.integrated_gradients(&clean, point, 0.0, &metric, options).unwrap_err().to_string()
    };
    assert!(integrated(hook::expert_pre(0, 1), 4, Quadrature::Left).contains("routed to an expert"));
    assert!(integrated(hook::z(0), 0, Quadrature::Left).contains("at least 1"));
    assert!(integrated(hook::z(0), 1, Quadrature::Trapezoid).contains("at least 2"));
    assert!(integrated(hook::expert_indices(0), 4, Quadrature::Left).contains("whole numbers"));
}
