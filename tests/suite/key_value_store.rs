//! What a key-value store holds and shares: latents in place of keys and values, and one prefix for many continuations. Each test counts
//! bytes, and compares with whole runs.

use tch::{Device, IndexOp, Kind, Tensor};
use tch_lens::config::{AttentionConfig, Indexer, LatentAttention, PerLayer, Positions, Reach, RopeScaling, Rotary};
use tch_lens::{
    Config, GenerateOptions, HookedTransformer, Hooks, Init, KeyValueStore, LoadOptions, Patch, RunOptions,
    StepOptions, Tokens,
};

use crate::common::models::{fresh, rotary, small};
use crate::common::{fixtures, max_diff, Tally};

/// In fp64 nothing but a mistake is larger.
const TOLERANCE: f64 = 1e-9;

fn latent(query_rank: Option<usize>, key_value_rank: usize, d_value: usize, rotated: usize) -> HookedTransformer {
    let latent = LatentAttention { query_rank, key_value_rank, eps: 1e-6 };
    let attention = AttentionConfig { latent: Some(latent), d_value: Some(d_value), ..AttentionConfig::default() };
    let positions = Positions::rotary(Rotary::new(rotated, 100.0));
    let config = Config { positions, attention, n_ctx: 600, ..small() };
    // Fresh weights are not made of latents: all others are those of a plain model.
    let plain =
        Config { attention: AttentionConfig { d_value: Some(d_value), ..Default::default() }, ..config.clone() };
    let init = Init::Gpt2 { std: Some(0.3) };
    let mut weights = HookedTransformer::init_with(plain, init, 0).unwrap().state_dict().unwrap();
    let (d_model, heads, d_head) = (24, 3, 8);
    let matrix = |rows: usize, columns: usize| {
        let numbers = Tensor::arange((rows * columns) as i64, (Kind::Float, Device::Cpu));
        ((numbers * 12.9898).sin() * 0.5).view([rows as i64, columns as i64])
    };
    for layer in 0..2 {
        let own = |name: &str| format!("blocks.{layer}.attn.{name}");
        weights.retain(|(name, _)| !["W_K", "b_K", "W_V", "b_V"].iter().any(|part| *name == own(part)));
        let up = heads * (d_head - rotated + d_value);
        weights.push((own("kv_down.weight"), matrix(key_value_rank + rotated, d_model) + 0.1 * layer as f64));
        weights.push((own("kv_latent_norm.w"), matrix(key_value_rank, 1).squeeze() + 1.0));
        weights.push((own("kv_up.weight"), matrix(up, key_value_rank)));
        if let Some(rank) = query_rank {
            weights.retain(|(name, _)| !["W_Q", "b_Q"].iter().any(|part| *name == own(part)));
            weights.push((own("q_down.weight"), matrix(rank, d_model)));
            weights.push((own("q_latent_norm.w"), matrix(rank, 1).squeeze() + 1.0));
            weights.push((own("q_up.weight"), matrix(heads * d_head, rank)));
        }
    }
    LoadOptions::new().no_processing().kind(Kind::Double).state_dict(config, weights).unwrap()
}

/// Rows of a store know for which lengths their keys are rotated.
#[test]
fn rows_know_their_rotation() {
    let model = fresh(crate::common::models::longrope()); // another rotation past four tokens
    let mut store = KeyValueStore::new(&model, 1, 8).unwrap();
    model.run([5i64, 14, 3], RunOptions::new().past(&mut store)).unwrap();
    let mut rows = store.rows(&[0, 0]).unwrap();
    let grown = model.run(vec![vec![1i64, 2], vec![3, 4]], RunOptions::new().past(&mut rows)).map(drop);
    let error = grown.unwrap_err();
    assert!(
        matches!(
            error,
            tch_lens::Error::KeyValueStore(tch_lens::KeyValueStoreError::Rotation { held: 3, grown: 5, .. })
        ),
        "{error}"
    );
    model.run(vec![vec![1i64], vec![3]], RunOptions::new().past(&mut rows)).unwrap();
}

