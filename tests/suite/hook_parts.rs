//! Hooks at parts of activations, the ready-made ablations, handles with hooks, and hooks that fail.

use rstest::rstest;
use tch::{Kind, Tensor};
use tch_lens::{
    hook, hook::HookTarget, ActivationCache, Error, GenerateOptions, HookFilter, HookPoint, HookedTransformer, Hooks,
    Metric, PaddingSide, Patch, RunOptions, RunOutput, StepOptions, Tokens,
};

use crate::common::{max_diff, raw, Tally};

const TOLERANCE: f64 = 1e-5;

fn tokens() -> Vec<Vec<i64>> {
    vec![vec![1, 5, 3, 8, 2], vec![4, 4, 9, 1, 7]]
}

fn others() -> Vec<Vec<i64>> {
    vec![vec![2, 2, 3, 9, 1], vec![7, 1, 1, 5, 5]]
}

fn cache(model: &HookedTransformer, tokens: Vec<Vec<i64>>) -> ActivationCache {
    model.run_with_cache(tokens).unwrap().1
}

/// What stands at a point in a run with hooks.
fn at(model: &HookedTransformer, point: HookPoint, hooks: Hooks) -> Tensor {
    model.run(tokens(), RunOptions::new().hooks(hooks).cache(point)).unwrap().cache[point].shallow_clone()
}

/// The activation of the run without hooks after a change in place.
fn changed(cache: &ActivationCache, point: HookPoint, change: impl Fn(&Tensor)) -> Tensor {
    let copy = cache[point].copy();
    change(&copy);
    copy
}

#[test]
fn a_part_is_edited_replaced_and_seen_as_the_same_entries_of_the_whole() {
    let model = raw("llama_gqa_tied");
    let clean = cache(&model, tokens());
    let mut tally = Tally::default();
    let mut compare = |what: &str, point: HookPoint, hooks: Hooks, change: &dyn Fn(&Tensor)| {
        tally.compare(what, &at(&model, point, hooks), &changed(&clean, point, change), TOLERANCE);
    };
    let z = hook::z(1);
    compare(
        "a head at a position",
        z,
        Hooks::new().edit(z.head(1).pos(-1), |part, _| {
            assert_eq!(part.size(), [2, 8]);
            let _ = part.fill_(3.0);
        }),
        &|z| {
            let _ = z.select(2, 1).select(1, -1).fill_(3.0);
        },
    );
    compare(
        "rows and a list of heads",
        z,
        Hooks::new().edit(z.head([3, 0]).rows(1..), |part, _| {
            assert_eq!(part.size(), [1, 5, 2, 8]);
            let _ = part.select(2, 0).fill_(1.0);
        }),
        &|z| {
            let _ = z.select(0, 1).select(1, 3).fill_(1.0);
        },
    );
    compare("a replaced key-value head", hook::k(0), Hooks::new().replace(hook::k(0).head(1), |k, _| k * 2.0), &|k| {
        let _ = k.select(2, 1).g_mul_(&Tensor::from(2f32));
    });
    compare("nothing replaced", z, Hooks::new().replace(z.head(1), |_, _| None::<Tensor>), &|_| {});
    compare(
        "keys of a pattern",
        hook::pattern(0),
        Hooks::new().edit(hook::pattern(0).head(2).pos(3).key(1), |part, _| {
            assert_eq!(part.size(), [2]);
            let _ = part.fill_(0.5);
        }),
        &|pattern| {
            let _ = pattern.select(1, 2).select(1, 3).select(1, 1).fill_(0.5);
        },
    );
    compare("neurons", hook::post(0), Hooks::new().patch(hook::post(0).neuron([1, 4]), Patch::add(1.0)), &|post| {
        for neuron in [1, 4] {
            let _ = post.select(2, neuron).g_add_(&Tensor::from(1f32));
        }
    });
    compare("a part of the patch and of the point", z, Hooks::new().patch(z.head(1), Patch::zero().pos(2)), &|z| {
        let _ = z.select(2, 1).select(1, 2).fill_(0.0);
    });
    compare("several parts of one point", z, Hooks::new().patch([z.head(1), z.pos(0)], Patch::zero()), &|z| {
        let _ = (z.select(2, 1).fill_(0.0), z.select(1, 0).fill_(0.0));
    });
    let order = Hooks::new().edit(z.head(1), |z, _| {
        let _ = z.fill_(1.0);
    });
    compare("in order", z, order.replace(z.head([0, 1]), |z, _| z + 1.0), &|z| {
        let _ = (z.select(2, 1).fill_(2.0), z.select(2, 0).g_add_(&Tensor::from(1f32)));
    });
    tally.finish("parts");
    let everywhere = Hooks::new().patch(HookFilter::names(|name| name.ends_with("hook_z")).head(0), Patch::zero());
    let run = model.run(tokens(), RunOptions::new().hooks(everywhere).cache("z")).unwrap();
    for layer in 0..model.config().n_layers {
        assert_eq!(run.cache[hook::z(layer)].select(2, 0).abs().max().double_value(&[]), 0.0);
    }
    let mut seen = Vec::new();
    let hooks = Hooks::new().observe(HookFilter::from("z").head(0).pos(-1), |z, point| seen.push((point, z.size())));
    let _logits = model.run_with_hooks(tokens(), hooks).unwrap();
    assert_eq!(seen, [(hook::z(0), vec![2, 8]), (hook::z(1), vec![2, 8])]);
}

