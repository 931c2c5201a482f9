//! Dictionaries from files and in runs, compared with SAELens, sparsify and circuit-tracer (`tests/fixtures/sae`,
//! `tests/fixtures/circuit_tracer`).
//!
//! The cases of `capp_gpt2` need the folder of real models; those of the toy and of a fixture run always.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;
use tch::{Kind, Tensor};
use tch_lens::hook;
use tch_lens::sae::{FeatureActivation, SaeOptions};
use tch_lens::{
    Dictionary, DictionaryOptions, DictionarySet, HookFilter, HookPoint, HookedTransformer, Hooks, Patch, ReturnType,
    RunOptions,
};

use crate::common::{fixtures, raw, read, repository};

const TOLERANCE: f64 = 1e-5;

/// A model of the fixtures, as its checkpoint has it; `None` for a real one where there is no folder of them.
fn model(name: &str) -> Option<HookedTransformer> {
    match name {
        "toy" => Some(HookedTransformer::from_pretrained_no_processing(repository().join("models/toy")).unwrap()),
        "capp_gpt2" => {
            let folder = std::env::var_os("TCH_LENS_MODELS")?;
            Some(HookedTransformer::from_pretrained_no_processing(PathBuf::from(folder).join(name)).unwrap())
        }
        fixture => Some(raw(fixture)),
    }
}

/// Hooks by which exactly `x` arrives at the end of a layer: nothing before its MLP, and `x` as what that writes.
fn arriving(hook: HookPoint, x: &Tensor) -> Hooks<'static> {
    assert_eq!(hook, hook::resid_post(hook.layer().unwrap()), "only the end of a layer can be set so");
    let layer = hook.layer().unwrap();
    Hooks::new().patch(hook::resid_mid(layer), Patch::zero()).patch(hook::mlp_out(layer), Patch::set(x))
}

/// Whether a pre-activation is its feature's threshold. SAELens makes a JumpReLU dictionary of a BatchTopK one with the smallest activation
/// of a batch as the threshold. The model's own rounding before the dictionary, of about 1e-6, decides on that very feature, so a run must
/// read the activation that SAELens read. Then it decides alike: the dictionary rounds as SAELens does.
fn has_tie(dictionary: &Dictionary, x: &Tensor) -> bool {
    let Some(threshold) = dictionary.threshold() else { return false };
    let pre = dictionary.pre_activations(x).unwrap();
    (pre - threshold).abs().min().double_value(&[]) < 1e-6
}

/// The largest entry of a difference.
#[track_caller]
fn diff(what: &str, a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size(), "{what}");
    if a.numel() == 0 {
        0.0
    } else {
        (a - b).abs().max().double_value(&[])
    }
}

/// A case of SAELens or sparsify.
struct Case {
    name: String,
    json: Value,
    expected: BTreeMap<String, Tensor>,
}