/// The fixtures with latent attention, and models of other shapes, in fp64.
fn latent_models() -> Vec<(String, HookedTransformer)> {
    let folders = std::fs::read_dir(fixtures().join("transformers")).unwrap();
    let load = LoadOptions::new().no_processing().kind(Kind::Double);
    let open = |path: std::path::PathBuf| {
        let config = std::fs::read_to_string(path.join("config.json")).ok()?;
        let model = config.contains("kv_lora_rank").then(|| load.open(&path).ok())??;
        let name = path.file_name()?.to_string_lossy().into_owned();
        model.config().attention.latent.is_some().then_some((name, model))
    };
    let mut models: Vec<_> = folders.filter_map(|entry| open(entry.unwrap().path())).collect();
    models.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(models.len() >= 5, "{}", models.len());
    models.push(("queries from the stream".into(), latent(None, 5, 6, 4)));
    models.push(("wide latents".into(), latent(Some(7), 20, 8, 2)));
    models.push(("all but two dimensions rotate".into(), latent(Some(12), 3, 4, 6)));
    models
}

fn ids(rows: i64, len: i64) -> Tensor {
    let numbers: Vec<i64> = (0..rows * len).map(|i| (i * i + 3 * i + i / 7) % 16).collect();
    Tensor::from_slice(&numbers).view([rows, len])
}

fn next(model: &HookedTransformer, new: &Tensor, store: &mut KeyValueStore) -> Tensor {
    model.run(new, RunOptions::new().past(store)).unwrap().logits.unwrap()
}

/// The bytes of `columns` positions in all layers.
fn latent_bytes(model: &HookedTransformer, rows: usize, columns: usize) -> u64 {
    let config = model.config();
    let width = config.attention.latent.unwrap().key_value_rank + config.rotary_dim().unwrap();
    // A layer with an indexer of its own holds that network's keys as well.
    let indexer = |layer| {
        let own = |indexer: &Indexer| match indexer.shares_choice.get(layer) {
            Some(true) => 0,
            _ => indexer.d_head,
        };
        config.attention.indexer.as_ref().map_or(0, own)
    };
    let widths: usize = (0..config.n_layers).map(|layer| width + indexer(layer)).sum();
    (widths * rows * columns * 8) as u64
}

#[test]
fn latents_are_held_in_place_of_keys_and_values() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.safetensors");
    let mut tally = Tally::default();
    for (name, model) in latent_models() {
        let tokens = ids(2, 11);
        let names = model.hook_names();
        let whole = model.run(&tokens, RunOptions::new().cache(names.clone())).unwrap();
        let (cache, logits) = (whole.cache, whole.logits.unwrap());
        // Parts of few new positions and of many: attention to latents, and to keys and values that are made of them.
        for parts in [[4i64, 1, 6], [1, 9, 1], [9, 1, 1]] {
            let mut store = KeyValueStore::new(&model, 2, 13).unwrap();
            assert_eq!(store.bytes(), latent_bytes(&model, 2, 13), "{name}");
            let mut start = 0;
            for (nth, part) in parts.into_iter().enumerate() {
                let run = RunOptions::new().past(&mut store);
                let run = if nth % 2 == 1 { run.cache("pattern") } else { run };
                let found = model.run(tokens.narrow(1, start, part), run).unwrap();
                let what = format!("{name}, {start} + {part}");
                tally.compare(&what, &found.logits.unwrap(), &logits.narrow(1, start, part), TOLERANCE);
                for (point, pattern) in &found.cache {
                    let expected = cache[*point].narrow(2, start, part).narrow(3, 0, start + part);
                    tally.compare(&format!("{what}, {point}"), pattern, &expected, TOLERANCE);
                }
                start += part;
            }
            for layer in 0..model.config().n_layers {
                let latents = store.latents(layer).unwrap().unwrap();
                assert_eq!(latents.size()[..2], [2, 11], "{name}");
                let (k, v) = (&cache[("rot_k", layer)], &cache[("v", layer)]);
                tally.compare(&name, &store.keys(layer).unwrap(), &k.transpose(1, 2), TOLERANCE);
                tally.compare(&name, &store.values(layer).unwrap(), &v.transpose(1, 2), TOLERANCE);
            }
            store.truncate(10).unwrap();
            store.save(&path).unwrap();
            let mut copies = [KeyValueStore::load(&model, &path).unwrap(), store.clone(), store.rows(&[0, 1]).unwrap()];
            for store in copies.iter_mut().chain([&mut store]) {
                let last = next(&model, &tokens.narrow(1, 10, 1), store);
                tally.compare(&format!("{name}, copies"), &last, &logits.narrow(1, 10, 1), TOLERANCE);
                assert!(store.latents(0).unwrap().is_some(), "{name}");
            }
        }
    }
    tally.finish("latents");
}

