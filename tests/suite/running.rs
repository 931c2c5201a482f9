//! What a run gives: what is kept of it and in which order, where it ends, which positions it is about.

use std::cell::RefCell;

use crate::common::{families, max_diff, raw, tokenizer, Fixture};
use approx::assert_abs_diff_eq;
use rstest::rstest;
use tch::{Device, IndexOp, Kind, Tensor};
use tch_lens::hook::Site;
use tch_lens::{
    hook, ActivationCache, Bos, Config, HookFilter, HookPoint, HookedTransformer, Hooks, Input, ReturnType, RunOptions,
    Slice, TokenOptions, Tokens,
};

const PROMPT: [i64; 5] = [5, 17, 3, 60, 9];

fn names(cache: &ActivationCache) -> Vec<String> {
    cache.keys().map(|point| point.to_string()).collect()
}

/// A fixture's model and tokens.
fn fixture(family: &str) -> (HookedTransformer, Tensor) {
    (raw(family), Fixture::open(family).want("tokens"))
}

#[track_caller]
fn same(what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
    let diff = max_diff(what, ours, theirs);
    assert!(diff <= tolerance, "{what}: differs by {diff:.3e}");
}

// --- what is kept -----------------------------------------------------------------------------------------------------

#[rstest]
#[case::a_name("blocks.1.attn.hook_q".into(), &["blocks.1.attn.hook_q"])]
#[case::every_block("resid_post".into(), &["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])]
#[case::compact("pattern1".into(), &["blocks.1.attn.hook_pattern"])]
#[case::within("scale1ln2".into(), &["blocks.1.ln2.hook_scale"])]
#[case::outside("embed".into(), &["hook_embed"])]
#[case::short_hand(("k", -1).into(), &["blocks.1.attn.hook_k"])]
#[case::norms(("normalized", 0, "ln1").into(), &["blocks.0.ln1.hook_normalized"])]
#[case::typed(hook::mlp_out(1).into(), &["blocks.1.hook_mlp_out"])]
#[case::on_request(hook::result(0).into(), &["blocks.0.attn.hook_result"])]
#[case::in_firing_order(
    ["unembed.hook_in", "resid_post", "blocks.0.attn.hook_z", "hook_embed", "resid_post"].into(),
    &["hook_embed", "blocks.0.attn.hook_z", "blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "unembed.hook_in"],
)]
#[case::several_typed(vec![hook::z(1), hook::z(0)].into(), &["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"])]
#[case::several_short([("z", 0), ("q", -1)].into(), &["blocks.0.attn.hook_z", "blocks.1.attn.hook_q"])]
#[case::strings(vec!["hook_embed".to_string()].into(), &["hook_embed"])]
#[case::by_name(
    HookFilter::names(|name| name.ends_with("hook_scale")),
    &["blocks.0.ln1.hook_scale", "blocks.0.ln2.hook_scale", "blocks.1.ln1.hook_scale", "blocks.1.ln2.hook_scale",
      "ln_final.hook_scale"],
)]
#[case::by_point(
    HookFilter::matching(|point| point.axes().head.is_some() && point.layer() == Some(1)),
    &["blocks.1.attn.hook_q", "blocks.1.attn.hook_k", "blocks.1.attn.hook_v", "blocks.1.attn.hook_attn_scores",
      "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_z"],
)]
fn a_filter_keeps_what_it_says(#[case] select: HookFilter, #[case] expected: &[&str]) {
    let model = raw("gpt2");
    let (logits, cache) = model.run_with_cache_of(PROMPT, select).unwrap();
    assert_eq!(names(&cache), expected);
    let (all_logits, all) = model.run_with_cache(PROMPT).unwrap();
    same("logits", &logits, &all_logits, 1e-5); // fused attention is another kernel
    for (point, tensor) in &cache {
        if all.contains(*point) {
            same(&point.to_string(), tensor, &all[*point], 1e-5);
        }
    }
}

