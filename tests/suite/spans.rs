//! A run has a span: in parts behind a key-value store, from embeddings or from a layer it gives what it gives whole.

use crate::common::models::{fresh, in_fp64, longrope, rotary, small};
use crate::common::{max_diff, properties, raw, Tally};
use proptest::prelude::*;
use tch::{Device, IndexOp, Kind, Tensor};
use tch_lens::config::{AttentionConfig, AttentionDir, PerLayer, Positions, Reach, RopeScaling};
use tch_lens::{
    hook, ActivationCache, Config, Error, HookFilter, HookPoint, HookedTransformer, Hooks, KeyValueStore,
    KeyValueStoreError, ReturnType, RunOptions, Span, Tokens,
};

/// In fp64 nothing but a mistake is larger.
const TOLERANCE: f64 = 1e-9;

fn is_causal(model: &HookedTransformer) -> bool {
    model.config().attention_dir() == AttentionDir::Causal
}

/// Two rows of seven tokens, of vocabularies as small as 16.
fn ids() -> Tensor {
    Tensor::from_slice2(&[[5i64, 14, 3, 10, 9, 6, 11], [7, 4, 12, 3, 3, 8, 13]])
}

fn mask(rows: [&str; 2]) -> Tensor {
    let of = |row: &str| row.bytes().map(|b| b == b'1').collect::<Vec<bool>>();
    Tensor::from_slice(&rows.map(of).concat()).view([2, -1])
}

/// Some columns of tokens.
fn columns(tokens: &Tokens, start: i64, len: i64) -> Tokens {
    let part = |x: &Tensor| x.narrow(1, start, len);
    Tokens { ids: part(&tokens.ids), mask: tokens.mask.as_ref().map(part), types: None }
}

/// The part of an activation that a run of `start..start + len` computes.
fn expected(whole: &ActivationCache, point: HookPoint, start: i64, len: i64) -> Option<Tensor> {
    let axis = point.axes().position? as i64; // none: experts' rows, which are of the whole batch
    let part = whole[point].narrow(axis, start, len);
    let name = point.to_string();
    let keys = name.ends_with("hook_pattern") || name.ends_with("hook_attn_scores");
    Some(if keys { part.narrow(-1, 0, start + len) } else { part })
}

/// Runs `tokens` in parts, and compares with the whole run. Gives whether no rotation forbade it.
fn in_parts(what: &str, model: &HookedTransformer, tokens: &Tokens, parts: &[i64], tally: &mut Tally) -> bool {
    let names = model.hook_names();
    let whole = model.run(tokens, RunOptions::new().cache(names.clone())).unwrap();
    let logits = whole.logits.unwrap();
    let len = tokens.ids.size()[1] as usize;
    let mut store = KeyValueStore::new(model, tokens.ids.size()[0] as usize, len).unwrap();
    let mut found = Tally::default();
    let mut start = 0;
    for part in parts {
        let new = columns(tokens, start, *part);
        let what = format!("{what}, {start} + {part}");
        // Every second part without scores and patterns, which attention then does not form.
        let run = RunOptions::new().past(&mut store);
        let run = if start % 2 == 0 { run.cache(names.clone()) } else { run.cache("resid_post") };
        let outcome = match model.run(&new, run) {
            Err(Error::KeyValueStore(KeyValueStoreError::Rotation { .. })) => return false,
            outcome => outcome.unwrap(),
        };
        found.compare(&what, &outcome.logits.unwrap(), &logits.narrow(1, start, *part), TOLERANCE);
        for (point, tensor) in &outcome.cache {
            if let Some(expected) = expected(&whole.cache, *point, start, *part) {
                found.compare(&format!("{what}, {point}"), tensor, &expected, TOLERANCE);
            }
        }
        start += part;
        assert_eq!(store.len() as i64, start);
    }
    tally.add(found);
    true
}

