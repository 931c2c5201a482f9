//! Layers whose queries see only the keys that an indexer chooses, or that an earlier layer's indexer has chosen.

use crate::common::models::of_transformers;
use crate::common::{fixtures, read, Tally};
use tch::{IndexOp, Kind, Tensor};
use tch_lens::{hook, Config, HookedTransformer, Hooks, KeyValueStore, LoadOptions, RunOptions};

/// Layers 0 and 3 have indexers, and the others see the three keys that these choose.
fn model() -> (HookedTransformer, Tensor) {
    let (name, model) = of_transformers("glm_moe_dsa_shared");
    let tokens = read(&fixtures().join("transformers").join(name).join("expected.safetensors"))["tokens"].copy();
    (model, tokens)
}

/// Two layers whose indexers keep `keep` keys, and room for long texts.
fn long(keep: usize) -> HookedTransformer {
    let (_, model) = of_transformers("deepseek_v32");
    let mut config = Config { n_ctx: 4096, ..model.config().clone() };
    config.attention.indexer.as_mut().unwrap().keep = keep;
    let load = LoadOptions::new().no_processing().kind(Kind::Double);
    load.state_dict(config, model.state_dict().unwrap()).unwrap()
}

/// How many keys each query sees in a layer: `[batch, head, query]`.
fn seen(pattern: &Tensor) -> Tensor {
    pattern.gt(0.0).sum_dim_intlist([-1i64].as_slice(), false, Kind::Int64)
}

#[test]
fn a_query_sees_as_many_keys_as_are_kept() {
    let (model, tokens) = model();
    let (_, cache) = model.run_with_cache(&tokens).unwrap();
    let expected = Tensor::from_slice(&[1i64, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3]).expand([2, 4, 11], false);
    let chosen = |layer: usize| cache[hook::pattern(layer)].gt(0.0);
    for layer in 0..5 {
        assert_eq!(seen(&cache[hook::pattern(layer)]), expected, "layer {layer}");
    }
    assert_eq!(chosen(1), chosen(0));
    assert_eq!(chosen(2), chosen(0));
    assert_eq!(chosen(4), chosen(3));
    assert_ne!(chosen(3), chosen(0));
}

