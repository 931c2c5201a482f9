//! Layers that look at the keys and values of an earlier one, whose heads have another width, and that add embeddings of the tokens.

use crate::common::models::of_transformers;
use crate::common::{fixtures, read, Tally};
use tch::Tensor;
use tch_lens::hook::HookName;
use tch_lens::{hook, HookedTransformer, KeyValueStore, RunOptions, Tokens};

/// Layer 2 looks at keys and values of layer 1, whose heads are 12 wide, and layer 0 has a window and heads of 8.
fn model() -> (HookedTransformer, Tensor) {
    let (name, model) = of_transformers("gemma4_text");
    let tokens = read(&fixtures().join("transformers").join(name).join("expected.safetensors"))["tokens"].copy();
    (model, tokens)
}

#[test]
fn points_and_their_shapes_differ_by_layer() {
    let (model, tokens) = model();
    let (_, cache) = model.run_with_cache(&tokens).unwrap();
    assert_eq!(cache[hook::q(0)].size(), [2, 11, 4, 8]);
    assert_eq!(cache[hook::k(1)].size(), [2, 11, 2, 12]);
    assert_eq!(cache[hook::z(2)].size(), [2, 11, 4, 12]);
    assert_eq!(cache[hook::ple_embed(2)].size(), [2, 11, 6]);
    assert_eq!(cache[hook::post(2)].size()[2], 2 * cache[hook::post(1)].size()[2]);
    for (point, tensor) in &cache {
        assert_eq!(tensor.size(), point.shape(model.config(), 2, 11), "{point}");
    }
    let absent = [hook::k, hook::v, hook::rot_k, hook::k_norm_scale, hook::v_norm_scale, hook::k_input, hook::v_input];
    for point in absent {
        assert!(point(1).resolve(model.config()).is_ok());
        let error = point(2).resolve(model.config()).unwrap_err().to_string();
        assert!(error.contains("keys and values of an earlier layer"), "{error}");
    }
    assert!(model.w_k(1).is_ok());
    let error = model.w_k(2).unwrap_err().to_string();
    assert!(error.contains("layer 2 looks at the keys and values of layer 1"), "{error}");
}

#[test]
fn a_run_passes_the_layer_whose_keys_it_needs() {
    let (model, tokens) = model();
    let (logits, cache) = model.run_with_cache(&tokens).unwrap();
    let all = model.to_tokens(&tokens).unwrap();
    let late = |layer: usize| {
        let run = RunOptions::new().start_at_layer(layer).tokens(&all);
        Ok::<_, tch_lens::Error>(model.run(&cache[hook::resid_pre(layer)], run)?.logits.unwrap())
    };
    let mut tally = Tally::default();
    for layer in [0, 1] {
        tally.compare(&format!("from layer {layer}"), &late(layer).unwrap(), &logits, 1e-12);
    }
    tally.finish("runs from a stream");
    let error = late(2).unwrap_err().to_string();
    assert!(error.contains("layer 2 looks at the keys and values of layer 1: start at layer 1 or before"), "{error}");
    let bare = RunOptions::new().start_at_layer(1);
    let error = model.run(&cache[hook::resid_pre(1)], bare).unwrap_err().to_string();
    assert!(error.contains("give the tokens"), "{error}");
}

#[test]
fn keys_that_are_shared_are_held_once() {
    let (model, tokens) = model();
    let whole = model.forward(&tokens).unwrap();
    let mut store = KeyValueStore::new(&model, 2, 11).unwrap();
    let part = |start, len| tokens.narrow(1, start, len);
    model.run(part(0, 7), RunOptions::new().past(&mut store)).unwrap();
    assert_eq!(store.keys(2).unwrap(), store.keys(1).unwrap());
    assert_eq!(store.values(2).unwrap(), store.values(1).unwrap());
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("store.safetensors");
    store.save(&path).unwrap();
    let names: Vec<String> = Tensor::read_safetensors(&path).unwrap().into_iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"layers.1.keys".into()) && !names.contains(&"layers.2.keys".into()), "{names:?}");
    let mut loaded = KeyValueStore::load(&model, &path).unwrap();
    let mut tally = Tally::default();
    for store in [&mut store, &mut loaded] {
        let rest = model.run(part(7, 4), RunOptions::new().past(store)).unwrap().logits.unwrap();
        tally.compare("the rest", &rest, &whole.narrow(1, 7, 4), 1e-12);
    }
    // A padded row is as if alone, behind a store as well.
    let rows =
        [Vec::<i64>::try_from(tokens.get(0)).unwrap(), Vec::<i64>::try_from(tokens.get(1).narrow(0, 0, 4)).unwrap()];
    let padded = Tokens::padded(&rows, 0, tch_lens::PaddingSide::Left).unwrap();
    let alone = model.forward(rows[1].clone()).unwrap();
    let found = model.forward(&padded).unwrap().get(1).narrow(0, 7, 4);
    tally.compare("padded", &found, &alone.get(0), 1e-12);
    tally.finish("shared keys in a store");
}
