//! A model that continues prompts: with and without kept keys, alone and in batches, with hooks, caches, drafts and shared prefixes it gives
//! what whole runs give.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tch::{Device, IndexOp, Kind, Tensor};
use tch_lens::config::{Activation, AttentionConfig, AttentionDir, MlpConfig, PerLayer, Reach, RopeScaling};
use tch_lens::{
    hook, Config, Continuation, Error, GenerateOptions, Generated, HookedTransformer, Hooks, KeyValueStore,
    KeyValueStoreError, PaddingSide, Patch, Positions, RunOptions, SamplingOptions, StepInfo, StepOptions, StopReason,
    Tokens,
};

use crate::common::models::{fresh, in_fp64, rotary, small};
use crate::common::{raw, Tally};

/// In fp64 nothing but a mistake is larger.
const TOLERANCE: f64 = 1e-9;

fn greedy(count: usize) -> GenerateOptions {
    GenerateOptions::new().do_sample(false).stop_at_eos(false).max_new_tokens(count)
}

fn ids(rows: &[Continuation]) -> Vec<Vec<i64>> {
    rows.iter().map(|row| row.ids().to_vec()).collect()
}

/// What each prompt gives alone.
fn alone(model: &HookedTransformer, prompts: &[Vec<i64>], options: &GenerateOptions) -> Vec<Vec<i64>> {
    let of_prompt = |prompt: &Vec<i64>| ids(&model.generate(prompt, options).unwrap().rows).remove(0);
    prompts.iter().map(of_prompt).collect()
}

/// Three prompts of different lengths, of vocabularies as small as 16.
fn prompts() -> Vec<Vec<i64>> {
    vec![vec![5, 14, 3, 10], vec![7], vec![4, 12, 3]]
}

#[test]
fn recorded_continuations_with_and_without_kept_keys_alone_and_in_batches() {
    let Some(models) = std::env::var_os("TCH_LENS_MODELS") else {
        eprintln!("skipped: recorded continuations (TCH_LENS_MODELS names no folder of real models)");
        return;
    };
    let text = include_str!("../fixtures/generation/continuations.json");
    let recorded: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(text).unwrap();
    for (name, cases) in recorded {
        let model = HookedTransformer::from_pretrained_no_processing(Path::new(&models).join(name)).unwrap();
        let mut batches: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
        for (case, recorded) in &cases {
            batches.entry(case.rsplit_once('.').unwrap().0).or_default().push(recorded);
        }
        for (case, batch) in batches {
            let (mut sampling, mut options) = (SamplingOptions::greedy(), GenerateOptions::new().max_new_tokens(64));
            for (key, value) in batch[0]["args"].as_object().unwrap() {
                match key.as_str() {
                    "no_repeat_ngram_size" => {
                        sampling = sampling.no_repeat_ngram_size(value.as_u64().unwrap() as usize)
                    }
                    "repetition_penalty" => sampling = sampling.repetition_penalty(value.as_f64().unwrap()),
                    "min_new_tokens" => options = options.min_new_tokens(value.as_u64().unwrap() as usize),
                    "stop_at_eos" => options = options.stop_at_eos(value.as_bool().unwrap()),
                    "stop_strings" => {
                        options = value
                            .as_array()
                            .unwrap()
                            .iter()
                            .fold(options, |options, text| options.stop_string(text.as_str().unwrap()))
                    }
                    other => panic!("{other}"),
                }
            }
            let options = options.sampling(sampling);
            let list = |key: &str| -> Vec<Vec<i64>> {
                batch.iter().map(|case| serde_json::from_value(case[key].clone()).unwrap()).collect()
            };
            let (prompts, new) = (list("prompt"), list("new"));
            let check = |what: &str, generated: Generated| {
                let found: Vec<&[i64]> = generated.rows.iter().map(Continuation::new_ids).collect();
                assert_eq!(found, new, "{case}, {what}");
            };
            check("left", model.generate(prompts.clone(), &options.clone().padding_side(PaddingSide::Left)).unwrap());
            check("right", model.generate(prompts.clone(), &options.clone().padding_side(PaddingSide::Right)).unwrap());
            check(
                "looked up",
                model.generate_with(prompts.clone(), &options, StepOptions::new().prompt_lookup(2, 4)).unwrap(),
            );
            for (prompt, new) in prompts.iter().zip(&new) {
                let row = model.generate(prompt, &options).unwrap().rows.remove(0);
                assert_eq!(row.new_ids(), new, "{case}");
                match row.stop_reason().unwrap() {
                    StopReason::MaxNewTokens => assert_eq!(new.len(), 64, "{case}"),
                    StopReason::StopToken(id) => assert_eq!(new.last(), Some(id), "{case}"),
                    StopReason::StopString(text) => {
                        let whole = model.tokenizer().unwrap().decode(row.ids()).unwrap();
                        assert!(whole.contains(&format!("{}{text}", row.text())), "{case}: {whole}");
                    }
                    other => panic!("{case}: {other}"),
                }
            }
            check("computed again", model.generate(prompts, &options.use_past_kv_cache(false)).unwrap());
        }
    }
}