#[test]
fn parts_give_what_the_whole_gives() {
    let mut tally = Tally::default();
    let masks = [None, Some(["0011111", "0000111"]), Some(["1111100", "1110000"]), Some(["1011011", "0110101"])];
    for (what, model) in in_fp64().into_iter().filter(|(_, model)| is_causal(model)) {
        for of_rows in masks {
            let tokens = Tokens { ids: ids(), mask: of_rows.map(mask), types: None };
            for parts in [[3, 4].as_slice(), &[1, 1, 1, 1, 1, 1, 1], &[4, 1, 2], &[7]] {
                let whole = in_parts(&format!("{what}, {of_rows:?}"), &model, &tokens, parts, &mut tally);
                // Rotations that depend on the length are refused where they would not give it.
                assert!(whole || what == "dynamic" || what == "longrope", "{what}: {parts:?}");
                if parts.len() > 1 && what == "dynamic" && of_rows.is_none() {
                    assert!(!whole);
                }
            }
        }
    }
    tally.finish("parts of a run");
}

#[test]
fn rotations_that_depend_on_the_length_are_continued_within_a_class() {
    let mut tally = Tally::default();
    let dynamic = fresh(rotary(RopeScaling::Dynamic { factor: 4.0, original_max_position_embeddings: 4 }));
    let long = fresh(longrope());
    let tokens = Tokens { ids: ids(), mask: None, types: None };
    // Up to the trained length, both; past it, LongRoPE has one class.
    assert!(in_parts("dynamic", &dynamic, &columns(&tokens, 0, 4), &[2, 1, 1], &mut tally));
    assert!(in_parts("longrope", &long, &columns(&tokens, 0, 4), &[2, 1, 1], &mut tally));
    assert!(in_parts("longrope", &long, &tokens, &[5, 1, 1], &mut tally));
    // A row's own length counts: these have three and four tokens, and seven columns.
    let padded = Tokens { ids: ids(), mask: Some(mask(["0101010", "1010101"])), types: None };
    assert!(in_parts("dynamic", &dynamic, &padded, &[3, 2, 2], &mut tally));
    assert!(!in_parts("dynamic", &dynamic, &tokens, &[5, 2], &mut tally));
    tally.finish("classes of lengths");
    // What is forgotten leaves keys that are rotated for more.
    let mut store = KeyValueStore::new(&long, 2, 8).unwrap();
    long.run(&tokens, RunOptions::new().past(&mut store)).unwrap();
    store.truncate(3).unwrap();
    let error = long.run(columns(&tokens, 3, 1), RunOptions::new().past(&mut store)).unwrap_err();
    assert!(
        matches!(error, Error::KeyValueStore(KeyValueStoreError::Rotation { row: 0, held: 7, grown: 4 })),
        "{error}"
    );
    store.truncate(0).unwrap();
    long.run(columns(&tokens, 0, 3), RunOptions::new().past(&mut store)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..properties() })]

    /// Any parts, any padding, of models with each kind of position and mask.
    #[test]
    fn any_parts_give_what_the_whole_gives(
        kind in 0usize..5,
        parts in prop::collection::vec(1i64..5, 1..7),
        real in prop::collection::vec(any::<bool>(), 3 * 16),
        padded: bool,
    ) {
        let window = AttentionConfig { reach: PerLayer::Each(vec![Reach::Window(3), Reach::Global]), ..Default::default() };
        let config = match kind {
            0 => small(),
            1 => Config { attention: window, ..rotary(RopeScaling::None) },
            2 => Config { positions: Positions::alibi(8.0), attention: window, ..small() },
            3 => Config { attention: AttentionConfig { scores_soft_cap: Some(2.0), ..Default::default() }, n_key_value_heads: 1, ..small() },
            _ => Config { positions: Positions::Shortformer, ..small() },
        };
        let model = fresh(config);
        let mut parts = parts;
        while parts.iter().sum::<i64>() > 16 {
            parts.pop();
        }
        let len: i64 = parts.iter().sum();
        let ids: Vec<i64> = (0..3 * len).map(|i| (i * i + 3 * i) % 16).collect();
        let mask = Tensor::from_slice(&real).view([3, 16]).narrow(1, 0, len);
        let tokens = Tokens { ids: Tensor::from_slice(&ids).view([3, len]), mask: padded.then_some(mask), types: None };
        let mut tally = Tally::default();
        let whole = in_parts(&format!("kind {kind}"), &model, &tokens, &parts, &mut tally);
        prop_assert!(whole);
        prop_assert!(tally.failures.is_empty(), "{:?}", tally.failures);
    }
}