#[test]
fn without_a_filter_everything_that_fires_by_default_is_kept() {
    for family in families() {
        let (model, tokens) = fixture(&family);
        let (_, cache) = model.run_with_cache(&tokens).unwrap();
        let (_, by_predicate) = model.run_with_cache_of(&tokens, HookFilter::matching(|_| true)).unwrap();
        assert_eq!(names(&cache), names(&by_predicate));
        // What is asked for by name comes on top, in its place.
        let (_, whole) = model.run_with_cache_of(&tokens, model.hook_names()).unwrap();
        let all = names(&whole);
        assert!(model.hook_names().iter().all(|name| all.contains(name)) && all.len() == model.hook_names().len());
        let defaults: Vec<String> = all.into_iter().filter(|name| cache.contains(name)).collect();
        assert_eq!(defaults, names(&cache), "{family}");
    }
}

#[test]
fn a_plan_knows_what_a_run_will_keep() {
    for family in families() {
        let (model, tokens) = fixture(&family);
        let run = || RunOptions::new().cache(model.hook_names()).return_type(ReturnType::None);
        let plan = model.plan(&run()).unwrap();
        let outcome = model.run(&tokens, run()).unwrap();
        assert_eq!(plan.cached().count(), outcome.cache.len());
        assert!(outcome.cache.keys().all(|point| plan.is_live(point)));
        let nothing = model.plan(&RunOptions::new()).unwrap();
        assert!(!outcome.cache.keys().any(|point| nothing.is_live(point)));
    }
}

#[test]
fn nothing_is_kept_unasked() {
    let outcome = raw("gpt2").run(PROMPT, RunOptions::new()).unwrap();
    assert!(outcome.cache.is_empty() && outcome.logits.is_some() && outcome.loss.is_none() && outcome.resid.is_none());
}

#[test]
fn outputs_are_what_was_asked_for() {
    let model = raw("gpt2");
    let run = |output| model.run([5, 17, 3], RunOptions::new().return_type(output)).unwrap();
    let of = |output| {
        let outcome = run(output);
        (outcome.logits.map(|t| t.size()), outcome.loss.map(|t| t.size()))
    };
    assert_eq!(of(ReturnType::Logits), (Some(vec![1, 3, 96]), None));
    assert_eq!(of(ReturnType::Loss), (None, Some(vec![])));
    assert_eq!(of(ReturnType::LossPerToken), (None, Some(vec![1, 2])));
    assert_eq!(of(ReturnType::Both), (Some(vec![1, 3, 96]), Some(vec![])));
    assert_eq!(of(ReturnType::None), (None, None));
    // By hand: minus the log-probability of each next token.
    let log_probs = run(ReturnType::Logits).logits.unwrap().log_softmax(-1, Kind::Double);
    let next = |at: i64, id: i64| -log_probs.double_value(&[0, at, id]);
    let per_token = run(ReturnType::LossPerToken).loss.unwrap();
    assert_abs_diff_eq!(per_token.double_value(&[0, 0]), next(0, 17), epsilon = 1e-5);
    assert_abs_diff_eq!(per_token.double_value(&[0, 1]), next(1, 3), epsilon = 1e-5);
    assert_abs_diff_eq!(model.loss([5, 17, 3]).unwrap(), (next(0, 17) + next(1, 3)) / 2.0, epsilon = 1e-5);
}