/// Every family: padded on either side and alone, kept and computed again, and every activation that one run over the whole gives.
#[test]
fn every_family_generates_what_whole_runs_give() {
    let mut tally = Tally::default();
    for (what, model) in in_fp64() {
        if model.config().attention_dir() == AttentionDir::Bidirectional
            || model.config().d_vocab_out != model.config().d_vocab
        {
            continue;
        }
        let options = greedy(5);
        let expected = alone(&model, &prompts(), &options);
        let again = model.generate(prompts(), &options.clone().use_past_kv_cache(false)).unwrap();
        assert_eq!(ids(&again.rows), expected, "{what}, computed again");
        for side in [PaddingSide::Left, PaddingSide::Right] {
            let what = format!("{what}, {side:?}");
            let steps = StepOptions::new().cache(model.hook_names()).logits(true);
            let generated = model.generate_with(prompts(), &options.clone().padding_side(side), steps).unwrap();
            assert_eq!(ids(&generated.rows), expected, "{what}");
            let (cache, logits) = (generated.cache.unwrap(), generated.logits.unwrap());
            let whole = model.run(&generated.tokens, RunOptions::new().cache(model.hook_names())).unwrap();
            assert_eq!(cache.keys().collect::<Vec<_>>(), whole.cache.keys().collect::<Vec<_>>(), "{what}");
            for (point, tensor) in &cache {
                tally.compare(&format!("{what}, {point}"), tensor, &whole.cache[*point], TOLERANCE);
            }
            if ["dynamic", "longrope"].contains(&what.split(',').next().unwrap()) {
                continue; // the logits of a step are those of its length
            }
            let whole = whole.logits.unwrap();
            for (row, logits) in logits.iter().enumerate() {
                let width = 4;
                let last = if side == PaddingSide::Left { width } else { prompts()[row].len() as i64 } - 1;
                let columns = Tensor::from_slice(&[last, width, width + 1, width + 2, width + 3]);
                let expected = whole.i(row as i64).index_select(0, &columns);
                tally.compare(&format!("{what}, logits"), logits, &expected, TOLERANCE);
            }
        }
    }
    tally.finish("generation");
}

/// In fp32: every family, and a model whose matrices are large enough that products of few rows are computed by other code than those of
/// many. Differences count in parts of an activation's largest entry, or of 1.
#[test]
fn in_single_precision_steps_give_what_whole_runs_give() {
    let mut tally = Tally::default();
    let large = Config { mlp: Some(MlpConfig::plain(800, Activation::GeluNew)), ..Config::new(2, 400, 4, 700, 32) };
    let large = ("large".to_string(), HookedTransformer::init(large, 0).unwrap());
    let families = crate::common::families().into_iter().map(|family| (family.clone(), raw(&family)));
    for (what, model) in families.chain([large]) {
        if model.config().attention_dir() == AttentionDir::Bidirectional
            || model.config().d_vocab_out != model.config().d_vocab
        {
            continue;
        }
        let names = ["resid_post", "unembed.hook_out"];
        let generated = model.generate_with(prompts(), &greedy(6), StepOptions::new().cache(names)).unwrap();
        let cache = generated.cache.unwrap();
        let four = |x: Tensor| x.repeat([4, 1]);
        let many = Tokens { ids: four(generated.tokens.ids), mask: generated.tokens.mask.map(four), types: None };
        let whole = model.run(&many, RunOptions::new().cache(names)).unwrap().cache;
        for (point, tensor) in &cache {
            let expected = whole[*point].narrow(0, 0, 3);
            let scale = expected.abs().max().double_value(&[]).max(1.0);
            tally.compare(&format!("{what}, {point}"), &(tensor / scale), &(expected / scale), 1e-5);
        }
    }
    tally.finish("generation in fp32");
}