/// Padding in one part, and none in another.
#[test]
fn parts_may_have_padding_or_not() {
    let model = fresh(small());
    for (of_rows, parts) in [(["0011111", "1111111"], [3i64, 4]), (["1111101", "1111110"], [4, 3])] {
        let tokens = Tokens { ids: ids(), mask: Some(mask(of_rows)), types: None };
        let whole = model.forward(&tokens).unwrap();
        let mut store = KeyValueStore::new(&model, 2, 7).unwrap();
        let mut start = 0;
        for part in parts {
            let mut new = columns(&tokens, start, part);
            if new.mask.as_ref().unwrap().all().int64_value(&[]) == 1 {
                new.mask = None;
            }
            let logits = model.run(&new, RunOptions::new().past(&mut store)).unwrap().logits.unwrap();
            assert!(max_diff("logits", &logits, &whole.narrow(1, start, part)) < TOLERANCE);
            start += part;
        }
        assert_eq!(store.mask().unwrap(), tokens.mask.as_ref().unwrap());
    }
}

/// Masks and scores made in parts, behind a past.
#[test]
fn long_sequences_in_parts() {
    let n_ctx = 4200;
    let config = Config { n_ctx, ..small() };
    let window =
        AttentionConfig { reach: PerLayer::Each(vec![Reach::Window(700), Reach::Global]), ..Default::default() };
    let capped = AttentionConfig { scores_soft_cap: Some(2.0), ..Default::default() };
    let models = [
        ("window", Config { attention: window, ..config.clone() }),
        ("alibi", Config { positions: Positions::alibi(8.0), ..config.clone() }),
        ("capped", Config { attention: capped, ..config }),
    ];
    for (what, config) in models {
        let model = fresh(config);
        let tokens: Vec<i64> = (0..n_ctx as i64).map(|i| (i * 7 + i / 5) % 16).collect();
        let last = |run: RunOptions, from: usize, to: usize| {
            let run = run.cache(hook::resid_post(1)).return_type(ReturnType::None);
            model.run(&tokens[from..to], run).unwrap().cache[hook::resid_post(1)].shallow_clone()
        };
        let whole = last(RunOptions::new(), 0, n_ctx);
        let mut store = KeyValueStore::new(&model, 1, n_ctx).unwrap();
        let mut start = 0;
        for len in [2500, 1, 1200, 1, 498] {
            let part = last(RunOptions::new().past(&mut store), start, start + len);
            let diff = max_diff(what, &part, &whole.narrow(1, start as i64, len as i64));
            assert!(diff < TOLERANCE, "{what}, {start} + {len}: {diff:.2e}");
            start += len;
        }
    }
}

// --- the store --------------------------------------------------------------------------------------------------------

#[track_caller]
fn store_error<T: std::fmt::Debug>(result: Result<T, Error>) -> KeyValueStoreError {
    match result.unwrap_err() {
        Error::KeyValueStore(error) => error,
        other => panic!("another error: {other}"),
    }
}