#[test]
fn a_result_that_was_not_computed_is_an_error_that_names_the_setting() {
    let model = raw("gpt2");
    let run = |run: RunOptions<'static>| model.run([5, 17, 3], run).unwrap();
    let says = |error: tch_lens::Error, expected: &str| {
        assert!(matches!(error, tch_lens::Error::NotComputed { .. }));
        assert_eq!(error.to_string(), format!("the run did not compute {expected}"));
    };
    let both = run(RunOptions::new().return_type(ReturnType::Both));
    assert_eq!(both.loss().unwrap(), model.loss([5, 17, 3]).unwrap());
    assert_eq!(both.loss().unwrap(), both.loss_tensor().unwrap().double_value(&[]));
    assert_eq!(both.logits().unwrap(), both.logits.as_ref().unwrap());
    says(both.resid().unwrap_err(), "the residual stream: set `stop_at_layer`");

    let per_token = run(RunOptions::new().return_type(ReturnType::LossPerToken));
    assert_eq!(per_token.loss_tensor().unwrap().size(), [1, 2]);
    let hint = "it computed the loss per token, so use `loss_tensor`, or `return_type(ReturnType::Loss)`";
    says(per_token.loss().unwrap_err(), &format!("the mean loss: {hint}"));
    let no_logits =
        "logits: set `return_type` to `ReturnType::Logits` or `ReturnType::Both`, and leave out `stop_at_layer`";
    says(per_token.logits().unwrap_err(), no_logits);

    let mut stopped = run(RunOptions::new().stop_at_layer(1usize));
    assert_eq!(stopped.resid().unwrap(), stopped.resid.as_ref().unwrap());
    says(stopped.take_logits().unwrap_err(), no_logits);
    let no_loss = "a loss: set `return_type` to `ReturnType::Loss`, `ReturnType::LossPerToken` or `ReturnType::Both`";
    says(stopped.loss().unwrap_err(), no_loss);
    says(run(RunOptions::new()).loss_tensor().unwrap_err(), no_loss);

    let mut logits = run(RunOptions::new());
    assert_eq!(logits.take_logits().unwrap(), model.forward([5, 17, 3]).unwrap());
    says(logits.take_logits().unwrap_err(), no_logits);
}

// --- where a run ends -------------------------------------------------------------------------------------------------

#[test]
fn a_run_stops_before_a_layer_with_the_stream_there() {
    for family in families() {
        let (model, tokens) = fixture(&family);
        let n_layers = model.config().n_layers as i64;
        let (_, all) = model.run_with_cache(&tokens).unwrap();
        for layer in -n_layers..=n_layers {
            let outcome = model.run(&tokens, RunOptions::new().stop_at_layer(layer).cache(HookFilter::All)).unwrap();
            let expected = match layer {
                layer if layer == n_layers => &all[("resid_post", -1)],
                layer => &all[("resid_pre", layer)],
            };
            same(&format!("{family} at {layer}"), &outcome.resid.unwrap(), expected, 1e-6);
            assert!(outcome.logits.is_none());
            let stop = layer.rem_euclid(n_layers.max(layer + 1)) as usize;
            assert!(outcome.cache.keys().all(|point| point.layer().is_none_or(|l| l < stop)), "{family} at {layer}");
            let before = |point: &HookPoint| match point.layer() {
                Some(l) => l < stop,
                None => *point < hook::ln_final_scale(),
            };
            assert_eq!(outcome.cache.len(), all.keys().filter(before).count());
        }
    }
}

#[test]
fn layers_past_the_stop_do_not_run() {
    let model = raw("gpt2");
    let fired = RefCell::new(Vec::new());
    let everywhere = || Hooks::new().observe(HookFilter::All, |_, point| fired.borrow_mut().push(point));
    model.run(PROMPT, RunOptions::new().hooks(everywhere()).stop_at_layer(1)).unwrap();
    let stopped = fired.take();
    assert!(stopped.contains(&hook::resid_post(0)) && stopped.iter().all(|point| point.layer() != Some(1)));
    model.run(PROMPT, RunOptions::new().hooks(everywhere())).unwrap();
    assert_eq!(fired.borrow()[..stopped.len()], stopped);
    assert_eq!(fired.borrow().last(), Some(&hook::unembed_out()));
}

/// A model that cannot compute what comes after `layer`: its weights there are of another kind, so each product fails.
fn broken_after(layer: usize) -> HookedTransformer {
    let model = raw("gpt2");
    let later = |name: &str| match name.strip_prefix("blocks.").and_then(|rest| rest.split_once('.')) {
        Some((index, _)) => index.parse::<usize>().unwrap() > layer,
        None => name.starts_with("ln_final") || name.starts_with("unembed"),
    };
    for (name, weight) in model.parameters() {
        if later(&name) {
            let wrong = weight.to_kind(Kind::Int);
            weight.shallow_clone().set_data(&wrong);
        }
    }
    model
}

