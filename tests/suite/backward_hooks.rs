//! Hooks on gradients and rules of the backward pass: against runs that do the same in the forward pass.

use crate::common::models::{in_fp64, of_transformers};
use crate::common::pairs::{in_double, STRUCTURES};
use crate::common::{max_diff, Tally};
use crate::run_with_grad::{compare, graded};
use rstest::rstest;
use tch::Tensor;
use tch_lens::{hook, BackwardRules, HookFilter, HookPoint, Hooks, RunOptions};

/// Cutting the graph at every point changes no gradient, and every hook sees the gradient that the cache has, from the last point to the
/// first.
#[test]
fn hooks_see_the_gradients() {
    let mut tally = Tally::default();
    for (what, model) in in_fp64().into_iter().chain(["gemma4_text", "beam", "doge"].map(of_transformers)) {
        let plain = graded(&model, RunOptions::new());
        let points: Vec<HookPoint> = plain.gradients.keys().collect();
        let mut seen = Vec::new();
        let hooks = Hooks::new().observe_gradient(points.clone(), |g, point| seen.push((point, g.copy())));
        let hooked = graded(&model, RunOptions::new().hooks(hooks));
        compare(&mut tally, &what, &hooked, &plain, 1e-10);
        seen.reverse();
        assert_eq!(seen.iter().map(|(point, _)| *point).collect::<Vec<_>>(), points, "{what}");
        for (point, gradient) in seen {
            assert_eq!(max_diff(&what, &gradient, &hooked.gradients[point]), 0.0, "{what}, {point}");
        }
        assert!(!hooked.run.logits().unwrap().requires_grad());
        assert!(hooked.run.cache.values().all(|x| !x.requires_grad()), "{what}");
    }
    tally.finish("gradients through cuts");
}

/// A factor on a gradient is the same as a function of the activation with that factor as its slope. Gradients before the point change, at
/// it as well, and those after it do not.
#[test]
fn a_replaced_gradient_flows_on() {
    let mut tally = Tally::default();
    for family in STRUCTURES {
        let model = in_double(family);
        let plain = graded(&model, RunOptions::new());
        let points: Vec<HookPoint> = plain.gradients.keys().collect();
        for point in points.iter().copied().step_by(3) {
            let hooks = Hooks::new()
                .replace_gradient(point, |g, _| g * 2.0)
                .replace_gradient(point, |_, _| None)
                .replace_gradient(point, |g, _| g * 0.25);
            let hooked = graded(&model, RunOptions::new().hooks(hooks));
            // The same value with half of the slope.
            let forward = Hooks::new().replace(point, |x, _| {
                let finite = x.where_self(&x.isfinite(), &x.detach().zeros_like());
                x.detach() + (&finite - finite.detach()) * 0.5
            });
            let replaced = graded(&model, RunOptions::new().hooks(forward));
            let what = format!("{family}, {point}");
            for (other, gradient) in hooked.gradients.items() {
                let expected = match other == point {
                    true => plain.gradients[point].shallow_clone() * 0.5,
                    false => replaced.gradients[other].shallow_clone(),
                };
                if other == point || plain.run.cache[point].isfinite().all().int64_value(&[]) == 1 {
                    tally.compare(&format!("{what}, at {other}"), gradient, &expected, 1e-9);
                }
            }
        }
    }
    tally.finish("replaced gradients");
}

/// A hook may be about a part of a gradient: it gets that part, and what it returns stands there.
#[test]
fn hooks_act_on_parts_of_gradients() {
    let mut tally = Tally::default();
    for family in STRUCTURES {
        let model = in_double(family);
        let part = || hook::z(1).head(1).pos(2..4);
        let mut seen = Vec::new();
        let hooks = Hooks::new()
            .observe_gradient(part(), |g, _| seen.push(g.size()))
            .replace_gradient(part(), |g, _| g.zeros_like());
        let hooked = graded(&model, RunOptions::new().hooks(hooks));
        let stopped = graded(&model, RunOptions::new().hooks(Hooks::new().stop_gradient(part())));
        for (point, gradient) in hooked.gradients.items().filter(|(point, _)| *point < hook::z(1)) {
            tally.compare(&format!("{family}, {point}"), gradient, &stopped.gradients[point], 1e-10);
        }
        let plain = graded(&model, RunOptions::new());
        let (ours, whole) = (&hooked.gradients[hook::z(1)], &plain.gradients[hook::z(1)]);
        assert_eq!(ours.select(2, 1).narrow(1, 2, 2).abs().max().double_value(&[]), 0.0);
        tally.compare(&format!("{family}, others"), &ours.select(2, 0), &whole.select(2, 0), 1e-10);
        assert_eq!(seen, [[2, 2, ours.size()[3]]], "{family}");
    }
    tally.finish("parts of gradients");
}