#[test]
fn a_row_ends_where_it_ends_alone() {
    let model = fresh(small());
    // A context of 16: the rows end in different columns, the short ones in columns beyond it.
    let rows = vec![(0..14).collect::<Vec<i64>>(), vec![3], (0..16).collect()];
    for side in [PaddingSide::Left, PaddingSide::Right] {
        let steps = StepOptions::new().cache("resid_post");
        let generated = model.generate_with(rows.clone(), &greedy(99).padding_side(side), steps).unwrap();
        assert!(generated.rows.iter().all(|row| row.stop_reason() == Some(&StopReason::ContextFull)));
        assert_eq!(generated.rows.iter().map(|row| row.new_ids().len()).collect::<Vec<_>>(), [2, 15, 0]);
        assert_eq!(ids(&generated.rows), alone(&model, &rows, &greedy(99)));
        let mask = generated.tokens.mask.unwrap();
        let lengths = Vec::<i64>::try_from(mask.sum_dim_intlist(1i64, false, Kind::Int64)).unwrap();
        assert_eq!(lengths, [16, 16, 16]);
        assert_eq!(generated.cache.unwrap()[("resid_post", 0)].size()[1], mask.size()[1]);
    }
    // A token that ends one row.
    let stop = alone(&model, &prompts(), &greedy(8))[0][5];
    let options = greedy(8).stop_token(stop);
    let generated = model.generate(prompts(), &options).unwrap();
    assert_eq!(ids(&generated.rows), alone(&model, &prompts(), &options));
    assert_eq!(generated.rows[0].stop_reason(), Some(&StopReason::StopToken(stop)));
    assert_eq!(
        model.generate(prompts(), &greedy(8).eos_token_id([stop]).stop_at_eos(true)).unwrap().rows[0].new_ids().len(),
        2
    );
}

#[test]
fn samples_repeat_and_do_not_depend_on_the_batch() {
    let model = fresh(small());
    let options = |samples| GenerateOptions::new().stop_at_eos(false).max_new_tokens(6).seed(7).samples(samples);
    let many = model.generate(prompts(), &options(3)).unwrap();
    assert_eq!(ids(&many.rows), ids(&model.generate(prompts(), &options(3)).unwrap().rows));
    assert_ne!(many.rows[0].ids(), many.rows[1].ids());
    let one = model.generate(prompts(), &options(1)).unwrap();
    for row in 0..3 {
        assert_eq!(one.rows[row].ids(), many.rows[3 * row].ids());
    }
    assert_eq!(model.generate(prompts().remove(0), &options(2)).unwrap().rows[1].ids(), many.rows[1].ids());
    // With hooks and caches, prompts are run once for each sample.
    let watched = model.generate_with(prompts(), &options(3), StepOptions::new().cache("resid_post")).unwrap();
    assert_eq!(ids(&watched.rows), ids(&many.rows));
    assert_eq!(watched.cache.unwrap()[("resid_post", 0)].size()[0], 9);
    assert_eq!(ids(&model.generate(prompts(), &options(3).use_past_kv_cache(false)).unwrap().rows), ids(&many.rows));
}

#[test]
fn steps_are_the_whole_in_pieces() {
    let model = HookedTransformer::toy().unwrap();
    let options = greedy(6);
    let texts = ["When Mary and John went to the shop, John gave a bag to", "The capital of France is"];
    let whole = model.generate_with(texts, &options, StepOptions::new().logits(true).entropies(true)).unwrap();
    let (logits, entropies) = (whole.logits.as_ref().unwrap(), whole.entropies.as_ref().unwrap());
    let mut generation = model.generation(texts, &options, StepOptions::new().logits(true).entropies(true)).unwrap();
    let mut text = [String::new(), String::new()];
    for (nth, step) in (&mut generation).enumerate() {
        let step = step.unwrap();
        assert_eq!(step.step, nth);
        for (place, row) in step.rows.iter().enumerate() {
            assert_eq!(row.id, whole.rows[row.row].new_ids()[nth]);
            text[row.row] += &row.text;
            assert_eq!(step.logits.as_ref().unwrap().get(place as i64), logits[row.row].get(nth as i64));
            let probs = logits[row.row].get(nth as i64).softmax(-1, Kind::Double);
            let expected = -(&probs * probs.log()).sum(Kind::Double).double_value(&[]);
            assert!((row.entropy.unwrap() - expected).abs() < 1e-5);
            assert_eq!(row.entropy.unwrap(), entropies[row.row][nth]);
        }
    }
    assert_eq!(text, [whole.rows[0].text(), whole.rows[1].text()]);
    assert_eq!(text[0].split('.').next(), Some(" Mary"));
    assert!(generation.next().is_none());
    // A generation may be ended at any step.
    let mut generation = model.generation(texts, &options, StepOptions::new().cache("resid_post")).unwrap();
    generation.next().unwrap().unwrap();
    let stopped = generation.stop().unwrap();
    assert_eq!(stopped.rows[0].new_ids(), &whole.rows[0].new_ids()[..1]);
    assert_eq!(stopped.cache.as_ref().unwrap()[("resid_post", 0)].size()[1], stopped.tokens.ids.size()[1]);
    assert_eq!(stopped.text(1).unwrap(), "<|endoftext|>The capital of France is Paris");
}

// --- hooks ------------------------------------------------------------------------------------------------------------

