//! `run_with_grad` and Jacobians: against TransformerLens and finite differences.

use crate::common::pairs::{in_double, STRUCTURES};
use crate::common::{families, processed_like_transformer_lens, raw, shaped_like, Fixture, Tally};
use tch::{Kind, Tensor};
use tch_lens::{hook, GradientOutput, HookFilter, HookedTransformer, Hooks, ReturnType, RunOptions, RunOutput, Tokens};

/// Half of a central difference's distance: errors of rounding and of the third derivative are both near 1e-10 in fp64.
const STEP: f64 = 1e-5;

pub fn tokens() -> Tokens {
    Tokens::new(&Tensor::from_slice2(&[[5i64, 14, 3, 10], [9, 6, 11, 5]])).unwrap()
}

/// Numbers of the same shape that depend on nothing but the seed.
pub fn random_like(x: &Tensor, seed: i64) -> Tensor {
    let n = x.numel() as i64;
    let numbers: Vec<f64> = (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f64 / 504.5 - 1.0).collect();
    Tensor::from_slice(&numbers).view(x.size().as_slice()).to_kind(x.kind())
}

/// A number that depends on all logits.
pub fn score(output: &RunOutput) -> tch_lens::Result<Tensor> {
    let logits = output.logits()?;
    Ok((logits * random_like(logits, 3)).sum(Kind::Double))
}

pub fn graded(model: &HookedTransformer, run: RunOptions<'_>) -> GradientOutput {
    model.run_with_grad(tokens(), run, score).unwrap()
}

/// Compares two caches of gradients at the points that both have.
pub fn compare(tally: &mut Tally, what: &str, ours: &GradientOutput, theirs: &GradientOutput, tolerance: f64) {
    for (point, gradient) in ours.gradients.items() {
        let other = &theirs.gradients[point];
        if other.numel() == 0 {
            continue; // an expert that no token goes to
        }
        let scale = 1.0 + other.abs().max().double_value(&[]);
        tally.compare(&format!("{what}, {point}"), &(gradient / scale), &(other / scale), tolerance);
    }
}

/// TransformerLens' backward cache of the mean loss: with raw and with processed weights, and where heads read apart.
#[test]
fn gradients_are_transformer_lens_own() {
    let (mut tally, mut splits) = (Tally::default(), 0);
    for family in families() {
        let fixture = Fixture::open(&family);
        let processed = processed_like_transformer_lens(&fixture);
        for setting in ["raw", "processed"] {
            let model = match setting {
                "raw" => raw(&family),
                _ => processed.open(Fixture::folder(&family)).unwrap(),
            };
            if model.config().d_vocab != model.config().d_vocab_out {
                continue; // no loss
            }
            let loss = |names: HookFilter<'_>| {
                let run = RunOptions::new().cache(names).return_type(ReturnType::Loss);
                model
                    .run_with_grad(fixture.want("tokens"), run, |output| Ok(output.loss_tensor()?.shallow_clone()))
                    .unwrap()
            };
            let by_default = loss(HookFilter::All);
            for key in ["grad", "grad_sum", "split_grad"]
                .into_iter()
                .flat_map(|kind| fixture.keys(&format!("{setting}.{kind}.")))
            {
                let (kind, name) = key.strip_prefix(setting).unwrap()[1..].split_once('.').unwrap();
                // Where TransformerLens passes a point several times, the cache has the last time; the sum is the point's.
                let theirs = match kind {
                    "grad" if fixture.get(&format!("{setting}.grad_sum.{name}")).is_some() => continue,
                    _ => fixture.want(&key),
                };
                splits += usize::from(kind == "split_grad");
                let alone = (!by_default.gradients.contains(name)).then(|| loss(name.into()));
                let ours = &alone.as_ref().unwrap_or(&by_default).gradients[name];
                let (size, heads) = (ours.size(), theirs.size());
                let theirs = match size.len() == 4 && heads.len() == 4 && size[2] < heads[2] {
                    // TransformerLens repeats keys and values for each head of a group.
                    true => {
                        let groups = theirs.view([size[0], size[1], size[2], -1, size[3]]);
                        groups.sum_dim_intlist([3i64].as_slice(), false, None)
                    }
                    false => theirs,
                };
                let point = by_default.gradients.keys().next().unwrap();
                let ours = shaped_like(ours, &theirs, point, &model);
                tally.compare(&format!("{family}, {key}"), &ours, &theirs, 1e-4);
            }
        }
    }
    assert!(tally.count > 1000 && splits >= 6, "{}, {splits}", tally.count);
    tally.finish("TransformerLens' gradients");
}