#[test]
fn a_store_is_one_model_s_and_has_its_size() {
    let model = raw("gpt2");
    let mut store = KeyValueStore::new(&model, 2, 5).unwrap();
    assert!(store.is_empty() && store.capacity() == 5 && store.batch() == 2 && store.mask().is_none());
    let two = |n: i64| Tokens { ids: ids().narrow(1, 0, n), mask: None, types: None };
    model.run(two(3), RunOptions::new().past(&mut store)).unwrap();
    let other = raw("gpt2");
    let error = store_error(other.run(two(1), RunOptions::new().past(&mut store)));
    assert!(matches!(error, KeyValueStoreError::OtherModel), "{error}");
    let error = store_error(model.run([1, 2], RunOptions::new().past(&mut store)));
    assert!(matches!(error, KeyValueStoreError::Batch { rows: 2, found: 1 }), "{error}");
    let error = store_error(model.run(two(3), RunOptions::new().past(&mut store)));
    assert!(matches!(error, KeyValueStoreError::Full { len: 3, new: 3, capacity: 5 }), "{error}");
    assert_eq!(store.len(), 3);
    model.clone().run(two(2), RunOptions::new().past(&mut store)).unwrap(); // another handle, the same weights
    for (batch, capacity) in [(0, 4), (1, 0), (1, 65)] {
        let error = store_error(KeyValueStore::new(&model, batch, capacity));
        assert!(matches!(error, KeyValueStoreError::Size { n_ctx: 64, .. }), "{error}");
    }
    let error = store_error(KeyValueStore::new(&raw("toy_bidir_classifier"), 1, 4));
    assert!(matches!(error, KeyValueStoreError::Bidirectional), "{error}");
    assert!(KeyValueStore::new(&model, usize::MAX, 64).is_err());
}

#[test]
fn after_an_error_a_store_is_what_it_was() {
    let model = fresh(small());
    let whole = model.forward([5, 14, 3, 10, 9]).unwrap();
    let mut store = KeyValueStore::new(&model, 1, 8).unwrap();
    model.run([5, 14, 3], RunOptions::new().past(&mut store)).unwrap();
    let fails = Hooks::new().observe(hook::z(1), |_, _| Err::<(), tch_lens::HookError>("no".into()));
    assert!(model.run([1, 1, 1], RunOptions::new().past(&mut store).hooks(fails)).is_err());
    assert!(model.run([99, 1, 1], RunOptions::new().past(&mut store)).is_err());
    assert_eq!(store.len(), 3);
    let rest = model.run([10, 9], RunOptions::new().past(&mut store)).unwrap().logits.unwrap();
    assert!(max_diff("logits", &rest, &whole.narrow(1, 3, 2)) < TOLERANCE);
    assert!(matches!(model.run([1; 9], RunOptions::new().past(&mut store)), Err(Error::KeyValueStore(_))));
    let mut full = KeyValueStore::new(&model, 1, 16).unwrap();
    model.run([1; 16], RunOptions::new().past(&mut full)).unwrap();
    assert!(matches!(
        model.run([1], RunOptions::new().past(&mut full)),
        Err(Error::PromptTooLong { tokens: 17, n_ctx: 16 })
    ));
}

#[test]
fn endings_share_a_prefix() {
    let model = fresh(rotary(RopeScaling::None));
    let mut store = KeyValueStore::new(&model, 1, 8).unwrap();
    model.run([5, 14, 3], RunOptions::new().past(&mut store)).unwrap();
    let endings = [[10, 9], [4, 12], [8, 3]];
    for ending in endings {
        let logits = model.run(ending, RunOptions::new().past(&mut store)).unwrap().logits.unwrap();
        let whole = model.forward([5, 14, 3, ending[0], ending[1]]).unwrap();
        assert!(max_diff("logits", &logits, &whole.narrow(1, 3, 2)) < TOLERANCE);
        store.truncate(3).unwrap();
    }
    store.truncate(100).unwrap();
    assert_eq!(store.len(), 3);
    // All at once, one row each.
    let mut rows = store.rows(&[0, 0, 0]).unwrap();
    let logits = model.run(endings.map(Vec::from).to_vec(), RunOptions::new().past(&mut rows)).unwrap().logits.unwrap();
    for (row, ending) in endings.into_iter().enumerate() {
        let whole = model.forward([5, 14, 3, ending[0], ending[1]]).unwrap();
        assert!(max_diff("logits", &logits.i(row as i64), &whole.i(0).narrow(0, 3, 2)) < TOLERANCE);
    }
    assert_eq!((rows.len(), store.len()), (5, 3));
    assert!(matches!(store.rows(&[1]), Err(Error::SliceOutOfRange { .. })));
    assert!(matches!(store_error(store.rows(&[])), KeyValueStoreError::Size { .. }));
}