/// A run whose output is not wanted computes nothing after the last point that is looked at.
#[test]
fn a_run_ends_with_the_last_point_that_is_looked_at() {
    let whole = raw("gpt2");
    for layer in [0, 1] {
        let model = broken_after(layer);
        assert!(model.run(PROMPT, RunOptions::new()).is_err(), "what comes after layer {layer} still computes");
        let last = || RunOptions::new().cache(hook::resid_post(layer)).return_type(ReturnType::None);
        let ours = model.run(PROMPT, last()).unwrap().cache;
        let theirs = whole.run(PROMPT, last()).unwrap().cache;
        same("the last point", &ours[hook::resid_post(layer)], &theirs[hook::resid_post(layer)], 0.0);
        let next = if layer == 0 { hook::mlp_out(1) } else { hook::unembed_out() };
        assert!(model.run(PROMPT, RunOptions::new().cache(next).return_type(ReturnType::None)).is_err());
        if layer == 0 {
            model.run(PROMPT, RunOptions::new().stop_at_layer(1)).unwrap();
            assert!(model.run(PROMPT, RunOptions::new().stop_at_layer(2)).is_err());
        }
    }
}

// --- positions --------------------------------------------------------------------------------------------------------

/// Every point of every family, on the position axis that it says it has.
#[rstest]
#[case::last(Slice::from(-1))]
#[case::first(Slice::from(0))]
#[case::range(Slice::from(2..5))]
#[case::open(Slice::from(-2..))]
#[case::step(Slice::from((0, 7, 3)))]
#[case::list(Slice::from([6, 0, -3]))]
#[case::mask(Slice::from(vec![true, false, false, true, false, false, true]))]
#[case::tensor(Slice::from(Tensor::from_slice(&[1i64, 4])))]
fn a_slice_of_positions_is_that_of_the_whole_cache(#[case] slice: Slice) {
    let mut compared = 0;
    for family in families() {
        let (model, tokens) = fixture(&family);
        let run = || RunOptions::new().cache(model.hook_names()).return_type(ReturnType::None);
        let whole = model.run(&tokens, run()).unwrap().cache;
        let sliced = model.run(&tokens, run().pos(slice.clone())).unwrap().cache;
        let kept = Tensor::from_slice(&slice.indices(7, "position").unwrap());
        assert_eq!(names(&whole), names(&sliced));
        for (point, ours) in &sliced {
            let query = matches!(point.site(), Site::AttnScores | Site::Pattern);
            let axis = if query { 2 } else { 1 }; // of scores and patterns the queries', not the keys'
            let expected = match (point.layer(), point.expert()) {
                (Some(layer), Some(expert)) => {
                    rows_of_expert(&whole[*point], &whole[hook::expert_indices(layer)], expert as i64, &kept)
                }
                _ => whole[*point].index_select(axis, &kept),
            };
            same(&format!("{family} {point}"), ours, &expected, 0.0);
            compared += 1;
        }
    }
    println!("{slice}: {compared} activations");
    assert!(compared > 500);
}

/// An expert's rows of the positions `kept`, by hand: `rows` are of all tokens, those whose first choice it is first.
fn rows_of_expert(rows: &Tensor, indices: &Tensor, expert: i64, kept: &Tensor) -> Tensor {
    let (batch, pos, chosen) = indices.size3().unwrap();
    let hits = |positions: &[i64]| {
        let mut hits = Vec::new();
        for place in 0..chosen {
            for row in 0..batch {
                let of_row = positions.iter().map(|p| (place, row, *p));
                hits.extend(of_row.filter(|(place, row, p)| indices.int64_value(&[*row, *p, *place]) == expert));
            }
        }
        hits
    };
    let all = hits(&(0..pos).collect::<Vec<_>>());
    let kept = hits(&Vec::<i64>::try_from(kept).unwrap());
    let index: Vec<i64> = kept.iter().map(|hit| all.iter().position(|other| other == hit).unwrap() as i64).collect();
    rows.index_select(0, &Tensor::from_slice(&index))
}