/// What a hook puts in the place of keys and values counts in later steps.
#[test]
fn changed_keys_and_values_are_held_where_latents_cannot_say_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.safetensors");
    let mut tally = Tally::default();
    for (name, model) in latent_models() {
        let tokens = ids(1, 8);
        for point in ["k", "v", "rot_k", "k_input", "v_input"] {
            // In the first part, or in a later one.
            for position in [1i64, 5] {
                let hooks = || Hooks::new().patch((point, 1), Patch::scale(-1.5).head(1).pos(position));
                let expected = model.run_with_hooks(&tokens, hooks()).unwrap();
                // Where a network chooses keys, no query may have chosen this one.
                let chooses = model.config().attention.indexer.is_some();
                let changed = max_diff("changed", &expected, &model.forward(&tokens).unwrap());
                assert!(changed > 1e-6 || chooses, "{name}, {point}");
                let mut store = KeyValueStore::new(&model, 1, 10).unwrap();
                let mut start = 0;
                for part in [4i64, 2, 1, 1] {
                    let run = RunOptions::new().past(&mut store);
                    let acts = (start..start + part).contains(&position);
                    let run = if acts { run.hooks(hooks()) } else { run };
                    let found = model.run(tokens.narrow(1, start, part), run).unwrap().logits.unwrap();
                    let what = format!("{name}, {point} at {position}, {start} + {part}");
                    tally.compare(&what, &found, &expected.narrow(1, start, part), TOLERANCE);
                    start += part;
                    if start == 6 {
                        assert!(store.latents(1).unwrap().is_none() && store.latents(0).unwrap().is_some());
                        store.save(&path).unwrap();
                        store = KeyValueStore::load(&model, &path).unwrap();
                        assert!(store.latents(1).unwrap().is_none() && store.latents(0).unwrap().is_some());
                    }
                }
                store.truncate(0).unwrap();
                let whole = next(&model, &tokens, &mut store);
                tally.compare(&name, &whole, &model.forward(&tokens).unwrap(), TOLERANCE);
                assert!(store.latents(1).unwrap().is_some());
            }
        }
        // Hooks that only look, and gradients, leave latents what they are.
        let mut store = KeyValueStore::new(&model, 1, 10).unwrap();
        let looks = Hooks::new().observe("k", |_, _| ()).observe("v_input", |_, _| ());
        model.run(tokens.narrow(1, 0, 5), RunOptions::new().past(&mut store).hooks(looks)).unwrap();
        assert!(store.latents(1).unwrap().is_some(), "{name}");
        let stream = model.run(&tokens, RunOptions::new().cache("hook_embed")).unwrap().cache["hook_embed"].copy();
        let stream = stream.narrow(1, 5, 3).copy().set_requires_grad(true);
        let run = RunOptions::new().past(&mut store).start_from_embeddings();
        let logits = model.run(&stream, run).unwrap().logits.unwrap();
        tally.compare(&name, &logits.detach(), &model.forward(&tokens).unwrap().narrow(1, 5, 3), TOLERANCE);
        logits.i((0, 2, 3)).backward();
        assert!(stream.grad().abs().max().double_value(&[]) > 0.0, "{name}");
    }
    tally.finish("changed keys and values");
}