/// Every gradient is the slope of the number in a direction, and the value is the run's.
#[test]
fn gradients_are_slopes() {
    let mut tally = Tally::default();
    for family in STRUCTURES {
        let model = in_double(family);
        let output = graded(&model, RunOptions::new());
        assert_eq!(output.gradients.keys().len() + whole_numbers(&output), output.run.cache.len(), "{family}");
        for (point, gradient) in output.gradients.items() {
            let shown = &output.run.cache[point];
            if shown.numel() == 0 {
                continue; // an expert that no token goes to
            }
            // −∞ in masked scores stays.
            let direction = random_like(shown, 1).where_self(&shown.isfinite(), &Tensor::from(0.0));
            let slope = (gradient * &direction).sum(Kind::Double).double_value(&[]);
            let moved = |by: f64| {
                let hooks = Hooks::new().replace(point, |x, _| x + &direction * by);
                let run = RunOptions::new().hooks(hooks).cache(HookFilter::All);
                score(&model.run(tokens(), run).unwrap()).unwrap().double_value(&[])
            };
            let found = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let scale = 1.0 + slope.abs();
            tally.compare(
                &format!("{family}, {point}"),
                &Tensor::from(slope / scale),
                &Tensor::from(found / scale),
                1e-6,
            );
        }
        let plain = score(&model.run(tokens(), RunOptions::new()).unwrap()).unwrap().double_value(&[]);
        assert!((plain - output.value).abs() < 1e-9, "{family}");
    }
    assert!(tally.count > 200, "{}", tally.count);
    tally.finish("finite differences");
}

fn whole_numbers(output: &GradientOutput) -> usize {
    output.run.cache.values().filter(|x| x.kind() == Kind::Int64).count()
}

/// Products with the Jacobian: from the left the gradient, from the right the finite difference, and both the same bilinear form.
#[test]
fn jacobians_multiply_from_both_sides() {
    let mut tally = Tally::default();
    for family in STRUCTURES {
        let model = in_double(family);
        let pairs = [
            (hook::resid_post(-1), hook::embed()),
            (hook::attn_out(1), hook::resid_pre(1)),
            (hook::mlp_out(0), hook::mlp_in(0)),
            (hook::unembed_out(), hook::z(0)),
            (hook::pattern(1), hook::attn_out(0)),
            (hook::z(0), hook::z(0)),
        ];
        for (of, at) in pairs {
            let what = format!("{family}, {of} by {at}");
            let jacobian = model.jacobian(tokens(), RunOptions::new(), of, at).unwrap();
            let (u, v) = (random_like(&jacobian.at(), 5), random_like(&jacobian.of(), 7));
            let (ju, vj) = (jacobian.jvp(&u).unwrap(), jacobian.vjp(&v).unwrap());
            let scale = 1.0 + vj.abs().max().double_value(&[]);
            tally.compare(
                &what,
                &((&ju * &v).sum(Kind::Double) / scale),
                &((&vj * &u).sum(Kind::Double) / scale),
                1e-9,
            );

            let moved = |by: f64| {
                let hooks = Hooks::new().replace(at, |x, _| x + &u * by);
                model.run(tokens(), RunOptions::new().hooks(hooks).cache([of, at])).unwrap().cache[of].copy()
            };
            let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            let scale = 1.0 + slope.abs().max().double_value(&[]);
            tally.compare(&format!("{what}, slope"), &(ju / scale), &(slope / scale), 1e-6);

            let output = model
                .run_with_grad(tokens(), RunOptions::new().cache([of, at]), |output| {
                    Ok((&output.cache[of] * &v).sum(None))
                })
                .unwrap();
            tally.compare(&format!("{what}, gradient"), &vj, &output.gradients[at], 1e-9);
        }
        // Nothing before depends on what comes after.
        let jacobian = model.jacobian(tokens(), RunOptions::new(), hook::z(0), hook::resid_post(1)).unwrap();
        assert_eq!(jacobian.vjp(&jacobian.of()).unwrap().abs().max().double_value(&[]), 0.0);
        assert_eq!(jacobian.jvp(&jacobian.at()).unwrap().abs().max().double_value(&[]), 0.0);
    }
    tally.finish("Jacobians");
}