#[test]
fn logits_at_some_positions_are_those_of_all() {
    for family in ["gpt2", "llama_gqa_tied", "gpt_neo"] {
        let (model, tokens) = fixture(family);
        let all = model.forward(&tokens).unwrap();
        let at = |slice: Slice| model.run(&tokens, RunOptions::new().logits_at(slice)).unwrap().logits.unwrap();
        same("the last", &at((-1).into()), &all.i((.., 6..7)), 1e-5); // an index keeps its axis
        same("some", &at((2..4).into()), &all.i((.., 2..4)), 1e-5);
        same("a list", &at([3, 0].into()), &all.index_select(1, &Tensor::from_slice(&[3i64, 0])), 1e-5);
        assert_eq!(at((2..2).into()).size(), [2, 0, 96]);
    }
}

// --- inputs -----------------------------------------------------------------------------------------------------------

#[test]
fn the_same_tokens_in_every_form() {
    let model = raw("gpt2").with_tokenizer(tokenizer());
    let ids = [0i64, 2, 3, 4]; // <s> the road ends
    let expected = model.forward(ids).unwrap();
    let tensor = Tensor::from_slice(&ids);
    let inputs: Vec<Input> = vec![
        "the road ends".into(),
        "the road ends".to_string().into(),
        (&"the road ends".to_string()).into(),
        vec!["the road ends"].into(),
        ["the road ends"].into(),
        ids.to_vec().into(),
        ids.as_slice().into(),
        (&ids.to_vec()).into(),
        vec![ids.to_vec()].into(),
        (&tensor).into(),
        tensor.unsqueeze(0).into(),
        tensor.to_kind(Kind::Int).into(),
        tensor.to_kind(Kind::Uint8).into(),
        Tokens::new(&tensor).unwrap().into(),
        model.to_tokens("the road ends").unwrap().into(),
    ];
    for input in inputs {
        let what = format!("{input:?}");
        assert_eq!(model.forward(input).unwrap(), expected, "{what}");
    }
    let without = model.run("the road ends", RunOptions::new().prepend_bos(Bos::No)).unwrap().logits.unwrap();
    assert_eq!(without, model.forward(&ids[1..]).unwrap());
}

#[test]
fn text_and_tokens() {
    let model = raw("gpt2").with_tokenizer(tokenizer());
    assert_eq!(model.to_str_tokens("the road").unwrap(), ["<s>", "the", "road"]);
    assert_eq!(model.to_string([2, 3, 4]).unwrap(), "the road ends");
    assert_eq!(model.to_single_token("road").unwrap(), 3);
    assert_eq!(model.to_single_str_token(3).unwrap(), "road");
    let of = |bos| {
        Vec::<i64>::try_from(model.to_tokens_with("the", TokenOptions::new().prepend_bos(bos)).unwrap().ids.i(0))
            .unwrap()
    };
    assert_eq!((of(Bos::Yes), of(Bos::No), of(Bos::Default)), (vec![0, 2], vec![2], vec![0, 2]));
}

// --- the cache --------------------------------------------------------------------------------------------------------

#[test]
fn a_cache_is_read_in_many_ways() {
    let (model, tokens) = fixture("gpt2");
    let (_, cache) = model.run_with_cache(&tokens).unwrap();
    let q = &cache["blocks.1.attn.hook_q"];
    for other in [cache.get(("q", 1)), cache.get(("q", -1)), cache.get("q1"), cache.get(hook::q(1))] {
        assert_eq!(other.unwrap().data_ptr(), q.data_ptr());
    }
    assert_eq!(cache.len(), cache.keys().len());
    let items: Vec<_> = cache.items().map(|(point, tensor)| (point, tensor.data_ptr())).collect();
    let zipped: Vec<_> = cache.keys().zip(cache.values().map(Tensor::data_ptr)).collect();
    let iterated: Vec<_> = (&cache).into_iter().map(|(point, tensor)| (*point, tensor.data_ptr())).collect();
    assert!(items == zipped && items == iterated && !cache.is_empty());
    assert_eq!(cache.tokens().ids, tokens);
    assert_eq!(cache.model().config(), model.config());
}