// --- sharing ----------------------------------------------------------------------------------------------------------

/// Models whose attention does everything that it may do.
fn sharing_models() -> Vec<(&'static str, HookedTransformer)> {
    let long = |config: Config| fresh(Config { n_ctx: 200, ..config });
    let attention = |change: fn(&mut AttentionConfig)| {
        let mut attention = AttentionConfig::default();
        change(&mut attention);
        attention
    };
    let window = |window| PerLayer::Each(vec![Reach::Window(window), Reach::Global]);
    vec![
        ("learned", long(small())),
        ("alibi", long(Config { positions: Positions::alibi(8.0), ..small() })),
        ("grouped", long(Config { d_model: 32, n_heads: 4, n_key_value_heads: 2, ..rotary(RopeScaling::None) })),
        ("capped", long(Config { attention: attention(|a| a.scores_soft_cap = Some(2.0)), ..small() })),
        (
            "long window",
            long(Config { attention: AttentionConfig { reach: window(90), ..Default::default() }, ..small() }),
        ),
        (
            "short window",
            long(Config { attention: AttentionConfig { reach: window(3), ..Default::default() }, ..small() }),
        ),
        ("latents", latent(Some(7), 6, 5, 4)),
    ]
}

/// Clones and rows that go on behind one prefix give what whole runs give, with and without scores that are shown, padded or not.
#[test]
fn a_shared_prefix_gives_what_whole_runs_give() {
    let mut tally = Tally::default();
    for (name, model) in sharing_models() {
        for padded in [false, true] {
            let mut tokens = Tokens { ids: ids(3, 90), mask: None, types: None };
            if padded {
                let mask = Tensor::ones([3, 90], (Kind::Bool, Device::Cpu));
                let _ = mask.i((1, ..20)).fill_(0);
                let _ = mask.i((2, 60..80)).fill_(0);
                tokens.mask = Some(mask);
            }
            let part = |tokens: &Tokens, start: i64, len: i64| Tokens {
                ids: tokens.ids.narrow(1, start, len),
                mask: tokens.mask.as_ref().map(|mask| mask.narrow(1, start, len)),
                types: None,
            };
            let chosen = |rows: &[i64]| Tokens {
                ids: tokens.ids.index_select(0, &Tensor::from_slice(rows)),
                mask: tokens.mask.as_ref().map(|mask| mask.index_select(0, &Tensor::from_slice(rows))),
                types: None,
            };
            let mut prefix = KeyValueStore::new(&model, 3, 100).unwrap();
            model.run(part(&tokens, 0, 70), RunOptions::new().past(&mut prefix)).unwrap();
            for rows in [vec![0i64, 0, 1, 1, 2, 2], vec![2, 2, 2, 0, 0, 0], vec![1, 0, 2], vec![1, 1, 0, 1], vec![1; 4]]
            {
                let places: Vec<usize> = rows.iter().map(|row| *row as usize).collect();
                let ending =
                    Tokens { ids: (ids(rows.len() as i64, 20) + 5i64).remainder(16), ..part(&chosen(&rows), 70, 20) };
                let mut whole = chosen(&rows);
                whole.ids = Tensor::cat(&[whole.ids.narrow(1, 0, 70), ending.ids.shallow_clone()], 1);
                let expected = model.run(&whole, RunOptions::new().cache(["pattern", "attn_scores"])).unwrap();
                let logits = expected.logits.unwrap();
                let mut store = prefix.rows(&places).unwrap();
                let first = model.run(part(&ending, 0, 5), RunOptions::new().past(&mut store)).unwrap().logits.unwrap();
                let what = format!("{name}, {rows:?}, padded {padded}");
                tally.compare(&what, &first, &logits.narrow(1, 70, 5), TOLERANCE);
                // Rows of rows, and a clone of them.
                let turned: Vec<usize> = (0..rows.len()).flat_map(|row| [row, row]).collect();
                for mut store in [store.clone(), store.rows(&turned).unwrap()] {
                    let times = store.batch() as i64 / rows.len() as i64;
                    let twice = |x: &Tensor| x.repeat_interleave_self_int(times, 0, None);
                    let new = part(&ending, 5, 15);
                    let new = Tokens { ids: twice(&new.ids), mask: new.mask.as_ref().map(twice), types: None };
                    let run = RunOptions::new().past(&mut store).cache(["pattern", "attn_scores"]);
                    let found = model.run(&new, run).unwrap();
                    tally.compare(&what, &found.logits.unwrap(), &twice(&logits.narrow(1, 75, 15)), TOLERANCE);
                    for (point, scores) in &found.cache {
                        let expected = twice(&expected.cache[*point].narrow(2, 75, 15));
                        tally.compare(
                            &format!("{what}, {point}"),
                            &scores.clamp_min(-1e3),
                            &expected.clamp_min(-1e3),
                            TOLERANCE,
                        );
                    }
                    // Back into the shared part, and on again.
                    if name != "short window" {
                        store.truncate(66).unwrap();
                        let new = part(&whole, 66, 24);
                        let new = Tokens { ids: twice(&new.ids), mask: new.mask.as_ref().map(twice), types: None };
                        let found = model.run(&new, RunOptions::new().past(&mut store)).unwrap().logits.unwrap();
                        tally.compare(&what, &found, &twice(&logits.narrow(1, 66, 24)), TOLERANCE);
                    }
                }
            }
            // The prefix itself goes on, and does not change what its clones hold.
            let mut clones = [prefix.clone(), prefix.clone()];
            let rest = part(&tokens, 70, 20);
            let theirs = Tokens { ids: (&rest.ids + 1i64).remainder(16), ..rest.clone() };
            model.run(&theirs, RunOptions::new().past(&mut clones[0])).unwrap();
            prefix.truncate(68).unwrap();
            model.run(part(&theirs, 0, 9), RunOptions::new().past(&mut prefix)).unwrap();
            let whole = model.forward(&tokens).unwrap().narrow(1, 70, 20);
            let found = model.run(&rest, RunOptions::new().past(&mut clones[1])).unwrap().logits.unwrap();
            tally.compare(&format!("{name}, clones"), &found, &whole, TOLERANCE);
            // What a clone looks at is not written over, where the prefix goes back and on, either.
            let mut prefix = KeyValueStore::new(&model, 3, 100).unwrap();
            model.run(part(&tokens, 0, 70), RunOptions::new().past(&mut prefix)).unwrap();
            let mut one = prefix.clone();
            model.run(part(&tokens, 70, 10), RunOptions::new().past(&mut one)).unwrap();
            prefix.truncate(66).unwrap();
            model.run(part(&theirs, 0, 9), RunOptions::new().past(&mut prefix)).unwrap();
            let found = model.run(part(&tokens, 80, 10), RunOptions::new().past(&mut one)).unwrap().logits.unwrap();
            tally.compare(&format!("{name}, one clone"), &found, &whole.narrow(1, 10, 10), TOLERANCE);
        }
    }
    tally.finish("shared prefixes");
}