impl Case {
    fn all() -> Vec<Case> {
        let mut names: Vec<String> = std::fs::read_dir(fixtures().join("sae"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| fixtures().join("sae").join(name).join("expected.json").is_file())
            .collect();
        names.sort();
        names.into_iter().map(Case::open).collect()
    }

    fn open(name: impl Into<String>) -> Case {
        let name = name.into();
        let folder = fixtures().join("sae").join(&name);
        let json = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        Case { json, expected: read(&folder.join("expected.safetensors")), name }
    }

    fn folder(&self) -> PathBuf {
        let folder = fixtures().join("sae").join(&self.name);
        self.json["folder"].as_str().map_or(folder.clone(), |within| folder.join(within))
    }

    fn point(&self, field: &str) -> HookPoint {
        let name = self.json[field].as_str().unwrap_or_else(|| self.json["hook_in"].as_str().unwrap());
        point(name)
    }

    /// The dictionary; where SAELens reads another activation than the file says, or the path does not say it, with that.
    fn dictionary(&self, options: DictionaryOptions) -> Dictionary {
        let options = match self.name.starts_with("gemma_scope") {
            true => options.hook_in(self.point("hook_in")).hook_out(self.point("hook_out")),
            false => options,
        };
        options.open(self.folder()).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn want(&self, key: &str) -> &Tensor {
        &self.expected[key]
    }

    /// A cached activation of SAELens.
    fn cached(&self, key: &str) -> Option<&Tensor> {
        let same = self.json["cache_equals"][key].as_str();
        self.expected.get(key).or_else(|| self.expected.get(same?))
    }
}

/// A hook point of a whole name.
fn point(name: &str) -> HookPoint {
    use tch_lens::hook::HookName;
    let config = tch_lens::Config::new(12, 8, 2, 10, 10);
    name.resolve(&config).unwrap()
}

#[test]
fn encoding_and_decoding_are_saelens() {
    let mut worst = (0.0f64, 0.0f64);
    for case in Case::all() {
        for options in [DictionaryOptions::new(), DictionaryOptions::new().decoders_on_demand().memory_map(false)] {
            let dictionary = case.dictionary(options);
            assert_eq!(dictionary.hook_in(), case.point("hook_in"), "{}", case.name);
            assert_eq!(dictionary.hook_out(), case.point("hook_out"), "{}", case.name);
            let (x, expected) = (case.want("x"), case.want("feature_acts"));
            let acts = dictionary.encode(x).unwrap();
            let differs = diff(&case.name, &acts, expected);
            assert!(differs < TOLERANCE, "{}: features differ by {differs:.1e}", case.name);
            assert!(acts.ne(0.0).equal(&expected.ne(0.0)), "{}: other features are active", case.name);
            let sparse = dictionary.encode_sparse(x).unwrap();
            assert_eq!(sparse.size(), acts.size());
            assert!(diff(&case.name, &sparse.to_dense().unwrap(), &acts) < 1e-6, "{}", case.name);
            let out = dictionary.forward(x).unwrap();
            let scale = case.want("forward").abs().max().double_value(&[]).max(1.0);
            let out_differs = diff(&case.name, &out, case.want("forward")) / scale;
            assert!(out_differs < TOLERANCE, "{}: the reconstruction differs by {out_differs:.1e}", case.name);
            let decoded = dictionary.decode(&acts).unwrap();
            assert!(diff(&case.name, &dictionary.decode_sparse(&sparse).unwrap(), &decoded) < TOLERANCE * scale);
            if let Some(expected) = case.expected.get("decode") {
                assert!(diff(&case.name, &decoded, expected) < TOLERANCE * scale, "{}", case.name);
            }
            worst = (worst.0.max(differs), worst.1.max(out_differs));
        }
    }
    println!("largest differences: features {:.1e}, reconstructions {:.1e} (relative)", worst.0, worst.1);
}

#[test]
fn folded_norms_and_training_checkpoints_are_saelens() {
    let mut count = 0;
    for case in Case::all() {
        let folder = fixtures().join("sae").join(&case.name);
        let checks = [("expected_folded.safetensors", true), ("training_checkpoint/expected.safetensors", false)];
        for (file, folded) in checks.into_iter().filter(|(file, _)| folder.join(file).is_file()) {
            let expected = read(&folder.join(file));
            let dictionary = match folded {
                true => case.dictionary(DictionaryOptions::new()).fold_decoder_norm().unwrap(),
                false => DictionaryOptions::new().open(folder.join("training_checkpoint")).unwrap(),
            };
            let key = |key: &str| if folded { key.to_string() } else { format!("training.{key}") };
            let x = expected.get("training.x").unwrap_or_else(|| case.want("x"));
            let acts = dictionary.encode(x).unwrap();
            let differs = diff(file, &acts, &expected[&key("feature_acts")]);
            assert!(differs < TOLERANCE, "{} {file}: {differs:.1e}", case.name);
            if let Some(forward) = expected.get(&key("forward")) {
                let differs = diff(file, &dictionary.forward(x).unwrap(), forward);
                assert!(differs < TOLERANCE, "{} {file}: {differs:.1e}", case.name);
            }
            count += 1;
        }
    }
    assert_eq!(count, 7);
}

#[test]
fn spliced_runs_are_saelens() {
    let (mut worst, mut ties) = (0.0f64, 0);
    for case in Case::all().into_iter().filter(|case| case.expected.contains_key("logits.err0")) {
        let Some(model) = model(case.json["model"].as_str().unwrap()) else {
            println!("{}: skipped, as TCH_LENS_MODELS is not set", case.name);
            continue;
        };
        let dictionary = case.dictionary(DictionaryOptions::new());
        let tie = has_tie(&dictionary, case.want("x"));
        ties += usize::from(tie);
        let hooks = || match tie {
            true => arriving(case.point("hook_in"), case.want("x")),
            false => Hooks::new(),
        };
        let mut check = |what: &str, ours: &Tensor, theirs: &Tensor| {
            let differs =
                diff(&format!("{}: {what}", case.name), ours, theirs) / theirs.abs().max().double_value(&[]).max(1.0);
            assert!(differs < TOLERANCE, "{}: {what} differs by {differs:.1e}", case.name);
            worst = worst.max(differs);
        };
        let (tokens, out) = (case.want("tokens"), case.point("hook_out"));
        let spliced = |error| model.with_saes([dictionary.clone()], SaeOptions::new().error_term(error)).unwrap();
        let last = |logits: &Tensor| logits.select(1, -1);
        for error in [false, true] {
            let of = if error { "err1" } else { "err0" };
            let with = spliced(error);
            // SAELens forgets the skip connection in runs; here it counts.
            let forgets = case.expected.contains_key("logits.spliced_forward");
            if !error {
                let key = if forgets { "logits.spliced_forward" } else { "logits.err0" };
                check(key, &last(&with.run_with_hooks(tokens, hooks()).unwrap()), case.want(key));
            } else {
                assert!(
                    last(&with.forward(tokens).unwrap()).equal(&last(&model.forward(tokens).unwrap())),
                    "{}",
                    case.name
                );
            }
            if !forgets {
                let run = || RunOptions::new().hooks(hooks());
                let loss = with.run(tokens, run().return_type(ReturnType::Loss)).unwrap();
                check(&format!("loss.{of}"), loss.loss_tensor().unwrap(), case.want(&format!("loss.{of}")));
                if let Some(expected) = case.expected.get(&format!("loss_per_token.{of}")) {
                    let losses = with.run(tokens, run().return_type(ReturnType::LossPerToken)).unwrap();
                    check("loss per token", losses.loss_tensor().unwrap(), expected);
                }
                let feature = case.json["ablated_feature"].as_i64().unwrap();
                let ablated = hooks().patch(hook::sae_acts_post(out).feature(feature), Patch::zero());
                let key = format!("logits_last.ablate.{of}");
                check(&key, &last(&with.run_with_hooks(tokens, ablated).unwrap()), case.want(&key));
            }
            let run = with.run(tokens, RunOptions::new().hooks(hooks()).cache(HookFilter::All)).unwrap();
            let (logits, cache) = (run.logits().unwrap().shallow_clone(), run.cache);
            if error {
                check("logits with everything cached", &last(&logits), &last(&model.forward(tokens).unwrap()));
            }
            let keys: Vec<String> =
                cache.keys().map(|key| key.to_string()).filter(|key| key.contains("hook_sae")).collect();
            let theirs =
                case.json.get(format!("sae_cache_keys.{of}")).or(case.json.get(format!("cache_keys.{of}"))).unwrap();
            let theirs: Vec<String> = serde_json::from_value(theirs.clone()).unwrap();
            let theirs: Vec<String> = theirs.into_iter().filter(|key| key.contains("hook_sae")).collect();
            assert_eq!(keys, theirs, "{}", case.name);
            for key in keys.iter().filter(|key| !(forgets && (key.ends_with("output") || key.ends_with("error")))) {
                if let Some(expected) = case.cached(&format!("cache.{of}.{key}")) {
                    check(key, &cache[key.as_str()], expected);
                }
            }
        }
        if let Some(expected) = case.expected.get("logits.exclude_special") {
            let ids: Vec<i64> = serde_json::from_value(case.json["exclude_special_tokens"].clone()).unwrap();
            let with = model.with_saes([dictionary.clone()], SaeOptions::new().exclude_tokens(ids)).unwrap();
            check("excluded tokens", &last(&with.run_with_hooks(tokens, hooks()).unwrap()), expected);
        }
    }
    println!("largest difference: {worst:.1e} (relative); {ties} cases have a pre-activation at its threshold");
}

#[test]
fn several_dictionaries_at_once_are_saelens() {
    for (file, of) in [("toy_several", "toy"), ("several", "capp_gpt2")] {
        let Some(model) = model(of) else {
            println!("{file}: skipped, as TCH_LENS_MODELS is not set");
            continue;
        };
        let expected = read(&fixtures().join("sae").join(format!("{file}.safetensors")));
        let json: Value =
            serde_json::from_slice(&std::fs::read(fixtures().join("sae").join(format!("{file}.json"))).unwrap())
                .unwrap();
        let names: Vec<String> = serde_json::from_value(json["saes"].clone()).unwrap();
        for error in [false, true] {
            let of = if error { "err1" } else { "err0" };
            let saes = names.iter().map(|name| Case::open(name.as_str()).dictionary(DictionaryOptions::new()));
            let with = model.with_saes(saes, SaeOptions::new().error_term(error)).unwrap();
            let (logits, cache) = with.run_with_cache(&expected["tokens"]).unwrap();
            let theirs = &expected[&format!("logits.{of}")];
            let logits = if theirs.dim() == 2 { logits.select(1, -1) } else { logits };
            assert!(
                diff(file, &logits, theirs) < TOLERANCE * theirs.abs().max().double_value(&[]).max(1.0),
                "{file} {of}"
            );
            let prefix = format!("cache.{of}.");
            for (key, theirs) in expected.iter().filter_map(|(key, tensor)| Some((key.strip_prefix(&prefix)?, tensor)))
            {
                assert!(
                    diff(key, &cache[key], theirs) < TOLERANCE * theirs.abs().max().double_value(&[]).max(1.0),
                    "{file} {key}"
                );
            }
        }
    }
}

#[test]
fn circuit_tracer_s_active_features_are_found() {
    for (case, of) in
        [("toy_plt", "toy"), ("toy_skip_jumprelu", "toy"), ("toy_clt", "toy"), ("llama_plt", "llama_gqa_tied")]
    {
        let folder = fixtures().join("circuit_tracer").join(case);
        let expected = read(&folder.join("graph.safetensors"));
        let (model, tokens) = (model(of).unwrap(), expected["tokens"].reshape([1, -1]));
        let places = &expected["active_features"]; // [active, (layer, pos, feature)]
        for options in [DictionaryOptions::new(), DictionaryOptions::new().decoders_on_demand()] {
            let set: DictionarySet = options.open_set(&folder).unwrap();
            assert_eq!(set.scan(), Some(format!("seen/{case}").as_str()));
            assert_eq!(set.is_cross_layer(), case == "toy_clt");
            let points: Vec<_> = set.dictionaries().iter().map(|dictionary| dictionary.hook_in()).collect();
            let cache = model.run(&tokens, RunOptions::new().cache(points)).unwrap().cache;
            let mut acts = Vec::new();
            for dictionary in set.dictionaries() {
                let x = &cache[dictionary.hook_in()];
                let dense = dictionary.encode(x).unwrap();
                assert!(diff(case, &dense, &dictionary.encode_sparse(x).unwrap().to_dense().unwrap()) < 1e-6);
                acts.push(dense.squeeze_dim(0));
            }
            let acts = Tensor::stack(&acts, 0); // [layer, pos, feature]
            let _ = acts.narrow(1, 0, 1).zero_(); // circuit-tracer leaves out the first position
            assert_eq!(diff(case, &acts.nonzero(), places), 0.0, "{case}");
            let values = acts.index(&[0, 1, 2].map(|axis| Some(places.select(1, axis))));
            let differs = diff(case, &values, &expected["activation_values"]);
            assert!(differs < TOLERANCE, "{case}: {differs:.1e}");
            let first = &set.dictionaries()[0];
            let rows = first.decoder_rows(0, &Tensor::from_slice(&[3i64, 1])).unwrap();
            assert_eq!(
                diff(case, &rows, &first.w_dec().unwrap().index_select(0, &Tensor::from_slice(&[3i64, 1]))),
                0.0
            );
            assert_eq!(rows.kind(), Kind::Float);
        }
    }
}

/// A cross-layer transcoder in a run: each layer's output is the sum of what all features up to it write.
#[test]
fn a_cross_layer_transcoder_writes_to_later_layers() {
    let model = model("toy").unwrap();
    let set = DictionaryOptions::new().open_set(fixtures().join("circuit_tracer/toy_clt")).unwrap();
    let spliced = model.with_saes(set.dictionaries().to_vec(), SaeOptions::new()).unwrap();
    let (logits, cache) = spliced.run_with_cache([1, 5, 9, 2]).unwrap();
    for (layer, dictionary) in set.dictionaries().iter().enumerate() {
        let shown = &cache[hook::sae_recons(hook::mlp_out(layer))];
        let mut sum = shown.zeros_like() + dictionary.b_dec();
        for (earlier, from) in set.dictionaries().iter().enumerate().take(layer + 1) {
            let acts = &cache[hook::sae_acts_post(hook::mlp_out(earlier))];
            let w_dec = from
                .decoder_rows(layer - earlier, &Tensor::arange(from.d_sae() as i64, (Kind::Int64, tch::Device::Cpu)));
            sum = acts.matmul(&w_dec.unwrap()) + sum;
        }
        let differs = diff("recons", shown, &sum) / shown.abs().max().double_value(&[]).max(1.0);
        assert!(differs < TOLERANCE, "layer {layer}: {differs:.1e}");
        assert!(cache[hook::mlp_out(layer)].equal(&cache[hook::sae_output(hook::mlp_out(layer))]));
    }
    // With the error term nothing changes, and an ablation in the first layer reaches the last one's reconstruction.
    let exact = model.with_saes(set.dictionaries().to_vec(), SaeOptions::new().error_term(true)).unwrap();
    assert!(diff("logits", &exact.forward([1, 5, 9, 2]).unwrap(), &model.forward([1, 5, 9, 2]).unwrap()) < TOLERANCE);
    assert!(!logits.equal(&model.forward([1, 5, 9, 2]).unwrap()));
    let alone = model.with_saes([set.dictionaries()[0].clone()], SaeOptions::new());
    assert!(alone.unwrap_err().to_string().contains("whose own dictionary is not attached"));
}

#[test]
fn kinds_that_no_fixture_has_are_as_their_formulae_say() {
    // Relu with a tanh, the same weights as those of the standard case.
    let case = Case::open("toy_standard");
    let standard = case.dictionary(DictionaryOptions::new());
    let mut config = standard.config().clone();
    config.activation = FeatureActivation::TanhRelu;
    let weights = tch_lens::sae::DictionaryWeights {
        w_enc: standard.w_enc(),
        b_enc: standard.b_enc(),
        w_dec: standard.w_dec().unwrap(),
        b_dec: standard.b_dec(),
        w_skip: None,
        threshold: None,
        b_gate: None,
        r_mag: None,
    };
    let tanh = Dictionary::new(config, weights).unwrap();
    let x = case.want("x");
    assert!(diff("tanh", &tanh.encode(x).unwrap(), &standard.encode(x).unwrap().tanh()) < 1e-6);
}