#[test]
fn rows_keep_their_padding() {
    let model = fresh(small());
    let tokens = Tokens { ids: ids(), mask: Some(mask(["0011111", "1011011"])), types: None };
    let mut store = KeyValueStore::new(&model, 2, 10).unwrap();
    model.run(columns(&tokens, 0, 5), RunOptions::new().past(&mut store)).unwrap();
    let mut turned = store.rows(&[1, 0, 1]).unwrap();
    let order = Tensor::from_slice(&[1i64, 0, 1]);
    let rest = columns(&tokens, 5, 2);
    let new = Tokens { ids: rest.ids.index_select(0, &order), mask: None, types: None };
    let found = model.run(&new, RunOptions::new().past(&mut turned)).unwrap().logits.unwrap();
    let theirs = model.run(&rest, RunOptions::new().past(&mut store)).unwrap().logits.unwrap();
    assert!(max_diff("rows", &found, &theirs.index_select(0, &order)) < TOLERANCE);
    store.truncate(5).unwrap();
    let again = model.run(&rest, RunOptions::new().past(&mut store)).unwrap().logits.unwrap();
    assert_eq!(again, theirs);
}

#[test]
fn a_store_holds_what_attention_reads() {
    for family in ["gpt2", "llama_gqa_tied", "gemma3"] {
        let model = raw(family);
        let tokens = Tokens { ids: ids(), mask: None, types: None };
        let mut store = KeyValueStore::new(&model, 2, 9).unwrap();
        let cache = model.run(&tokens, RunOptions::new().past(&mut store).cache(HookFilter::All)).unwrap().cache;
        let k = if model.config().rotary().is_some() { "rot_k" } else { "k" };
        for layer in 0..2 {
            assert_eq!(store.keys(layer).unwrap(), cache[(k, layer)].transpose(1, 2), "{family}");
            assert_eq!(store.values(layer).unwrap(), cache[("v", layer)].transpose(1, 2), "{family}");
        }
        assert!(matches!(store.keys(2), Err(Error::LayerOutOfRange { .. })));
        assert_eq!(store.keys(-1).unwrap(), store.keys(1).unwrap());
    }
}

/// What is held is constant, and a later run's writing spoils no earlier record.
#[test]
fn gradients_end_at_the_store() {
    let model = fresh(small());
    let mut store = KeyValueStore::new(&model, 1, 8).unwrap();
    let embeddings =
        model.run([5, 14, 3, 10], RunOptions::new().cache("hook_embed")).unwrap().cache["hook_embed"].copy();
    let part = |start, len| embeddings.narrow(1, start, len).copy().set_requires_grad(true);
    let [first, second] = [part(0, 2), part(2, 2)];
    let run = |x: &Tensor, store: &mut KeyValueStore| {
        model.run(x, RunOptions::new().past(store).start_from_embeddings()).unwrap().logits.unwrap()
    };
    let early = run(&first, &mut store);
    assert!(!store.keys(0).unwrap().requires_grad() && early.requires_grad());
    let late = run(&second, &mut store);
    let gradients = Tensor::run_backward(&[late.square().sum(Kind::Double)], &[&second], false, false);
    assert!(gradients[0].abs().max().double_value(&[]) > 0.0);
    let gradients = Tensor::run_backward(&[early.square().sum(Kind::Double)], &[&first], false, false);
    // As without a store.
    let alone = first.detach().copy().set_requires_grad(true);
    let logits = model.run(&alone, RunOptions::new().start_from_embeddings()).unwrap().logits.unwrap();
    let expected = Tensor::run_backward(&[logits.square().sum(Kind::Double)], &[&alone], false, false);
    assert!(max_diff("gradient", &gradients[0], &expected[0]) < TOLERANCE);
}