/// Sixteen continuations of a prefix of 512 take the memory of the prefix once, and of what they add.
#[test]
fn sixteen_continuations_of_a_prefix_hold_it_once() {
    let models = [("learned", fresh(Config { n_ctx: 600, ..small() })), ("latents", latent(None, 6, 5, 4))];
    for (name, model) in models {
        let prefix_ids = ids(1, 512);
        let mut prefix = KeyValueStore::new(&model, 1, 512).unwrap();
        model.run(&prefix_ids, RunOptions::new().past(&mut prefix)).unwrap();
        let once = prefix.bytes();
        let a_position = once / 512;
        let options = GenerateOptions::new().do_sample(false).stop_at_eos(false).max_new_tokens(8);
        let endings: Vec<Vec<i64>> = (0..16).map(|row| vec![row, (row * 5 + 1) % 16]).collect();
        // One batch of sixteen rows.
        let steps = StepOptions::new().past(prefix.clone());
        let batch = model.generate_with(endings.clone(), &options, steps).unwrap();
        let store = batch.past.unwrap();
        assert_eq!((store.batch(), store.shared_bytes()), (16, once), "{name}");
        assert!(store.bytes() <= 16 * 10 * a_position, "{name}: {} of {a_position}", store.bytes());
        // Sixteen stores of one row.
        let mut stores = Vec::new();
        for (row, ending) in endings.iter().enumerate() {
            let steps = StepOptions::new().past(prefix.clone());
            let one = model.generate_with(ending, &options, steps).unwrap();
            assert_eq!(one.rows[0].ids(), batch.rows[row].ids(), "{name}, row {row}");
            stores.push(one.past.unwrap());
        }
        let own: u64 = stores.iter().map(KeyValueStore::bytes).sum();
        assert!(
            own <= 16 * 10 * a_position && stores.iter().all(|store| store.shared_bytes() == once),
            "{name}: {own}"
        );
        assert_eq!((prefix.bytes(), prefix.shared_bytes()), (0, once));
        drop((stores, store));
        assert_eq!((prefix.bytes(), prefix.shared_bytes()), (once, 0));
        // Several samples of one prompt share it too, and one that is short is copied.
        let sampled = GenerateOptions::new().stop_at_eos(false).max_new_tokens(4).samples(8).seed(1);
        let long = model.generate(&prefix_ids, &sampled).unwrap().past.unwrap();
        assert!(long.bytes() <= 8 * 4 * a_position && long.shared_bytes() <= once, "{name}: {}", long.bytes());
        let short = model.generate([3i64, 4, 5], &sampled).unwrap().past.unwrap();
        assert_eq!(short.shared_bytes(), 0, "{name}");
    }
}