#[test]
fn the_ready_made_ablations_are_what_they_say() {
    let model = raw("gpt2");
    let (clean, other) = (cache(&model, tokens()), cache(&model, others()));
    let z = hook::z(1);
    let mut tally = Tally::default();
    let mut compare = |what: &str, hooks: Hooks, change: &dyn Fn(&Tensor)| {
        tally.compare(what, &at(&model, z, hooks), &changed(&clean, z, change), TOLERANCE);
    };
    let set = |to: Tensor, from: &Tensor| {
        let mut to = to;
        to.copy_(&from.expand_as(&to));
    };
    let theirs = &other[z];
    compare("another run", Hooks::new().patch(z.head(1), Patch::set(&other)), &|z| {
        set(z.select(2, 1), &theirs.select(2, 1))
    });
    compare("another run at a position", Hooks::new().patch(z.head(1).pos(3), Patch::set(&other)), &|z| {
        set(z.select(2, 1).select(1, 3), &theirs.select(2, 1).select(1, 3));
    });
    compare("frozen", Hooks::new().freeze("z", &other), &|z| set(z.shallow_clone(), theirs));
    let mean = theirs.mean_dim([0i64, 1].as_slice(), true, None);
    compare("mean", Hooks::new().patch(z.head(1), Patch::mean(&other)), &|z| set(z.select(2, 1), &mean.select(2, 1)));
    let by_position = theirs.mean_dim([0i64].as_slice(), true, None);
    let hooks = Hooks::new().patch(z.head(1).pos([0, 2]), Patch::mean_by_position(&other));
    compare("mean by position", hooks, &|z| {
        for pos in [0, 2] {
            set(z.select(2, 1).select(1, pos), &by_position.select(2, 1).select(1, pos));
        }
    });
    let direction = theirs.select(0, 0).select(0, 0).select(0, 0);
    compare("projected out", Hooks::new().patch(z.head(0), Patch::project_out(&direction)), &|z| {
        let part = z.select(2, 0);
        let along = part.matmul(&direction).unsqueeze(-1) / direction.dot(&direction);
        set(part.shallow_clone(), &(&part - along * &direction));
    });
    compare("a direction added", Hooks::new().patch(z.head(0), Patch::add(&direction)), &|z| {
        let part = z.select(2, 0);
        set(part.shallow_clone(), &(&part + &direction));
    });
    tally.finish("ablations");
    // One row stands for all.
    let one = cache(&model, vec![others()[0].clone()]);
    let ours = at(&model, z, Hooks::new().patch(z.pos(1), Patch::set(&one)));
    let expected = changed(&clean, z, |z| set(z.select(1, 1), &one[hook::z(1)].select(1, 1)));
    assert!(max_diff("one row", &ours, &expected) < TOLERANCE);
}