/// It outlives the run and the model, and nothing changes it behind its owner's back.
#[test]
fn a_cache_stays_what_it_was() {
    let (cache, before) = {
        let (model, tokens) = fixture("gpt2");
        let (_, cache) = model.run_with_cache(&tokens).unwrap();
        let before: Vec<Tensor> = cache.values().map(Tensor::copy).collect();
        let clone = cache.clone();
        let hooks = Hooks::new().replace(HookFilter::All, |t, _| t.zeros_like());
        model.run(&tokens, RunOptions::new().hooks(hooks)).unwrap();
        drop(cache);
        (clone, before)
    };
    for ((point, tensor), before) in cache.items().zip(&before) {
        same(&point.to_string(), tensor, before, 0.0);
    }
}

#[test]
fn a_batch_is_sliced_on_every_point_s_own_axis() {
    for family in ["gpt2", "llama_gqa_tied", "toy_solu_ln"] {
        let (model, tokens) = fixture(family);
        let cache = || model.run(&tokens, RunOptions::new().cache(model.hook_names())).unwrap().cache;
        let whole = cache();
        for (slice, kept) in [
            (Slice::from(0..1), vec![0]),
            (Slice::from([1, 0]), vec![1, 0]),
            (Slice::from(vec![false, true]), vec![1]),
            (Slice::All, vec![0, 1]),
        ] {
            let sliced = cache().apply_slice_to_batch_dim(slice).unwrap();
            let index = Tensor::from_slice(&kept);
            for (point, ours) in &sliced {
                let axis = whole.batch_axis(*point).unwrap() as i64;
                same(&format!("{family} {point}"), ours, &whole[*point].index_select(axis, &index), 0.0);
            }
            assert!(sliced.has_batch_dim());
            assert_eq!(sliced.tokens().ids, tokens.index_select(0, &index));
        }
        // An index drops the axis, and the other axes move up.
        let second = cache().apply_slice_to_batch_dim(-1).unwrap();
        assert!(!second.has_batch_dim() && second.batch_axis(hook::q(0)).is_none());
        assert_eq!(second.position_axis(hook::q(0)), Some(0));
        assert_eq!(second.position_axis(hook::pattern(0)), Some(1));
        assert_eq!(second.tokens().ids, tokens.i(1..2));
        for (point, ours) in &second {
            same(&format!("{family} {point}"), ours, &whole[*point].i(1), 0.0);
        }
        let one = || model.run(tokens.i(0), RunOptions::new().cache(model.hook_names())).unwrap().cache;
        let (kept, removed) = (one(), one().remove_batch_dim().unwrap());
        for (point, ours) in &removed {
            same(&format!("{family} {point}"), ours, &kept[*point].i(0), 0.0);
        }
        assert_eq!(removed.remove_batch_dim().unwrap().len(), kept.len()); // it is gone already
    }
}

#[test]
fn a_cache_goes_to_a_device_whole() {
    let (model, tokens) = fixture("gpt2");
    let (_, cache) = model.run_with_cache(&tokens).unwrap();
    let before = names(&cache);
    let cache = cache.to(Device::Cpu).unwrap();
    assert_eq!(names(&cache), before);
    assert!(cache.values().all(|tensor| tensor.device() == Device::Cpu));
}

// --- threads ----------------------------------------------------------------------------------------------------------

const _: () = {
    const fn sent<T: Send>() {}
    const fn shared<T: Send + Sync>() {}
    shared::<HookedTransformer>();
    shared::<Config>();
    shared::<tch_lens::Tokenizer>();
    sent::<ActivationCache>();
    sent::<tch_lens::RunOutput>();
    shared::<tch_lens::Error>();
};

#[test]
fn several_threads_run_one_model() {
    let (model, tokens) = fixture("llama_gqa_tied");
    let expected = model.forward(&tokens).unwrap();
    let rows: Vec<Vec<i64>> = (0..2).map(|row| Vec::try_from(tokens.i(row)).unwrap()).collect();
    let caches: Vec<ActivationCache> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (_, cache) = model.run_with_cache(rows.clone()).unwrap();
                    cache
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for cache in caches {
        same("logits", &cache["unembed.hook_out"], &expected, 1e-5);
    }
}