#[test]
fn a_plan_counts_the_keys_of_the_past() {
    let model = fresh(small());
    let mut store = KeyValueStore::new(&model, 2, 9).unwrap();
    model
        .run(columns(&Tokens { ids: ids(), mask: None, types: None }, 0, 4), RunOptions::new().past(&mut store))
        .unwrap();
    let run = RunOptions::new().past(&mut store).cache(["pattern", "resid_post"]).return_type(ReturnType::None);
    let bytes = model.plan(&run).unwrap().estimate(2, 3).unwrap();
    let cache = model.run(columns(&Tokens { ids: ids(), mask: None, types: None }, 4, 3), run).unwrap().cache;
    let held: usize = cache.values().map(|tensor| tensor.numel() * 8).sum();
    assert_eq!(bytes, held as u64);
    assert_eq!(hook::pattern(0).shape(model.config(), 2, Span { past: 4, new: 3 }), [2, 3, 3, 7]);
    assert_eq!(store.len(), 7);
}

/// Positions are columns of the whole sequence.
#[test]
fn positions_behind_a_past_are_those_of_the_sequence() {
    let model = fresh(small());
    let (logits, cache) = model.run_with_cache([5, 14, 3, 10, 9]).unwrap();
    let mut store = KeyValueStore::new(&model, 1, 9).unwrap();
    model.run([5, 14, 3], RunOptions::new().past(&mut store)).unwrap();
    let run = RunOptions::new().past(&mut store).cache("resid_post").pos(4).logits_at(3);
    let outcome = model.run([10, 9], run).unwrap();
    assert!(
        max_diff("resid_post", &outcome.cache[("resid_post", 1)], &cache[("resid_post", 1)].narrow(1, 4, 1))
            < TOLERANCE
    );
    assert!(max_diff("logits", &outcome.logits.unwrap(), &logits.narrow(1, 3, 1)) < TOLERANCE);
    store.truncate(3).unwrap();
    assert!(matches!(
        model.run([10, 9], RunOptions::new().past(&mut store).logits_at(1)),
        Err(Error::NoPosition { .. })
    ));
}

/// Also a run that ends early fills the store.
#[test]
fn a_run_without_output_fills_the_store() {
    let model = fresh(small());
    let whole = model.forward([5, 14, 3, 10, 9]).unwrap();
    for select in [None, Some("blocks.0.hook_resid_pre"), Some("ln_final.hook_scale")] {
        let mut store = KeyValueStore::new(&model, 1, 9).unwrap();
        let run = RunOptions::new().past(&mut store).return_type(ReturnType::None);
        let outcome = model.run([5, 14, 3], if let Some(select) = select { run.cache(select) } else { run }).unwrap();
        assert!(
            outcome.logits.is_none() && outcome.resid.is_none() && outcome.cache.len() == usize::from(select.is_some())
        );
        let rest = model.run([10, 9], RunOptions::new().past(&mut store)).unwrap().logits.unwrap();
        assert!(max_diff("logits", &rest, &whole.narrow(1, 3, 2)) < TOLERANCE);
    }
}

// --- where a run starts -----------------------------------------------------------------------------------------------

/// Every activation that the later run has is the whole run's.
fn same_as_whole(what: &str, late: &ActivationCache, whole: &ActivationCache, tally: &mut Tally) {
    for (point, tensor) in late {
        tally.compare(&format!("{what}, {point}"), tensor, &whole[*point], TOLERANCE);
    }
}