/// Run by hand, as it measures: a step of sixteen rows, and of one, behind a prefix that is shared and one that is copied.
#[test]
#[ignore = "measures: a model of GPT-2 small's shape"]
fn steps_behind_a_shared_prefix() {
    let config = Config { n_ctx: 1024, ..Config::new(12, 768, 12, 2000, 1024) };
    let model = HookedTransformer::init(config, 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for len in [32i64, 64, 128, 512] {
        let mut prefix = KeyValueStore::new(&model, 1, len as usize + 40).unwrap();
        model.run(ids(1, len), RunOptions::new().past(&mut prefix)).unwrap();
        for rows in [1usize, 16] {
            let shared = || if rows == 1 { prefix.clone() } else { prefix.rows(&vec![0; rows]).unwrap() };
            let path = folder.path().join("copied.safetensors");
            shared().save(&path).unwrap();
            let time = |mut store: KeyValueStore| {
                let _ = next(&model, &ids(rows as i64, 1), &mut store);
                let mut times: Vec<f64> = (0..30)
                    .map(|_| {
                        let start = std::time::Instant::now();
                        let _ = next(&model, &ids(rows as i64, 1), &mut store);
                        start.elapsed().as_secs_f64() * 1e3
                    })
                    .collect();
                times.sort_by(f64::total_cmp);
                times[times.len() / 4]
            };
            let (mut ours, mut theirs) = (f64::MAX, f64::MAX);
            for _ in 0..3 {
                ours = ours.min(time(shared()));
                theirs = theirs.min(time(KeyValueStore::load(&model, &path).unwrap()));
            }
            println!("prefix {len}, {rows} row(s): {ours:.1} ms a step shared, {theirs:.1} ms copied");
        }
    }
}