/// Parameters keep what they had: neither do they begin to record gradients, nor is anything added to theirs.
#[test]
fn parameters_are_left_alone() {
    let model = in_double("gpt2");
    graded(&model, RunOptions::new());
    assert!(model.parameters().into_iter().all(|(_, weight)| !weight.requires_grad() && !weight.grad().defined()));
    let variables = model.var_store().unwrap();
    score(&model.run(tokens(), RunOptions::new()).unwrap()).unwrap().backward();
    let before: Vec<Tensor> = variables.trainable_variables().iter().map(|w| w.grad().copy()).collect();
    assert!(before.iter().all(Tensor::defined));
    let recorded = graded(&model, RunOptions::new());
    for (weight, before) in variables.trainable_variables().iter().zip(&before) {
        assert_eq!(&weight.grad(), before);
    }
    let frozen = graded(&in_double("gpt2"), RunOptions::new());
    compare(&mut Tally::default(), "recorded", &recorded, &frozen, 1e-12);
}

/// A run that starts at a layer, stops at one, or ends at its last kept point has the gradients of the whole run.
#[test]
fn spans_have_their_gradients() {
    let mut tally = Tally::default();
    for family in STRUCTURES {
        let model = in_double(family);
        let whole = graded(&model, RunOptions::new());
        let stream = whole.run.cache[hook::resid_pre(1)].shallow_clone();
        let late = model.run_with_grad(&stream, RunOptions::new().start_at_layer(1), score).unwrap();
        compare(&mut tally, &format!("{family}, from layer 1"), &late, &whole, 1e-10);

        let direction = random_like(&stream, 11);
        let product = |resid: &Tensor| (resid * &direction).sum(Kind::Double);
        let of_cache = model
            .run_with_grad(tokens(), RunOptions::new(), |output| Ok(product(&output.cache[hook::resid_post(0)])))
            .unwrap();
        let early = model
            .run_with_grad(tokens(), RunOptions::new().stop_at_layer(1), |output| Ok(product(output.resid()?)))
            .unwrap();
        compare(&mut tally, &format!("{family}, to layer 1"), &early, &of_cache, 1e-10);
        let run = RunOptions::new().cache(["resid_post", "z"]).return_type(ReturnType::None);
        let last =
            model.run_with_grad(tokens(), run, |output| Ok(product(&output.cache[hook::resid_post(0)]))).unwrap();
        compare(&mut tally, &format!("{family}, to the last point"), &last, &of_cache, 1e-10);
        // What comes after is not on the path.
        assert_eq!(of_cache.gradients[hook::resid_post(1)].abs().max().double_value(&[]), 0.0);
    }
    tally.finish("gradients of spans");
}

/// Hooks act on the gradients of what is computed on request, and in half precision gradients are the exact ones, rounded.
#[test]
fn requested_points_and_half_precision() {
    let mut tally = Tally::default();
    let names = ["q_input", "k_input", "v_input", "result", "mlp_in"];
    for family in STRUCTURES {
        let model = in_double(family);
        let plain = graded(&model, RunOptions::new().cache(names));
        let mut seen = Vec::new();
        let hooks = Hooks::new().observe_gradient(names, |g, point| seen.push((point, g.copy())));
        graded(&model, RunOptions::new().cache("hook_embed").hooks(hooks));
        assert_eq!(seen.len(), plain.gradients.len(), "{family}");
        for (point, gradient) in seen {
            tally.compare(&format!("{family}, {point}"), &gradient, &plain.gradients[point], 1e-9);
        }
    }
    tally.finish("gradients of requested points");

    let (model, names) = (in_double("gpt2"), ["resid_pre", "pattern", "ln1.hook_scale"]);
    let exact = graded(&model, RunOptions::new().cache(names[0]));
    for kind in [Kind::BFloat16, Kind::Half] {
        let rounded = graded(&model.to_kind(kind).unwrap(), RunOptions::new().cache(names[0]));
        for (point, gradient) in rounded.gradients.items() {
            assert_eq!(gradient.kind(), kind);
            let (ours, theirs) = (gradient.to_kind(Kind::Double).flatten(0, -1), exact.gradients[point].flatten(0, -1));
            let cosine = (&ours * &theirs).sum(Kind::Double) / (ours.norm() * theirs.norm());
            assert!(cosine.double_value(&[]) > 0.99, "{kind:?}, {point}: {cosine}");
        }
    }
}