/// Patches act at positions of the whole, however these are computed.
#[test]
fn patches_act_at_the_positions_of_the_whole() {
    let model = fresh(rotary(RopeScaling::None));
    let direction = Tensor::arange(24, (Kind::Double, Device::Cpu)).cos() * 3.0;
    let three = Tensor::arange(3 * 24, (Kind::Double, Device::Cpu)).view([3, 24]).sin() * 3.0;
    // Four columns of prompts. On the left, the row of one token has padding at 0, 1 and 2.
    let absolute = |end: i64| {
        Hooks::new()
            .patch(hook::resid_pre(1), Patch::add(&direction).pos(3..end))
            .patch(hook::resid_post(0), Patch::set(&three).pos(3..6))
            .patch(hook::z(1), Patch::zero().head(1).pos(5).rows([0, 2]))
            .patch(hook::pattern(0), Patch::scale(0.5).key(3).head(0))
            .patch(hook::mlp_out(0), Patch::add(0.7).pos([3, 7]))
    };
    let relative = Hooks::new()
        .patch(hook::resid_pre(1), Patch::add(&direction).pos(-1..))
        .patch(hook::resid_post(0), Patch::set(&three).pos(3..6))
        .patch(hook::z(1), Patch::zero().head(1).pos(5).rows([0, 2]))
        .patch(hook::pattern(0), Patch::scale(0.5).key(-1).head(0))
        .patch(hook::mlp_out(0), Patch::add(0.7).pos([-1, 7]));
    let options = greedy(6).padding_side(PaddingSide::Left);
    let steps = || StepOptions::new().cache(model.hook_names());
    let kept = model.generate_with(prompts(), &options, steps().hooks(relative)).unwrap();
    let plain = model.generate(prompts(), &options).unwrap();
    assert_ne!(ids(&kept.rows), ids(&plain.rows));
    let again =
        model.generate_with(prompts(), &options.clone().use_past_kv_cache(false), steps().hooks(absolute(99))).unwrap();
    assert_eq!(ids(&again.rows), ids(&kept.rows));
    let looked_up = model.generate_with(prompts(), &options, steps().hooks(absolute(99)).prompt_lookup(1, 3)).unwrap();
    assert_eq!(ids(&looked_up.rows), ids(&kept.rows));
    let run = RunOptions::new().hooks(absolute(10)).cache(model.hook_names());
    let whole = model.run(&kept.tokens, run).unwrap().cache;
    let mut tally = Tally::default();
    for (what, cache) in [("kept", kept.cache), ("again", again.cache), ("looked up", looked_up.cache)] {
        let cache = cache.unwrap();
        for (point, tensor) in &cache {
            tally.compare(&format!("{what}, {point}"), tensor, &whole[*point], TOLERANCE);
        }
        assert!(cache.is_changed(hook::z(1)) && !cache.is_changed(hook::z(0)));
    }
    tally.finish("patches while generating");
}

#[test]
fn hooks_of_single_steps_and_functions() {
    let model = fresh(small());
    let mut seen = Vec::new();
    let observed = Hooks::new().observe(hook::resid_post(0), |resid, _| seen.push(resid.size()[1]));
    let mut infos = Vec::new();
    let steps = StepOptions::new().hooks(observed).hooks_at(|info: &StepInfo| {
        infos.push((info.step, info.columns.clone()));
        match info.step {
            2 => Hooks::new().edit(hook::resid_pre(1), |resid, _| {
                let _ = resid.g_add_scalar_(5.0);
            }),
            _ => Hooks::new(),
        }
    });
    let generated = model.generate_with([5, 14, 3], &greedy(4), steps).unwrap();
    assert_eq!(seen, [3, 1, 1, 1]);
    assert_eq!(infos, [(0, 0..3), (1, 3..4), (2, 4..5), (3, 5..6)]);
    // The third step computes column 4.
    let patched = Hooks::new().patch(hook::resid_pre(1), Patch::add(5.0).pos(4));
    let expected = model.generate_with([5, 14, 3], &greedy(4), StepOptions::new().hooks(patched)).unwrap();
    assert_eq!(ids(&generated.rows), ids(&expected.rows));
    // A hook that fails ends the generation.
    let fails = Hooks::new().observe(hook::z(1), |_, _| Err::<(), tch_lens::HookError>("no".into()));
    let mut generation = model.generation([5], &greedy(4), StepOptions::new().hooks(fails)).unwrap();
    assert!(matches!(generation.next(), Some(Err(Error::Hook { .. }))));
    assert!(generation.next().is_none());
    // Each row's last token of the prompt.
    let last = Hooks::new().patch(hook::resid_post(0), Patch::zero().pos(Positions::LastToken));
    let right = model.generate_with(prompts(), &greedy(4), StepOptions::new().hooks(last)).unwrap();
    for (row, prompt) in prompts().into_iter().enumerate() {
        let one = Hooks::new().patch(hook::resid_post(0), Patch::zero().pos(-1));
        let alone = model.generate_with(prompt, &greedy(4), StepOptions::new().hooks(one)).unwrap();
        assert_eq!(alone.rows[0].ids(), right.rows[row].ids());
    }
}