#[test]
fn resampled_rows_are_rows_of_the_other_run_and_follow_from_the_seed() {
    let model = raw("gpt2");
    let other = cache(&model, others());
    let z = hook::z(1);
    let many = || vec![tokens()[0].clone(); 16];
    let of = |seed| {
        let hooks = Hooks::new().patch(["z", "mlp_out"], Patch::resample(&other, seed));
        let cache = model.run(many(), RunOptions::new().hooks(hooks).cache(["z", "mlp_out"])).unwrap().cache;
        let rows_of = |point: HookPoint| -> Vec<usize> {
            let is = |row: i64, i: i64| max_diff("row", &cache[point].get(row), &other[point].get(i)) == 0.0;
            (0..16).map(|row| (0..2).position(|i| is(row, i)).expect("a row of the other run")).collect()
        };
        let rows = rows_of(z);
        assert_eq!(rows, rows_of(hook::mlp_out(0)));
        rows
    };
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
    assert!(of(1).contains(&0) && of(1).contains(&1));
}

#[test]
fn noise_has_its_deviation_and_follows_from_seed_and_point() {
    let model = raw("gpt2");
    let clean = cache(&model, tokens());
    let point = hook::resid_pre(0);
    let noise = |std, seed| at(&model, point, Hooks::new().patch(point, Patch::noise(std, seed))) - &clean[point];
    let drawn = noise(2.0, 1);
    assert!((drawn.std(true).double_value(&[]) - 2.0).abs() < 0.4, "{}", drawn.std(true));
    assert!(drawn.mean(None).double_value(&[]).abs() < 0.5);
    assert!(max_diff("seed", &drawn, &noise(2.0, 1)) == 0.0 && max_diff("seed", &drawn, &noise(2.0, 2)) > 0.1);
}

#[test]
fn means_leave_padding_out() {
    let model = raw("gpt2");
    let rows = [vec![1, 5, 3, 8, 2], vec![4, 4, 9]];
    let padded = Tokens::padded(&rows, 0, PaddingSide::Right).unwrap();
    let other = model.run(padded, RunOptions::new().cache("z")).unwrap().cache;
    let z = hook::z(0);
    let alone: Vec<Tensor> =
        rows.iter().map(|row| cache(&model, vec![row.clone()])[z].select(0, 0).shallow_clone()).collect();
    let mean = Tensor::cat(&alone, 0).mean_dim([0i64].as_slice(), false, None); // [head, d_head]
    let ours = at(&model, z, Hooks::new().patch(z, Patch::mean(&other)));
    assert!(max_diff("mean", &ours, &mean.expand_as(&ours)) < 1e-5);
    let ours = at(&model, z, Hooks::new().patch(z, Patch::mean_by_position(&other)));
    let third = (alone[0].get(2) + alone[1].get(2)) / 2.0;
    assert!(max_diff("third", &ours.get(1).get(2), &third) < 1e-5);
    assert!(max_diff("fourth", &ours.get(1).get(3), &alone[0].get(3)) < 1e-5);
    let error = model.run_with_hooks(tokens(), Hooks::new().patch(z, Patch::resample(&other, 0))).unwrap_err();
    assert!(error.to_string().contains("rows that have padding"), "{error}");
}

#[test]
fn a_handle_has_its_hooks_in_every_run_and_the_model_has_none() {
    let model = raw("gpt2");
    let plain = model.forward(tokens()).unwrap();
    let mut count = 0;
    {
        let hooks = Hooks::new().patch(hook::z(0).head(1), Patch::zero()).observe(hook::z(1), |_, _| count += 1);
        let mut handle = model.with_hooks(hooks);
        let ablated = model.run_with_hooks(tokens(), Hooks::new().patch(hook::z(0).head(1), Patch::zero())).unwrap();
        for _ in 0..2 {
            assert_eq!(handle.forward(tokens()).unwrap(), ablated);
        }
        assert_eq!(model.forward(tokens()).unwrap(), plain);
        let (logits, cache) = handle.run_with_cache(tokens()).unwrap();
        assert!(max_diff("cached", &logits, &ablated) < TOLERANCE && cache.is_changed(hook::z(0)));
        // The run's own hooks come after those of the handle.
        let own = handle.run_with_hooks(
            tokens(),
            Hooks::new().edit(hook::z(0).head(1), |z, _| {
                assert_eq!(z.abs().max().double_value(&[]), 0.0);
                let _ = z.fill_(1.0);
            }),
        );
        let ones = model.run_with_hooks(tokens(), Hooks::new().patch(hook::z(0).head(1), Patch::set(1.0))).unwrap();
        assert_eq!(own.unwrap(), ones);
        let error = handle.run(tokens(), RunOptions::new().stop_at_layer(1)).unwrap_err();
        assert!(matches!(error, Error::NeverReached { .. }), "{error}");
        let mut more = handle.and(Hooks::new().patch(hook::z(0).head(0), Patch::zero()));
        assert_ne!(more.forward(tokens()).unwrap(), ablated);
    }
    assert_eq!(count, 5);
}