#[test]
fn a_run_may_start_at_any_layer_or_from_embeddings() {
    let mut tally = Tally::default();
    for (what, model) in in_fp64() {
        let n_layers = model.config().n_layers;
        for of_rows in [None, Some(["0011111", "1011011"])] {
            let tokens = Tokens { ids: ids(), mask: of_rows.map(mask), types: None };
            let whole = model.run(&tokens, RunOptions::new().cache(model.hook_names())).unwrap();
            let (logits, whole) = (whole.logits.unwrap(), whole.cache);
            let of_tokens = |run: RunOptions<'static>| if of_rows.is_some() { run.tokens(&tokens) } else { run };
            for layer in 0..=n_layers {
                let what = format!("{what}, {of_rows:?}, from layer {layer}");
                let resid = match layer == n_layers {
                    true => &whole[hook::resid_post(layer - 1)],
                    false => &whole[hook::resid_pre(layer)],
                };
                let late = of_tokens(RunOptions::new().start_at_layer(layer)).cache(HookFilter::All);
                let late = model.run(resid, late).unwrap();
                tally.compare(&what, &late.logits.unwrap(), &logits, TOLERANCE);
                let shortformer = what.contains("shortformer");
                let reached = |point: HookPoint| match point.layer() {
                    Some(l) => l >= layer,
                    None => {
                        let name = point.to_string();
                        name.starts_with("ln_final")
                            || name.starts_with("unembed")
                            || (shortformer && name == "hook_pos_embed")
                    }
                };
                let defaults = model.run(&tokens, RunOptions::new().cache(HookFilter::All)).unwrap().cache;
                let expected: Vec<HookPoint> = defaults.keys().filter(|point| reached(*point)).collect();
                assert_eq!(late.cache.keys().collect::<Vec<_>>(), expected, "{what}");
                same_as_whole(&what, &late.cache, &whole, &mut tally);
            }
            let late = of_tokens(RunOptions::new().start_from_embeddings()).cache(HookFilter::All);
            let late = model.run(&whole["hook_embed"], late).unwrap();
            tally.compare(&format!("{what}, from embeddings"), &late.logits.unwrap(), &logits, TOLERANCE);
            assert!(late.cache.contains("hook_embed") && !late.cache.contains("hook_tokens"));
            same_as_whole(&format!("{what}, from embeddings"), &late.cache, &whole, &mut tally);
        }
    }
    tally.finish("runs that start late");
}

#[test]
fn a_section_of_the_model() {
    let model = fresh(small());
    let whole = model.run([5, 14, 3], RunOptions::new().cache("resid_pre")).unwrap().cache;
    let run = RunOptions::new().start_at_layer(0).stop_at_layer(-1);
    let stream = model.run(&whole[hook::resid_pre(0)], run).unwrap().resid.unwrap();
    assert!(max_diff("resid", &stream, &whole[hook::resid_pre(1)]) < TOLERANCE);
    // No block at all.
    let run = RunOptions::new().start_at_layer(1).stop_at_layer(1);
    assert_eq!(&model.run(&stream, run).unwrap().resid.unwrap(), &stream);
    // A stream without a batch dimension is a batch of one.
    let one = model.run(stream.i(0), RunOptions::new().start_at_layer(1)).unwrap().logits.unwrap();
    assert!(max_diff("logits", &one, &model.forward([5, 14, 3]).unwrap()) < TOLERANCE);
}

#[test]
fn a_loss_of_a_stream_needs_its_tokens() {
    let model = fresh(small());
    let tokens = Tokens { ids: ids(), mask: Some(mask(["0011111", "1011011"])), types: None };
    let resid = model.run(&tokens, RunOptions::new().cache(hook::resid_pre(1))).unwrap().cache[hook::resid_pre(1)]
        .shallow_clone();
    let run = || RunOptions::new().start_at_layer(1).return_type(ReturnType::Loss);
    let loss = model.run(&resid, run().tokens(&tokens)).unwrap().loss.unwrap().double_value(&[]);
    assert!((loss - model.loss(&tokens).unwrap()).abs() < TOLERANCE);
    let error = model.run(&resid, run()).unwrap_err();
    assert!(error.to_string().contains("a loss compares with tokens"), "{error}");
}

#[test]
fn what_is_not_reached_is_an_error() {
    let model = fresh(small());
    let resid = Tensor::zeros([1, 3, 24], (Kind::Double, Device::Cpu));
    let run = |select: &'static str, start: RunOptions<'static>| {
        model.run(&resid, start.cache(select)).unwrap_err().to_string()
    };
    let late = || RunOptions::new().start_at_layer(1);
    assert_eq!(
        run("blocks.0.hook_resid_post", late()),
        "`blocks.0.hook_resid_post` is never reached: the run starts at layer 1"
    );
    assert_eq!(run("hook_embed", late()), "`hook_embed` is never reached: the run starts at layer 1");
    let embedded = || RunOptions::new().start_from_embeddings();
    assert_eq!(run("hook_tokens", embedded()), "`hook_tokens` is never reached: the run starts from embeddings");
    let hooks = Hooks::new().observe(hook::z(0), |_, _| ());
    let error = model.run(&resid, late().hooks(hooks)).unwrap_err();
    assert!(matches!(error, Error::NeverReached { .. }), "{error}");
    // A site's short hand means the blocks that run.
    assert_eq!(model.run(&resid, late().cache("z")).unwrap().cache.len(), 1);
}