/// Kept positions have the gradients that they have among all, with hooks on gradients and without.
#[rstest]
#[case("gpt2")]
#[case("mixtral")]
fn kept_positions_have_their_gradients(#[case] family: &str) {
    let model = in_double(family);
    let mut tally = Tally::default();
    let whole = graded(&model, RunOptions::new().hooks(halved()));
    let plain = graded(&model, RunOptions::new());
    for columns in [vec![3i64], vec![2, 0]] {
        let run = || RunOptions::new().pos(columns.clone());
        for (what, found, of) in
            [("hooked", graded(&model, run().hooks(halved())), &whole), ("plain", graded(&model, run()), &plain)]
        {
            for (point, gradient) in found.gradients.items() {
                let Some(axis) = point.axes().position else { continue }; // an expert's rows
                let expected = of.gradients[point].index_select(axis as i64, &Tensor::from_slice(&columns));
                tally.compare(&format!("{family}, {what}, {point} at {columns:?}"), gradient, &expected, 1e-9);
            }
        }
    }
    tally.finish("gradients at positions");
}

fn halved<'a>() -> Hooks<'a> {
    Hooks::new().replace_gradient(["z", "resid_post"], |g, _| g * 0.5)
}

/// Rules change no value, and each is what hooks can say of it.
#[test]
fn rules_are_what_they_say() {
    let mut tally = Tally::default();
    for (what, model) in in_fp64().into_iter().chain(["gemma4_text", "beam", "doge"].map(of_transformers)) {
        let plain = graded(&model, RunOptions::new());
        let ruled = |rules: BackwardRules| {
            let output = graded(&model, RunOptions::new().backward_rules(rules));
            for (point, x) in &output.run.cache {
                // A norm's own quotient may be another kernel's.
                tally_value(&what, *point, x, &plain.run.cache[*point]);
            }
            output
        };
        let off = BackwardRules::relp()
            .frozen_norms(false)
            .frozen_patterns(false)
            .identity_activations(false)
            .half_products(false)
            .frozen_routers(false);
        for (point, gradient) in ruled(off).gradients.items() {
            assert_eq!(max_diff(&what, gradient, &plain.gradients[point]), 0.0, "{what}, {point}: rules that are off");
        }

        let scales = HookFilter::names(|name| name.ends_with("hook_scale"));
        let names: Vec<HookPoint> = scales.resolve(model.config()).unwrap_or_default();
        if !names.is_empty() {
            let stopped = graded(&model, RunOptions::new().hooks(Hooks::new().stop_gradient(names)));
            compare(
                &mut tally,
                &format!("{what}, norms"),
                &ruled(BackwardRules::new().frozen_norms(true)),
                &stopped,
                1e-10,
            );
        }
        let stopped = graded(&model, RunOptions::new().hooks(Hooks::new().stop_gradient("pattern")));
        compare(
            &mut tally,
            &format!("{what}, patterns"),
            &ruled(BackwardRules::new().frozen_patterns(true)),
            &stopped,
            1e-10,
        );
        if model.config().experts().is_some() {
            let stopped = graded(&model, RunOptions::new().hooks(Hooks::new().stop_gradient("expert_weights")));
            compare(
                &mut tally,
                &format!("{what}, routers"),
                &ruled(BackwardRules::new().frozen_routers(true)),
                &stopped,
                1e-10,
            );
        }

        // Neurons: what comes of the rules by hand.
        let rules = BackwardRules::new().identity_activations(true).half_products(true);
        let output = ruled(rules);
        let dense = !model.config().attn_only() && model.config().experts().is_none();
        let has_norm = output.gradients.contains(("mid", 0));
        // TransformerLens' gated MLP adds a bias to the product.
        if dense && !has_norm && !what.starts_with("toy_gated") {
            let (pre, post) = (&output.run.cache[("pre", 0)], &output.run.cache[("post", 0)]);
            let of_post = &output.gradients[("post", 0)];
            let expected = match output.run.cache.get(("pre_linear", 0)) {
                Ok(linear) => {
                    tally.compare(
                        &format!("{what}, linear"),
                        &(&output.gradients[("pre_linear", 0)] * linear),
                        &(of_post * post * 0.5),
                        1e-9,
                    );
                    of_post * post * 0.5
                }
                Err(_) => of_post * post,
            };
            tally.compare(&format!("{what}, gates"), &(&output.gradients[("pre", 0)] * pre), &expected, 1e-9);
        }
    }
    tally.finish("rules of the backward pass");
}

#[track_caller]
fn tally_value(what: &str, point: HookPoint, ours: &Tensor, theirs: &Tensor) {
    let diff = max_diff(what, ours, theirs);
    assert!(diff < 1e-10, "{what}, {point}: a rule changed the value by {diff:.1e}");
}