/// Makes a hook that fails.
type Failing = fn() -> Hooks<'static>;

#[rstest]
#[case::panics(|| Hooks::new().edit(hook::z(1), |_, _| -> () { panic!("on purpose") }), "the hook at `blocks.1.attn.hook_z` panicked: on purpose")]
#[case::fails(|| Hooks::new().edit(hook::z(1), |_, _| Err::<(), _>("on purpose")), "the hook at `blocks.1.attn.hook_z` failed: on purpose")]
#[case::shape(|| Hooks::new().replace(hook::z(1), |z, _| z.narrow(1, 0, 1)), "the hook at `blocks.1.attn.hook_z` returned Float [2, 1, ")]
#[case::shape_of_a_part(|| Hooks::new().replace(hook::z(1).head(0), |z, _| z.narrow(1, 0, 1)), "the hook at `blocks.1.attn.hook_z` returned Float [2, 1, ")]
#[case::kind(|| Hooks::new().replace(hook::z(1), |z, _| z.to_kind(Kind::Double)), "the hook at `blocks.1.attn.hook_z` returned Double")]
#[case::nan(|| Hooks::new().replace(hook::z(1), |z, _| z / 0.0 * 0.0), "the hook at `blocks.1.attn.hook_z` left NaN where there were numbers")]
#[case::nan_in_one_entry(|| Hooks::new().edit(hook::z(1).head(1).pos(2), |z, _| { let _ = z.select(0, 0).select(0, 0).fill_(f64::NAN); }), "the hook at `blocks.1.attn.hook_z` left NaN")]
#[case::nan_in_a_patch(|| Hooks::new().patch(hook::z(1), Patch::add(Tensor::from(f32::NAN))), "the hook at `blocks.1.attn.hook_z` left NaN")]
#[case::nan_number(|| Hooks::new().patch(hook::z(1), Patch::set(f64::NAN)), "the patch at `blocks.1.attn.hook_z` cannot be made: its value is NaN")]
#[case::in_place(|| Hooks::new().observe(hook::z(1).head(1), |z, _| { let _ = z.shallow_clone().fill_(1.0); }), "the hook at `blocks.1.attn.hook_z` changed in place")]
fn a_failing_hook_ends_the_run_with_its_point_and_leaves_the_model_as_it_was(
    #[case] hooks: Failing,
    #[case] sentence: &str,
) {
    let model = raw("gpt2");
    let before = model.forward(tokens()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (model, before) = (model.clone(), before.copy());
            scope.spawn(move || {
                for _ in 0..3 {
                    let error = model.run_with_hooks(tokens(), hooks()).unwrap_err().to_string();
                    assert!(error.starts_with(sentence), "{thread}: {error}");
                    assert_eq!(model.forward(tokens()).unwrap(), before);
                }
            });
        }
    });
}

#[test]
fn nan_that_a_hook_got_is_not_its_own() {
    let model = raw("gpt2");
    let poison = || Hooks::new().replace(hook::attn_scores(0), |scores, _| scores.clamp_min(-1e30) * 1.0);
    assert!(model.run_with_hooks(tokens(), poison()).is_ok());
    // The first hook that leaves NaN is named, not those after it.
    let two = Hooks::new().replace(hook::z(0), |z, _| z * f64::NAN).replace(hook::z(1), |z, _| z * 1.0);
    let error = model.run_with_hooks(tokens(), two).unwrap_err().to_string();
    assert!(error.contains("blocks.0.attn.hook_z"), "{error}");
}