#[test]
fn a_start_that_does_not_fit_is_an_error() {
    let model = fresh(small());
    let says = |input: tch_lens::Input, run: RunOptions, sentence: &str| {
        let error = model.run(input, run).unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}");
    };
    let late = || RunOptions::new().start_at_layer(1);
    let resid = |size: &[i64], kind| Tensor::zeros(size, (kind, Device::Cpu));
    let stream = || resid(&[1, 3, 24], Kind::Double);
    says([1, 2].into(), late(), "its input is a tensor of the stream there, [batch, pos, 24]");
    says("the".into(), RunOptions::new().start_from_embeddings(), "its input is a tensor");
    says(resid(&[1, 3, 23], Kind::Double).into(), late(), "has shape [1, 3, 23], expected [batch, pos, 24]");
    says(resid(&[24], Kind::Double).into(), late(), "has shape [24]");
    says(resid(&[1, 3, 24], Kind::Float).into(), late(), "is Float, and the model Double");
    says(resid(&[1, 0, 24], Kind::Double).into(), late(), "no tokens");
    says(resid(&[1, 17, 24], Kind::Double).into(), late(), "17 tokens");
    says(Tensor::new().into(), late(), "has shape []");
    says(stream().into(), RunOptions::new(), "whole numbers");
    says(stream().into(), RunOptions::new().start_at_layer(3), "layer 3 is out of range");
    says(
        stream().into(),
        RunOptions::new().start_at_layer(2).stop_at_layer(1),
        "starts at layer 2 and would stop before layer 1",
    );
    let tokens = Tokens { ids: ids(), mask: None, types: None };
    says(stream().into(), late().tokens(&tokens), "as the stream");
    says([1, 2].into(), RunOptions::new().tokens(&tokens), "the run starts from its input's tokens");
}

/// A store is filled by runs through the same layers, and read by runs through no others.
#[test]
fn a_store_knows_its_layers() {
    let model = fresh(small());
    let tokens = [5i64, 14, 3, 10, 9];
    let (logits, cache) = model.run_with_cache(tokens).unwrap();
    let resid = &cache[hook::resid_pre(1)];
    let mut store = KeyValueStore::new(&model, 1, 8).unwrap();
    model.run(resid.narrow(1, 0, 3), RunOptions::new().past(&mut store).start_at_layer(1)).unwrap();
    assert!(store.values(1).is_ok() && matches!(store_error(store.keys(0)), KeyValueStoreError::Layers { .. }));
    let error = store_error(model.run(&tokens[3..], RunOptions::new().past(&mut store)));
    assert!(
        matches!(error, KeyValueStoreError::Layers { ref held, ref asked } if (held.start, asked.start) == (1, 0)),
        "{error}"
    );
    let late =
        model.run(resid.narrow(1, 3, 2), RunOptions::new().past(&mut store).start_at_layer(1)).unwrap().logits.unwrap();
    assert!(max_diff("logits", &late, &logits.narrow(1, 3, 2)) < TOLERANCE);
    // A whole prefix, and a late start behind it.
    let mut store = KeyValueStore::new(&model, 1, 8).unwrap();
    model.run(&tokens[..3], RunOptions::new().past(&mut store)).unwrap();
    let late =
        model.run(resid.narrow(1, 3, 2), RunOptions::new().past(&mut store).start_at_layer(1)).unwrap().logits.unwrap();
    assert!(max_diff("logits", &late, &logits.narrow(1, 3, 2)) < TOLERANCE);
    assert!(matches!(
        store_error(model.run([1], RunOptions::new().past(&mut store))),
        KeyValueStoreError::Layers { .. }
    ));
    store.truncate(0).unwrap();
    model.run([1], RunOptions::new().past(&mut store)).unwrap();
}