// --- drafts -----------------------------------------------------------------------------------------------------------

/// The same tokens, in fewer runs where the draft is good.
#[test]
fn drafts_change_no_token() {
    let model = HookedTransformer::toy().unwrap();
    let other = HookedTransformer::init(model.config().clone(), 1).unwrap();
    let texts = ["When Mary and John went to the shop, John gave a bag to", "The capital of France is"];
    let sampled = GenerateOptions::new().stop_at_eos(false).max_new_tokens(24).seed(3);
    let penalised = sampled.clone().sampling(SamplingOptions::new().top_k(20).repetition_penalty(1.2).seed(5));
    for (what, options) in [("greedy", greedy(24)), ("sampled", sampled), ("penalised", penalised)] {
        for texts in [&texts[..1], &texts[..]] {
            let plain = model.generate(texts, &options).unwrap();
            let with = |steps: StepOptions<'static>| {
                let found = model.generate_with(texts, &options, steps.logits(true).cache("resid_post")).unwrap();
                assert_eq!(ids(&found.rows), ids(&plain.rows), "{what}");
                let whole = model.run(&found.tokens, RunOptions::new().cache("resid_post")).unwrap().cache;
                let mut tally = Tally::default();
                let cache = found.cache.unwrap();
                assert_eq!(cache.len(), 4);
                for (point, tensor) in &cache {
                    tally.compare(&point.to_string(), tensor, &whole[*point], 1e-4);
                }
                tally.finish(what);
                found.runs
            };
            // A model agrees with itself: six tokens a run.
            assert!(with(StepOptions::new().draft(&model, 5)) < 8, "{what}");
            assert!(with(StepOptions::new().draft(&other, 3)) <= 26, "{what}");
            assert!(with(StepOptions::new().prompt_lookup(2, 4)) <= 25, "{what}");
        }
    }
    // Rows that end on their way.
    let options = greedy(24).stop_string(".");
    let plain = model.generate(texts, &options).unwrap();
    let drafted = model.generate_with(texts, &options, StepOptions::new().draft(&model, 5)).unwrap();
    assert_eq!(ids(&drafted.rows), ids(&plain.rows));
    assert_eq!(drafted.rows[0].stop_reason(), plain.rows[0].stop_reason());
    // A row that ends within what was proposed, while the other goes on: the columns are those without a draft.
    let whole = model.generate(texts, &greedy(12)).unwrap();
    let stop = whole.rows[0].new_ids()[1..].iter().find(|id| !whole.rows[1].new_ids().contains(id)).unwrap();
    let options = greedy(12).stop_token(*stop);
    let plain = model.generate(texts, &options).unwrap();
    let drafted = model.generate_with(texts, &options, StepOptions::new().draft(&model, 5)).unwrap();
    assert!(plain.rows[0].new_ids().len() < plain.rows[1].new_ids().len());
    assert_eq!(ids(&drafted.rows), ids(&plain.rows));
    assert_eq!(drafted.tokens.rows().unwrap(), plain.tokens.rows().unwrap());
    assert_eq!(drafted.tokens.mask.unwrap(), plain.tokens.mask.unwrap());
}

// --- the store --------------------------------------------------------------------------------------------------------

fn windowed(window: usize) -> HookedTransformer {
    let reach = PerLayer::Each(vec![Reach::Window(window), Reach::Global]);
    fresh(Config {
        n_ctx: 700,
        attention: AttentionConfig { reach, ..Default::default() },
        ..rotary(RopeScaling::None)
    })
}

/// A layer with a window holds what is within it, and gives what it gives with all.
#[test]
fn a_window_bounds_what_is_held() {
    let model = windowed(5);
    let rows = vec![(0..300).map(|i| (i * 7 + i / 5) % 16).collect::<Vec<i64>>(), vec![3, 1], vec![9; 40]];
    for side in [PaddingSide::Left, PaddingSide::Right] {
        let steps = StepOptions::new().cache(["resid_post", "pattern", "attn_scores"]);
        let generated = model.generate_with(rows.clone(), &greedy(280).padding_side(side), steps).unwrap();
        let run = RunOptions::new().cache(["resid_post", "pattern", "attn_scores"]);
        let whole = model.run(&generated.tokens, run).unwrap().cache;
        let cache = generated.cache.unwrap();
        let mut tally = Tally::default();
        for (point, tensor) in &cache {
            tally.compare(&format!("{side:?}, {point}"), &tensor.exp(), &whole[*point].exp(), TOLERANCE);
        }
        tally.finish("a window");
        let store = generated.past.unwrap();
        let held = store.held(0).unwrap();
        assert!(held.len() < 5 + 128 + 64 + 1 && held.end == 580, "{held:?}");
        assert_eq!(store.keys(0).unwrap().size()[2] as usize, held.len());
        assert_eq!(store.held(1).unwrap(), 0..580);
    }
}

