//! What only mixtures of experts and latent attention can get wrong, of every such folder of `tests/fixtures/transformers`: neurons of
//! experts beside those that every token has, runs in parts, and heads that read different streams.

use crate::common::{self, Tally};
use tch::{IndexOp, Kind, Tensor};
use tch_lens::{
    hook, FullOptions, HookedTransformer, Hooks, KeyValueStore, LoadOptions, NeuronOptions, NeuronResultOptions,
    RunOptions, Target,
};

/// In fp64, relative to the largest entry.
const EXACT: f64 = 1e-9;

/// The models with experts or latent attention, in fp64, with their tokens.
fn models(processed: bool) -> Vec<(String, HookedTransformer, Tensor)> {
    let folders = std::fs::read_dir(common::fixtures().join("transformers")).unwrap();
    let mut names: Vec<String> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let load = LoadOptions::new().kind(Kind::Double);
    let load = if processed { load } else { load.no_processing() };
    let open = |name: String| {
        let folder = common::fixtures().join("transformers").join(&name);
        let model = load.open(&folder).ok()?; // those that are refused have a test of their own
        let config = model.config();
        let is_meant = config.experts().is_some() || config.attention.latent.is_some();
        let tokens = common::read(&folder.join("expected.safetensors"))["tokens"].shallow_clone();
        is_meant.then_some((name, model, tokens))
    };
    let models: Vec<_> = names.into_iter().filter_map(open).collect();
    assert!(models.len() > 15, "{}", models.len());
    models
}

fn relative(tally: &mut Tally, what: &str, ours: &Tensor, theirs: &Tensor) {
    let largest = theirs.abs().max().double_value(&[]).max(1.0);
    tally.compare(what, &(ours / largest), &(theirs / largest), EXACT);
}

#[test]
fn neurons_of_all_experts_add_up() {
    let mut tally = Tally::default();
    for processed in [false, true] {
        for (name, model, tokens) in models(processed) {
            let (_, cache) = model.run_with_cache(&tokens).unwrap();
            let full = cache.get_full_resid_decomposition(FullOptions::new().expand_neurons(true)).unwrap();
            relative(&mut tally, &format!("{name}: full"), &full.sum().unwrap(), &cache[hook::resid_post(-1)]);
            for layer in 0..model.config().n_layers {
                let some = NeuronOptions::new().target(Target::mlp(layer)).neurons((0, 1000, 3)).incl_remainder(true);
                let some = cache.stack_neuron_results(some).unwrap();
                let whole = &cache
                    [if model.config().parallel_attn_mlp { hook::resid_pre(layer) } else { hook::resid_mid(layer) }];
                relative(&mut tally, &format!("{name}: some neurons before {layer}"), &some.sum().unwrap(), whole);
                let all = cache.get_neuron_results(layer, NeuronResultOptions::new()).unwrap();
                let onto = model.w_u().unwrap().i((.., 5));
                let projected = cache.get_neuron_results(layer, NeuronResultOptions::new().project(&onto)).unwrap();
                relative(&mut tally, &format!("{name}: projected neurons of {layer}"), &projected, &all.matmul(&onto));
            }
        }
    }
    tally.finish("neurons");
}

#[test]
fn parts_of_a_run_and_heads_apart_give_the_same() {
    let mut tally = Tally::default();
    for (name, model, tokens) in models(false) {
        let whole = model.forward(&tokens).unwrap();
        let mut store = KeyValueStore::new(&model, 2, 11).unwrap();
        let parts = [0..4, 4..5, 5..11].map(|range| {
            let part = tokens.narrow(1, range.start, range.end - range.start);
            model.run(&part, RunOptions::new().past(&mut store)).unwrap().logits.unwrap()
        });
        relative(&mut tally, &format!("{name}: in parts"), &Tensor::cat(&parts, 1), &whole);
        // Where a hook may change what heads read, each reads by itself.
        for point in ["q_input", "k_input", "v_input"] {
            if !model.hook_names().iter().any(|name| name.ends_with(point)) {
                continue; // heads that a router chooses read one stream
            }
            let hooks = Hooks::new().edit(point, |_, _| ());
            let logits = model.run(&tokens, RunOptions::new().hooks(hooks)).unwrap().logits.unwrap();
            relative(&mut tally, &format!("{name}: {point}"), &logits, &whole);
        }
    }
    tally.finish("runs in parts and heads apart");
}

/// The order in which points fire is that in which they are listed, in layers of each kind.
#[test]
fn points_fire_in_their_order() {
    for (name, model, tokens) in models(false) {
        let (_, cache) = model.run_with_cache(&tokens).unwrap();
        let fired: Vec<String> = cache.keys().map(|point| point.to_string()).collect();
        let mut listed = model.hook_names();
        listed.retain(|listed| fired.contains(listed));
        assert_eq!(fired, listed, "{name}");
        for (point, tensor) in &cache {
            if point.expert().is_none() {
                assert_eq!(tensor.size(), point.shape(model.config(), 2, 11), "{name}, {point}");
            }
        }
    }
}

/// Layers that predict further tokens than the next one are left out, as many as the configuration says.
#[test]
fn layers_of_further_tokens_are_left_out() {
    let folder = common::fixtures().join("transformers/deepseek_v3");
    let model = LoadOptions::new().open(&folder).unwrap();
    let layer = model.config().n_layers;
    let copy = tempfile::tempdir().unwrap();
    let write = |config: &serde_json::Value, more: &[String]| {
        std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
        let mut tensors = Tensor::read_safetensors(folder.join("model.safetensors")).unwrap();
        tensors.extend(more.iter().map(|name| (name.clone(), Tensor::ones([4], (Kind::Float, tch::Device::Cpu)))));
        Tensor::write_safetensors(&tensors, copy.path().join("model.safetensors")).unwrap();
        LoadOptions::new().open(copy.path())
    };
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
    let tokens = common::read(&folder.join("expected.safetensors"))["tokens"].shallow_clone();
    let names = [format!("model.layers.{layer}.eh_proj.weight"), "model.mtp.0.norm.weight".to_string()];
    config["num_nextn_predict_layers"] = 1.into();
    let whole = write(&config, &names).unwrap();
    assert!(whole.forward(&tokens).unwrap().equal(&model.forward(&tokens).unwrap()));
    let beyond = write(&config, &[format!("model.layers.{}.eh_proj.weight", layer + 1)]).unwrap_err().to_string();
    assert!(beyond.contains("does not use"), "{beyond}");
    config["num_nextn_predict_layers"] = 0.into();
    let unsaid = write(&config, &names).unwrap_err().to_string();
    assert!(unsaid.contains("does not use"), "{unsaid}");
}