#[rstest]
#[case(hook::resid_pre(0).head(1).into(), "the hook at `blocks.0.hook_resid_pre` cannot act: it selects heads, but the point has no head axis: it is [batch, pos, d_model]")]
#[case(hook::z(0).key(1).into(), "the hook at `blocks.0.attn.hook_z` cannot act: it selects keys")]
#[case(hook::z(0).head(9).into(), "the hook at `blocks.0.attn.hook_z` cannot act: index 9 is out of range for the head axis")]
#[case(hook::z(0).pos(9).into(), "index 9 is out of range for the position axis")]
#[case(hook::z(0).rows(9).into(), "index 9 is out of range for the batch axis")]
#[case(hook::z(7).head(1).into(), "layer 7 is out of range")]
#[case(Vec::<tch_lens::hook::HookPart>::new().into(), "an empty list of parts matches no hook point")]
fn a_part_that_there_is_not_is_an_error(#[case] target: HookTarget<'static>, #[case] sentence: &str) {
    let error = raw("gpt2").run_with_hooks(tokens(), Hooks::new().edit(target, |_, _| {})).unwrap_err().to_string();
    assert!(error.contains(sentence), "{error}");
}

#[test]
fn values_of_a_cache_that_do_not_fit_are_errors() {
    let model = raw("gpt2");
    let z = hook::z(0);
    let short = cache(&model, vec![vec![1, 2, 3], vec![4, 5, 6]]);
    let three = cache(&model, vec![vec![1, 2, 3, 4, 5]; 3]);
    let few = model.run_with_cache_of(tokens(), "q").unwrap().1;
    let sentence = |hooks: Hooks| model.run_with_hooks(tokens(), hooks).unwrap_err().to_string();
    let differs =
        "the patch at `blocks.0.attn.hook_z` cannot be made: its value is the activation of another run, of shape";
    assert!(sentence(Hooks::new().freeze(z, &short)).starts_with(differs));
    assert!(sentence(Hooks::new().freeze(z, &three)).starts_with(differs));
    assert!(sentence(Hooks::new().patch(z.pos(4), Patch::set(&short))).contains("position 4"));
    assert!(sentence(Hooks::new().freeze(z, &few)).contains("does not hold the point"));
    assert!(sentence(Hooks::new().patch(z.head(0), Patch::zero().head(1))).contains("it selects heads twice"));
    let zero = Patch::project_out(Tensor::zeros([8], (Kind::Float, tch::Device::Cpu)));
    assert!(sentence(Hooks::new().patch(z, zero)).contains("its direction is zero"));
    assert!(sentence(Hooks::new().patch(z, Patch::noise(-1.0, 0))).contains("standard deviation -1"));
    // A position of a shorter run can be taken.
    assert!(model.run_with_hooks(tokens(), Hooks::new().patch(z.pos(2), Patch::set(&short))).is_ok());
    assert_eq!(hook::z(3).head(1).pos(-1).to_string(), "blocks.3.attn.hook_z[pos -1, head 1]");
}