#[test]
fn a_run_passes_the_layer_that_chooses() {
    let (model, tokens) = model();
    let (logits, cache) = model.run_with_cache(&tokens).unwrap();
    let late = |layer: usize| {
        let run = RunOptions::new().start_at_layer(layer);
        Ok::<_, tch_lens::Error>(model.run(&cache[hook::resid_pre(layer)], run)?.logits.unwrap())
    };
    let mut tally = Tally::default();
    for layer in [0, 3] {
        tally.compare(&format!("from layer {layer}"), &late(layer).unwrap(), &logits, 1e-12);
    }
    tally.finish("runs from a stream");
    for (layer, expected) in [
        (2, "layer 2 sees the keys that layer 0 chooses: start at layer 0 or before"),
        (4, "layer 4 sees the keys that layer 3 chooses: start at layer 3 or before"),
    ] {
        let error = late(layer).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn hooks_at_the_inputs_of_heads_do_not_reach_the_indexer() {
    let (model, tokens) = model();
    let (_, cache) = model.run_with_cache(&tokens).unwrap();
    let pattern_with = |point, factor: f64| {
        let hooks = Hooks::new().replace(point, move |x, _| x * factor);
        let run = RunOptions::new().hooks(hooks).cache(hook::pattern(0));
        model.run(&tokens, run).unwrap().cache[hook::pattern(0)].gt(0.0)
    };
    let chosen = cache[hook::pattern(0)].gt(0.0);
    for point in [hook::attn_in(0), hook::q_input(0), hook::k_input(0), hook::v_input(0), hook::q(0), hook::k(0)] {
        assert_eq!(pattern_with(point, -1.0), chosen, "{point}");
    }
    for point in [hook::resid_pre(0), hook::ln1_normalized(0)] {
        assert_ne!(pattern_with(point, -1.0), chosen, "{point}");
    }
}

/// The store holds the keys of the two indexers, in a file, in layers that hold keys and values, and in rows that share a prefix.
#[test]
fn a_store_holds_the_keys_of_indexers() {
    let (model, tokens) = model();
    let whole = model.forward(&tokens).unwrap();
    let part = |start, len| tokens.narrow(1, start, len);
    let mut tally = Tally::default();
    let mut store = KeyValueStore::new(&model, 2, 11).unwrap();
    model.run(part(0, 6), RunOptions::new().past(&mut store)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.safetensors");
    store.save(&path).unwrap();
    let names: Vec<String> = Tensor::read_safetensors(&path).unwrap().into_iter().map(|(name, _)| name).collect();
    let held: Vec<usize> = (0..5).filter(|layer| names.contains(&format!("layers.{layer}.indexer_keys"))).collect();
    assert_eq!(held, [0, 3]);
    let mut loaded = KeyValueStore::load(&model, &path).unwrap();
    let rest = model.run(part(6, 5), RunOptions::new().past(&mut loaded)).unwrap().logits.unwrap();
    tally.compare("behind a file", &rest, &whole.narrow(1, 6, 5), 1e-12);

    // A hook on keys that leaves them as they are: the layers hold keys and values from then on.
    let hooks = || Hooks::new().replace(hook::k(0), |k, _| k * 1.0).replace(hook::v(3), |v, _| v * 1.0);
    let step = model.run(part(6, 1), RunOptions::new().past(&mut store).hooks(hooks())).unwrap().logits.unwrap();
    tally.compare("with hooks on keys", &step, &whole.narrow(1, 6, 1), 1e-12);
    assert!(store.latents(0).unwrap().is_none() && store.latents(1).unwrap().is_some());
    store.save(&path).unwrap();
    for store in [&mut store.clone(), &mut KeyValueStore::load(&model, &path).unwrap()] {
        let rest = model.run(part(7, 4), RunOptions::new().past(store)).unwrap().logits.unwrap();
        tally.compare("with keys and values", &rest, &whole.narrow(1, 7, 4), 1e-12);
    }
    tally.finish("parts of a run");
}

#[test]
fn rows_share_the_keys_of_their_prefix() {
    let model = long(7);
    let tokens = Tensor::arange(80, (Kind::Int64, tch::Device::Cpu)).remainder(61).unsqueeze(0);
    let mut prefix = KeyValueStore::new(&model, 1, 128).unwrap();
    model.run(&tokens, RunOptions::new().past(&mut prefix)).unwrap();
    let mut rows = prefix.rows(&[0, 0, 0]).unwrap();
    assert!(rows.shared_bytes() > 0);
    let endings = Tensor::from_slice(&[3i64, 9, 27, 17, 51, 25, 11, 33, 35]).view([3, 3]);
    let mut tally = Tally::default();
    let mut found = Vec::new();
    for step in [0..1, 1..3] {
        let new = endings.narrow(1, step.start, step.end - step.start);
        found.push(model.run(&new, RunOptions::new().past(&mut rows)).unwrap().logits.unwrap());
    }
    let found = Tensor::cat(&found, 1);
    for row in 0..3 {
        let whole = Tensor::cat(&[&tokens, &endings.i(row..row + 1)], 1);
        let expected = model.forward(&whole).unwrap().narrow(1, 80, 3);
        tally.compare(&format!("row {row}"), &found.i(row..row + 1), &expected, 1e-12);
    }
    tally.finish("continuations of one prefix");
}

/// Long texts are attended to some queries at a time, and the keys are chosen so.
#[test]
fn long_texts_are_as_their_pattern_says() {
    let model = long(5);
    let tokens = Tensor::arange(2100, (Kind::Int64, tch::Device::Cpu)).remainder(61).unsqueeze(0);
    let fused = model.run(&tokens, RunOptions::new().cache(hook::z(0))).unwrap();
    let formed = model.run(&tokens, RunOptions::new().cache([hook::pattern(0), hook::z(0)])).unwrap();
    let pattern = &formed.cache[hook::pattern(0)];
    assert_eq!(seen(pattern).max().int64_value(&[]), 5);
    let mut tally = Tally::default();
    tally.compare("z", &fused.cache[hook::z(0)], &formed.cache[hook::z(0)], 1e-12);
    // What comes later changes nothing.
    let few = model.run(tokens.narrow(1, 0, 40), RunOptions::new().cache(hook::pattern(0))).unwrap();
    tally.compare("the first queries", &pattern.i((.., .., ..40, ..40)), &few.cache[hook::pattern(0)], 1e-12);
    tally.finish("a long text");
}