#[test]
fn what_a_window_forgot_is_an_error_where_it_is_needed() {
    let model = windowed(5);
    let tokens: Vec<i64> = (0..400).map(|i| i % 16).collect();
    let mut store = KeyValueStore::new(&model, 1, 500).unwrap();
    let mut all = KeyValueStore::with_all_positions(&model, 1, 500).unwrap();
    for part in [&tokens[..300], &tokens[300..]] {
        for store in [&mut store, &mut all] {
            model.run(part, RunOptions::new().past(store)).unwrap();
        }
    }
    let kept = store.clone();
    let store_error = |result: Result<(), Error>| match result.unwrap_err() {
        Error::KeyValueStore(error) => error,
        other => panic!("{other}"),
    };
    let error = store_error(store.truncate(100));
    assert!(matches!(error, KeyValueStoreError::Forgotten { layer: 0, len: 100, .. }), "{error}");
    assert_eq!(store.len(), 400);
    store.truncate(340).unwrap();
    all.truncate(100).unwrap();
    let next = |store: &mut KeyValueStore| model.run([7, 8], RunOptions::new().past(store)).unwrap().logits.unwrap();
    let whole = |len: usize| model.forward([&tokens[..len], &[7, 8]].concat()).unwrap().narrow(1, len as i64, 2);
    for (store, len) in [(&mut store, 340), (&mut all, 100), (&mut kept.clone(), 400)] {
        assert!(crate::common::max_diff("logits", &next(store), &whole(len)) < TOLERANCE);
    }
    // Right after it has moved what it holds, it can still go back by 64 positions.
    let mut moved = KeyValueStore::new(&model, 1, 500).unwrap();
    for part in [&tokens[..190], &tokens[190..200]] {
        model.run(part, RunOptions::new().past(&mut moved)).unwrap();
    }
    assert!(moved.held(0).unwrap().start > 100);
    moved.truncate(140).unwrap();
    assert!(crate::common::max_diff("logits", &next(&mut moved), &whole(140)) < TOLERANCE);
    // It goes back to where a query's window begins with the first position held, and no further.
    let first = kept.held(0).unwrap().start;
    let last_possible = first + 5 - 1;
    let mut back = kept.clone();
    assert!(matches!(store_error(back.truncate(last_possible - 1)), KeyValueStoreError::Forgotten { .. }));
    back.truncate(last_possible).unwrap();
    assert!(crate::common::max_diff("logits", &next(&mut back), &whole(last_possible)) < TOLERANCE);
    // A hook may look at all keys, and change them only where all are held.
    let change = || Hooks::new().patch(hook::pattern(0), Patch::scale(0.5));
    let error = model.run([7], RunOptions::new().past(&mut kept.clone()).hooks(change())).map(|_| ());
    assert!(matches!(store_error(error), KeyValueStoreError::PatternChanged { layer: 0, .. }));
    model.run([7], RunOptions::new().past(&mut all).hooks(change())).unwrap();
    let steps = StepOptions::new().hooks(Hooks::new().patch(hook::pattern(0), Patch::scale(0.5)));
    assert_eq!(model.generate_with(&tokens, &greedy(3), steps).unwrap().rows[0].new_ids().len(), 3);
}