/// Every ready-made intervention in every form in which hooks are given has the effect that putting its value there by hand has.
#[test]
fn every_intervention_has_its_effect_in_every_form() {
    let model = raw("gpt2");
    let other = cache(&model, others());
    let plain = model.forward(tokens()).unwrap();
    let (z, first) = (hook::z(1), hook::z(0));
    let direction = other[z].select(0, 0).select(0, 0).select(0, 0);
    let metric = Metric::logit_diff(1, 3);
    type Maker<'m> = Box<dyn Fn() -> Patch + 'm>;
    let interventions: [(&str, Maker); 9] = [
        ("zero", Box::new(Patch::zero)),
        ("another run", Box::new(|| Patch::set(&other))),
        ("mean", Box::new(|| Patch::mean(&other))),
        ("mean by position", Box::new(|| Patch::mean_by_position(&other))),
        ("resample", Box::new(|| Patch::resample(&other, 3))),
        ("noise", Box::new(|| Patch::noise(0.5, 7))),
        ("add", Box::new(|| Patch::add(&direction))),
        ("project out", Box::new(|| Patch::project_out(&direction))),
        ("scale", Box::new(|| Patch::scale(0.5))),
    ];
    let mut tally = Tally::default();
    for (what, patch) in interventions {
        let hooks = || Hooks::new().patch(z, patch());
        let value = at(&model, z, hooks());
        let by_hand = || Hooks::new().replace(z, |_, _| value.shallow_clone());
        let expected = model.run_with_hooks(tokens(), by_hand()).unwrap();
        assert!(max_diff(what, &expected, &plain) > 1e-3, "{what}: nothing changed");
        let mut compare = |form: &str, logits: &Tensor| {
            tally.compare(&format!("{what}, {form}"), logits, &expected, TOLERANCE);
        };
        let run = |hooks: Hooks| model.run_with_hooks(tokens(), hooks).unwrap();
        compare("by point", &run(hooks()));
        compare("by name", &run(Hooks::new().patch("blocks.1.attn.hook_z", patch())));
        compare("by predicate", &run(Hooks::new().patch(HookFilter::matching(|point| point == z), patch())));
        compare("after another", &run(Hooks::new().patch(z, Patch::scale(1.0)).patch(z, patch())));
        let mut counts = 0;
        let counted = Hooks::new().observe(z, |_, _| counts += 1).and(hooks());
        compare("with state", &run(counted));
        assert_eq!(counts, 1);
        let mut handle = model.with_hooks(hooks());
        compare("in a handle", &handle.forward(tokens()).unwrap());
        compare("in a handle again", &handle.forward(tokens()).unwrap());
        let output = model.run(tokens(), RunOptions::new().hooks(hooks()).cache(HookFilter::All)).unwrap();
        compare("with a cache", output.logits().unwrap());
        assert!(output.cache.is_changed(z) && max_diff("cache", &output.cache[z], &value) < TOLERANCE);
        let scalar = |run: &RunOutput| metric.scalar(run.logits()?, &run.cache);
        let gradients = |hooks: Hooks| {
            model.run_with_grad(tokens(), RunOptions::new().hooks(hooks).cache([first, z]), scalar).unwrap()
        };
        let (ours, theirs) = (gradients(hooks()), gradients(by_hand()));
        tally.compare(&format!("{what}, gradient"), &ours.gradients[z], &theirs.gradients[z], TOLERANCE);
        assert!((ours.value - theirs.value).abs() < TOLERANCE, "{what}");
        // What is set whole leaves no way for gradients; what is changed does.
        let passes = max_diff(what, &ours.gradients[first], &theirs.gradients[first]) > 1e-5;
        assert_eq!(passes, ["noise", "add", "project out", "scale"].contains(&what), "{what}");

        // Several points, each with a value of its own; order counts.
        let several = at(&model, first, Hooks::new().patch([first, z], patch()));
        let alone = at(&model, first, Hooks::new().patch(first, patch()));
        tally.compare(&format!("{what}, several points"), &several, &alone, TOLERANCE);
        let last = at(&model, z, hooks().patch(z, Patch::zero()));
        assert_eq!(last.abs().max().double_value(&[]), 0.0, "{what}: the later one comes later");
        // A part, and nothing beside it.
        let part = at(&model, z, Hooks::new().patch(z.head(1).pos(2), patch()));
        let clean = at(&model, z, Hooks::new());
        let outside = (&part - &clean).abs();
        assert!(outside.select(2, 1).select(1, 2).max().double_value(&[]) > 0.0, "{what}");
        let _ = outside.select(2, 1).select(1, 2).fill_(0.0);
        assert_eq!(outside.max().double_value(&[]), 0.0, "{what}: another entry changed");
        // The first new token is the one that these logits choose.
        let options = GenerateOptions::new().do_sample(false).max_new_tokens(1).stop_at_eos(false);
        let generated = model.generate_with(tokens(), &options, StepOptions::new().hooks(hooks())).unwrap();
        for (row, continuation) in generated.rows.iter().enumerate() {
            let token = expected.get(row as i64).get(-1).argmax(-1, false).int64_value(&[]);
            assert_eq!(continuation.new_ids(), [token], "{what}, generation");
        }
        // A point that this run does not reach.
        let unreached = model.run(tokens(), RunOptions::new().hooks(hooks()).stop_at_layer(1));
        assert!(matches!(unreached, Err(Error::NeverReached { .. })), "{what}");
        assert_eq!(model.forward(tokens()).unwrap(), plain, "{what}: the model is as it was");
    }
    tally.finish("interventions in every form");
}