#[test]
fn a_prefix_is_shared_kept_and_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prefix.safetensors");
    for model in [fresh(small()), windowed(3), raw("gemma3"), raw("llama_gqa_tied")] {
        let prefix = [5i64, 14, 3, 10];
        let mut store = KeyValueStore::new(&model, 1, 10).unwrap();
        model.run(prefix, RunOptions::new().past(&mut store)).unwrap();
        store.save(&path).unwrap();
        let loaded = KeyValueStore::load(&model, &path).unwrap();
        let endings = prompts();
        let whole: Vec<Vec<i64>> = endings.iter().map(|ending| [&prefix[..], ending].concat()).collect();
        let expected = alone(&model, &whole, &greedy(3));
        // Clones do not see each other's continuations.
        for (row, ending) in endings.iter().enumerate() {
            for store in [&store, &loaded] {
                let steps = StepOptions::new().past(store.clone());
                let generated = model.generate_with(ending, &greedy(3), steps).unwrap();
                assert_eq!(generated.rows[0].ids(), expected[row]);
            }
        }
        // All at once, with the activations behind the prefix.
        let steps = StepOptions::new().past(loaded).cache("resid_post");
        let generated = model.generate_with(endings, &greedy(3), steps).unwrap();
        assert_eq!(ids(&generated.rows), expected);
        let cache = generated.cache.unwrap();
        assert_eq!(cache.positions().of_row(0)[0], 4);
        let run = model.run(&generated.tokens, RunOptions::new().cache("resid_post")).unwrap().cache;
        let part = run[("resid_post", 1)].narrow(1, 4, cache[("resid_post", 1)].size()[1]);
        assert!(crate::common::max_diff("resid_post", &cache[("resid_post", 1)], &part) < 1e-5);
        assert_eq!((store.len(), store.tokens().unwrap().rows().unwrap()), (4, vec![prefix.to_vec()]));
        // Several rows, with padding.
        let mut rows = KeyValueStore::new(&model, 3, 8).unwrap();
        model.run(prompts(), RunOptions::new().past(&mut rows)).unwrap();
        rows.save(&path).unwrap();
        let mut again = KeyValueStore::load(&model, &path).unwrap();
        assert_eq!(again.mask().unwrap(), rows.mask().unwrap());
        let next = |store: &mut KeyValueStore| {
            model.run(vec![vec![1i64], vec![2], vec![3]], RunOptions::new().past(store)).unwrap().logits.unwrap()
        };
        assert_eq!(next(&mut again), next(&mut rows));
    }
}

/// A text behind a past begins no new text: no BOS token comes between.
#[test]
fn a_text_goes_on_behind_a_past() {
    let model = HookedTransformer::toy().unwrap();
    let mut prefix = KeyValueStore::new(&model, 1, 40).unwrap();
    model.run("When Mary and John went to the shop,", RunOptions::new().past(&mut prefix)).unwrap();
    let steps = StepOptions::new().past(prefix);
    let behind = model.generate_with(" John gave a bag to", &greedy(3), steps).unwrap();
    let whole = model.generate("When Mary and John went to the shop, John gave a bag to", &greedy(3)).unwrap();
    assert_eq!(behind.rows[0].ids(), whole.rows[0].ids());
}

#[test]
fn a_file_that_is_no_store_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.safetensors");
    let (model, other) = (raw("gpt2"), raw("llama_gqa_tied"));
    let said = |model: &HookedTransformer| KeyValueStore::load(model, &path).unwrap_err().to_string();
    assert!(matches!(KeyValueStore::load(&model, &path), Err(Error::Io { .. })));
    std::fs::write(&path, b"no tensors").unwrap();
    assert!(matches!(KeyValueStore::load(&model, &path), Err(Error::Malformed { .. })));
    Tensor::write_safetensors(&[("a", Tensor::from(1.0))], &path).unwrap();
    assert!(said(&model).ends_with("does not hold a key-value store of this model: its metadata does not describe one"));
    let mut store = KeyValueStore::new(&model, 1, 8).unwrap();
    model.run([1, 2, 3], RunOptions::new().past(&mut store)).unwrap();
    store.save(&path).unwrap();
    assert!(said(&other).ends_with("it was made with other weights"));
    let bytes = std::fs::read(&path).unwrap();
    let text = String::from_utf8_lossy(&bytes[8..]).into_owned();
    let header = &text[..text.find("}}").unwrap_or(text.len())];
    assert!(header.contains("layers.0.keys"));
    // Sizes that do not fit together: every change of one digit is either an error or the same store.
    let expected = model.run([4], RunOptions::new().past(&mut store.clone())).unwrap().logits.unwrap();
    for place in (8..bytes.len().min(2000)).filter(|place| bytes[*place].is_ascii_digit()) {
        let mut changed = bytes.clone();
        changed[place] = if bytes[place] == b'9' { b'0' } else { bytes[place] + 1 };
        std::fs::write(&path, &changed).unwrap();
        if let Ok(mut loaded) = KeyValueStore::load(&model, &path) {
            let _ = model.run([4], RunOptions::new().past(&mut loaded)).map(|run| run.logits.unwrap() == expected);
        }
    }
}

// --- bad input --------------------------------------------------------------------------------------------------------

#[test]
fn what_cannot_be_is_one_clear_sentence() {
    let toy = HookedTransformer::toy().unwrap();
    let model = fresh(small());
    let of_other = model.clone().with_tokenizer(toy.tokenizer().unwrap().clone());
    let (new, eos_off) = (GenerateOptions::new, GenerateOptions::new().stop_at_eos(false));
    let said = |model: &HookedTransformer, input: tch_lens::Input, options: GenerateOptions, steps: StepOptions| {
        let error = model.generate_with(input, &options, steps).unwrap_err().to_string();
        assert!(!error.contains('\n') && !error.ends_with('.'), "{error}");
        error
    };
    let plain = |options: GenerateOptions| said(&model, [1].into(), options, StepOptions::new());
    let with = |steps: StepOptions| said(&model, [1].into(), greedy(3), steps);
    let cases = [
        (said(&toy, "".into(), new().prepend_bos(tch_lens::Bos::No), StepOptions::new()), "the prompt has no tokens"),
        (said(&model, Vec::<i64>::new().into(), greedy(3), StepOptions::new()), "the prompt has no tokens"),
        (said(&model, [99].into(), greedy(3), StepOptions::new()), "token id 99 is out of range"),
        (said(&model, [-1].into(), greedy(3), StepOptions::new()), "token id -1 is out of range"),
        (
            said(&model, [1; 17].into(), greedy(3), StepOptions::new()),
            "the prompt has 17 tokens, and the model's context holds 16",
        ),
        (said(&model, "a text".into(), greedy(3), StepOptions::new()), "this model has no tokenizer"),
        (
            said(&of_other, "The capital of France".into(), greedy(3), StepOptions::new()),
            "and the model's vocabulary has 16 entries: the tokenizer is another model's",
        ),
        (
            said(&model, [1].into(), eos_off.clone().prepend_bos(tch_lens::Bos::Yes), StepOptions::new()),
            "`prepend_bos` cannot be used",
        ),
        (plain(new().temperature(0.0)), "`temperature` is 0"),
        (plain(new().temperature(-1.0)), "`temperature` is -1"),
        (plain(new().top_p(0.0)), "`top_p` is 0"),
        (plain(new().top_p(1.5)), "`top_p` is 1.5"),
        (plain(new().top_k(0)), "`top_k` is 0"),
        (plain(new().sampling(SamplingOptions::new().repetition_penalty(0.0))), "`repetition_penalty` is 0"),
        (plain(new().do_sample(false).top_k(4)), "`top_k` is 4: it must be left out where `greedy` draws nothing"),
        (plain(new().stop_string("x")), "this model has no tokenizer"),
        (plain(new().max_new_tokens(0)), "`max_new_tokens` is 0"),
        (plain(new().eos_token_id([16])), "token id 16 is out of range"),
        (plain(new().eos_token_id([1]).stop_at_eos(false)), "`eos_token_id` is"),
        (with(StepOptions::new().cache("resid_posts")), "there is no hook point `resid_posts`"),
        (with(StepOptions::new().draft(&toy, 4)), "`draft` cannot be used: the draft has 1047 tokens"),
        (with(StepOptions::new().draft(&model, 0)), "`draft tokens` is 0: it must be from 1 to 64"),
        (with(StepOptions::new().prompt_lookup(0, 3)), "`ngram` is 0"),
        (
            with(StepOptions::new().prompt_lookup(2, 3).hooks_at(|_: &StepInfo| Hooks::new())),
            "`hooks_at` cannot be used: with a draft",
        ),
        (
            with(StepOptions::new().prompt_lookup(2, 3).hooks(Hooks::new().observe(hook::z(0), |_, _| ()))),
            "`hooks` cannot be used: a function would see",
        ),
        (with(StepOptions::new().hooks(Hooks::new().patch(hook::z(0), Patch::zero().pos(-2)))), "index -2"),
        (
            said(
                &model,
                [1].into(),
                greedy(3).use_past_kv_cache(false),
                StepOptions::new().hooks_at(|_: &StepInfo| Hooks::new()),
            ),
            "`hooks_at` cannot be used: without `use_past_kv_cache`",
        ),
    ];
    for (found, expected) in cases {
        assert!(found.contains(expected), "{found:?} is not {expected:?}");
    }
    // A stop string that never comes, and a prompt that fills the context, are no errors.
    let generated = toy.generate("The capital of France is", &greedy(5).stop_string("never")).unwrap();
    assert_eq!(generated.rows[0].stop_reason(), Some(&StopReason::MaxNewTokens));
    assert!(matches!(toy.generate_text("Mary", &new().samples(2)), Err(Error::Setting { name: "samples", .. })));
    // Pasts that do not fit.
    let mut store = KeyValueStore::new(&model, 2, 8).unwrap();
    model.run(vec![vec![1i64], vec![2]], RunOptions::new().past(&mut store)).unwrap();
    assert!(with(StepOptions::new().past(store.clone())).contains("the key-value store has 2 row(s), and the input 1"));
    let other = fresh(small());
    let error = other.generate_with(vec![vec![1i64], vec![2]], &greedy(3), StepOptions::new().past(store)).unwrap_err();
    assert!(matches!(error, Error::KeyValueStore(KeyValueStoreError::OtherModel)), "{error}");
    assert!(matches!(
        raw("toy_bidir_classifier").generate([1], &greedy(2)),
        Err(Error::Unsupported { .. } | Error::KeyValueStore(KeyValueStoreError::Bidirectional))
    ));
}
