//! What a run with dictionaries keeps and computes: features as sparse rows, pre-activations when they are asked for, no neurons where nothing
//! looks at them.

use tch::{Device, Kind, Tensor};
use tch_lens::sae::{DictionaryConfig, DictionaryWeights, FeatureActivation, SaeOptions};
use tch_lens::{
    hook, ActivationCache, Config, Dictionary, DictionarySet, FileSink, GenerateOptions, HookPoint, HookedTransformer,
    Hooks, Patch, ReturnType, RunOptions, StepOptions,
};

use crate::common::child;
use crate::common::memory::peak_of;
use crate::common::{families, raw};

const TEXTS: [&str; 2] = ["When Mary and John went to the shop", "When Anna and Peter went to the park"];

fn toy() -> HookedTransformer {
    let set = DictionarySet::toy().unwrap();
    HookedTransformer::toy().unwrap().with_saes(set.dictionaries().to_vec(), SaeOptions::new()).unwrap()
}

fn acts(layer: usize) -> HookPoint {
    hook::sae_acts_post(hook::mlp_out(layer))
}

fn pre(layer: usize) -> HookPoint {
    hook::sae_acts_pre(hook::mlp_out(layer))
}

/// Whether the cache holds an activation as sparse rows: then these are not made again each time.
fn holds_rows(cache: &ActivationCache, point: HookPoint) -> bool {
    let (first, second) = (cache.sparse(point).unwrap(), cache.sparse(point).unwrap());
    first.values().data_ptr() == second.values().data_ptr()
}

/// What hooks see is whole activations; what the cache holds says the same.
#[test]
fn features_are_cached_as_sparse_rows() {
    let model = toy();
    let mut seen = std::collections::HashMap::new();
    let points = (0..4).flat_map(|layer| [acts(layer), pre(layer)]).collect::<Vec<_>>();
    let hooks = Hooks::new().observe(points, |tensor: &Tensor, point: HookPoint| {
        seen.insert(point, tensor.copy());
    });
    model.run(TEXTS.to_vec(), RunOptions::new().hooks(hooks)).unwrap();
    let (_, cache) = model.run_with_cache(TEXTS.to_vec()).unwrap();
    let mut worst = 0.0f64;
    for layer in 0..4 {
        assert!(holds_rows(&cache, acts(layer)), "layer {layer}");
        let rows = cache.sparse(acts(layer)).unwrap();
        assert_eq!(rows.size(), cache[acts(layer)].size());
        for (point, found) in [
            (acts(layer), &cache[acts(layer)]),
            (acts(layer), &rows.to_dense().unwrap()),
            (pre(layer), &cache[pre(layer)]),
        ] {
            worst = worst.max((found - &seen[&point]).abs().max().double_value(&[]));
        }
        assert!(rows.len() < cache[acts(layer)].numel() / 4);
    }
    println!("largest difference from what a hook sees: {worst:.1e}");
    assert!(worst < 1e-5);
    // Some positions, one row of the batch, and what is left after both.
    let some = model.run(TEXTS.to_vec(), RunOptions::new().cache([acts(1), pre(1)]).pos([-3, -1])).unwrap().cache;
    let of_one = some.apply_slice_to_batch_dim(1).unwrap();
    assert!(holds_rows(&of_one, acts(1)));
    for point in [acts(1), pre(1)] {
        let whole = seen[&point].select(0, 1);
        let wanted = Tensor::stack(&[whole.select(0, -3), whole.select(0, -1)], 0);
        assert!((&of_one[point] - wanted).abs().max().double_value(&[]) < 1e-5, "{point}");
    }
    // What a patch leaves is kept, as rows too; dense where a sink takes it.
    let feature = cache[acts(2)].select(0, 0).select(0, -1).argmax(-1, false).int64_value(&[]);
    let hooks = Hooks::new().patch(acts(2).feature(feature), Patch::zero());
    let run = RunOptions::new().hooks(hooks).cache([acts(2), pre(2)]);
    let patched = model.run(TEXTS.to_vec(), run).unwrap().cache;
    assert!(holds_rows(&patched, acts(2)));
    let wanted = &cache[acts(2)] * Tensor::arange(512, (Kind::Int64, Device::Cpu)).ne(feature).to_kind(Kind::Float);
    let differs = (&patched[acts(2)] - wanted).abs().max().double_value(&[]);
    println!("with a patch: {differs:.1e}");
    assert!(differs < 1e-5);
    assert!(patched.is_changed(acts(2)));
    // A patch from the cache restores it.
    let restored =
        model.run(TEXTS.to_vec(), RunOptions::new().hooks(Hooks::new().freeze(acts(2), &cache)).cache(acts(2)));
    assert!((&restored.unwrap().cache[acts(2)] - &cache[acts(2)]).abs().max().double_value(&[]) < 1e-6);
}

#[test]
fn sparse_rows_are_saved_and_opened() {
    let model = toy();
    let (_, cache) = model.run_with_cache(TEXTS.to_vec()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (path, streamed) = (folder.path().join("cache"), folder.path().join("streamed"));
    cache.save(&path).unwrap();
    model
        .run(TEXTS.to_vec(), RunOptions::new().cache(tch_lens::HookFilter::All).sink(FileSink::new(&streamed)))
        .unwrap();
    let dense = model.open_cache(&streamed).unwrap();
    let opened = model.open_cache(&path).unwrap();
    assert_eq!(opened.keys().collect::<Vec<_>>(), cache.keys().collect::<Vec<_>>());
    for layer in 0..4 {
        assert!(holds_rows(&opened, acts(layer)));
        assert!(opened[acts(layer)].equal(&cache[acts(layer)]));
        assert!(opened[pre(layer)].equal(&cache[pre(layer)]));
    }
    let error = model.without_saes().open_cache(&path).unwrap_err().to_string();
    assert!(error.contains("no dictionary is attached there"), "{error}");
    assert!((&dense[acts(0)] - &cache[acts(0)]).abs().max().double_value(&[]) < 1e-5);
    let length = |path| std::fs::metadata(path).unwrap().len();
    println!("{} bytes with sparse rows, {} with dense ones", length(&path), length(&streamed));
    assert!(length(&path) + 4 * 18 * 512 * 3 < length(&streamed));
    // What is wrong with the rows of a file is one sentence.
    let read = Tensor::read_safetensors(&path).unwrap();
    let name = acts(1).to_string();
    let metadata = metadata(&path);
    for (part, change, wanted) in [
        ("offsets", &(|x: &Tensor| x + 1) as &dyn Fn(&Tensor) -> Tensor, "do not rise from 0"),
        ("offsets", &|x: &Tensor| x.narrow(0, 0, 5), "expected those of 18 rows"),
        ("features", &|x: &Tensor| x + 512, "but there are 512"),
        ("features", &|x: &Tensor| x - 512, "but there are 512"),
        ("features", &|x: &Tensor| x.to_kind(Kind::Float), "are of kinds"),
        ("values", &|x: &Tensor| x.narrow(0, 0, 3), "are of sizes"),
    ] {
        let tensors: Vec<(String, Tensor)> = read
            .iter()
            .map(|(n, x)| (n.clone(), if *n == format!("{name}.{part}") { change(x) } else { x.shallow_clone() }))
            .collect();
        let broken = folder.path().join("broken");
        write(&broken, &tensors, &metadata);
        let error = model.open_cache(&broken).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.contains(&name), "{error}");
    }
    let tensors: Vec<_> = read
        .iter()
        .filter(|(n, _)| *n != format!("{name}.values"))
        .map(|(n, x)| (n.clone(), x.shallow_clone()))
        .collect();
    let broken = folder.path().join("broken");
    write(&broken, &tensors, &metadata);
    assert!(model.open_cache(&broken).unwrap_err().to_string().contains("are not all of"));
}

/// The metadata of a safetensors file.
fn metadata(path: &std::path::Path) -> serde_json::Value {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header["__metadata__"].clone()
}

/// Writes tensors with metadata.
fn write(path: &std::path::Path, tensors: &[(String, Tensor)], metadata: &serde_json::Value) {
    Tensor::write_safetensors(tensors, path).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header["__metadata__"] = metadata.clone();
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(&bytes[8 + length..]);
    std::fs::write(path, file).unwrap();
}

#[test]
fn a_generation_joins_sparse_rows() {
    let model = toy();
    let options = GenerateOptions::new().do_sample(false).stop_at_eos(false).max_new_tokens(3);
    let steps = StepOptions::new().cache([acts(1), pre(1)]);
    let generated = model.generate_with(TEXTS.to_vec(), &options, steps).unwrap();
    let cache = generated.cache.as_ref().unwrap();
    assert!(holds_rows(cache, acts(1)));
    let whole = model.run(&generated.tokens, RunOptions::new().cache([acts(1), pre(1)])).unwrap().cache;
    for point in [acts(1), pre(1)] {
        let n = cache[point].size()[1];
        let differs = (&cache[point] - whole[point].narrow(1, 0, n)).abs().max().double_value(&[]);
        println!("{point}: {differs:.1e} at {n} positions");
        assert!(differs < 1e-4);
    }
}

/// A change of what is encoded counts in the error term, whether or not all features are formed.
#[test]
fn the_error_is_that_of_the_unchanged_input() {
    let model = HookedTransformer::toy().unwrap();
    let sae = dictionary(DictionaryConfig::new(hook::resid_post(1), FeatureActivation::TopK(8)), 64, 128);
    let spliced = model.with_saes([sae], SaeOptions::new().error_term(true)).unwrap();
    let input = hook::sae_input(hook::resid_post(1));
    let hooks = || Hooks::new().patch(input, Patch::zero());
    let run = |cache: Vec<HookPoint>| spliced.run(TEXTS[0], RunOptions::new().hooks(hooks()).cache(cache)).unwrap();
    let error = hook::sae_error(hook::resid_post(1));
    let clean = spliced.run(TEXTS[0], RunOptions::new().cache(error)).unwrap().cache[error].shallow_clone();
    for kept in [vec![error], vec![error, hook::sae_acts_post(hook::resid_post(1))]] {
        let differs = (&run(kept).cache[error] - &clean).abs().max().double_value(&[]);
        assert!(differs < 1e-4, "{differs:.1e}");
    }
    assert!(!spliced.run_with_hooks(TEXTS[0], hooks()).unwrap().equal(&model.forward(TEXTS[0]).unwrap()));
}

fn dictionary(config: DictionaryConfig, d_sae: i64, d: i64) -> Dictionary {
    tch::manual_seed(1);
    let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, Device::Cpu)) * 0.1;
    let weights = DictionaryWeights {
        w_enc: random(&[d_sae, d]),
        b_enc: random(&[d_sae]),
        w_dec: random(&[d_sae, d]),
        b_dec: random(&[d]),
        w_skip: None,
        threshold: None,
        b_gate: None,
        r_mag: None,
    };
    Dictionary::new(config, weights).unwrap()
}

/// Dense rows of 12 × 24,576 features at 256 positions would take 302 MB, and as much again for their pre-activations.
#[test]
fn a_run_of_many_features_keeps_no_dense_rows() {
    if child::argument().is_none() {
        let text =
            child::run("dictionary_caches::a_run_of_many_features_keeps_no_dense_rows", "measure", |_| ()).unwrap();
        println!("{}", text.lines().filter(|line| line.starts_with("TopK")).collect::<Vec<_>>().join("\n"));
        return;
    }
    let model = HookedTransformer::init(Config::new(12, 16, 2, 64, 256), 0).unwrap();
    let config = |layer| DictionaryConfig::new(hook::resid_post(layer), FeatureActivation::TopK(32));
    let saes: Vec<Dictionary> = (0..12).map(|layer| dictionary(config(layer), 24_576, 16)).collect();
    let spliced = model.with_saes(saes, SaeOptions::new()).unwrap();
    let ids = Tensor::arange(256, (Kind::Int64, Device::Cpu)).remainder(64).unsqueeze(0);
    spliced.run(ids.narrow(1, 0, 8), RunOptions::new()).unwrap(); // libtorch's own start
    let (cache, peak) = peak_of(|| spliced.run_with_cache(&ids).unwrap().1);
    println!(
        "TopK 32 of 24,576 features in 12 layers, 256 positions: a full cache takes {:.0} MB at its peak",
        peak as f64 / 1e6
    );
    let rows: usize =
        (0..12).map(|layer| cache.sparse(hook::sae_acts_post(hook::resid_post(layer))).unwrap().len()).sum();
    assert_eq!(rows, 12 * 256 * 32);
    assert!(peak < 100_000_000, "{peak} bytes");
}

/// A transcoder without an error term stands for the MLP, whose neurons are not computed unless something looks at them. The neurons' weights are
/// not numbers here, so whatever uses them shows it.
#[test]
fn replaced_neurons_are_not_computed() {
    let mut checked = 0;
    for family in families() {
        let model = raw(&family);
        let config = model.config();
        if config.attn_only() || config.n_layers < 2 {
            continue;
        }
        let Ok(broken) = without_neurons(&model) else { continue };
        let d = config.d_model as i64;
        let reads = if config.parallel_attn_mlp { hook::resid_pre } else { hook::resid_mid };
        let transcoder = |layer: usize| {
            let config = DictionaryConfig::new(reads(layer), FeatureActivation::Relu);
            dictionary(
                DictionaryConfig { hook_out: hook::mlp_out(layer), apply_b_dec_to_input: false, ..config },
                12,
                d,
            )
        };
        let saes: Vec<Dictionary> = (0..config.n_layers).map(transcoder).collect();
        let tokens = vec![vec![1i64, 4, 2, 3, 5]];
        let logits = |model: &HookedTransformer, options: SaeOptions, run: RunOptions| {
            let spliced = model.with_saes(saes.clone(), options).unwrap();
            spliced.run(tokens.clone(), run).unwrap().take_logits().unwrap()
        };
        let is_finite = |x: &Tensor| bool::try_from(x.isfinite().all()).unwrap();
        let found = logits(&broken, SaeOptions::new(), RunOptions::new());
        assert!(is_finite(&found), "{family}");
        assert!(found.equal(&logits(&model, SaeOptions::new(), RunOptions::new())), "{family}");
        let cached = logits(&broken, SaeOptions::new(), RunOptions::new().cache([acts(0), pre(0), hook::mlp_out(0)]));
        assert!(is_finite(&cached), "{family}");
        // What looks at them computes them, and so does a dictionary that encodes what they write.
        let own = dictionary(DictionaryConfig::new(hook::mlp_out(0), FeatureActivation::Relu), 12, d);
        let own = broken.with_saes([own], SaeOptions::new()).unwrap();
        assert!(!is_finite(&own.forward(tokens.clone()).unwrap()), "{family}");
        let error = hook::sae_error(hook::mlp_out(0));
        for (options, run) in [
            (SaeOptions::new().error_term(true), RunOptions::new()),
            (SaeOptions::new().exclude_tokens([1i64]), RunOptions::new()),
        ] {
            assert!(!is_finite(&logits(&broken, options, run)), "{family}");
        }
        let spliced = broken.with_saes(saes.clone(), SaeOptions::new()).unwrap();
        let seen =
            spliced.run(tokens.clone(), RunOptions::new().cache(error).return_type(ReturnType::None)).unwrap().cache;
        assert!(!is_finite(&seen[error]), "{family}");
        if config.experts().is_none() {
            let post = spliced.run(tokens.clone(), RunOptions::new().cache(hook::post(0))).unwrap();
            assert!(post.cache.contains(hook::post(0)), "{family}");
        }
        checked += 1;
    }
    println!("{checked} families");
    assert!(checked > 10);
}

/// The model with MLPs whose weights are not numbers.
fn without_neurons(model: &HookedTransformer) -> tch_lens::Result<HookedTransformer> {
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path())?;
    let path = folder.path().join("model.safetensors");
    let tensors: Vec<(String, Tensor)> = Tensor::read_safetensors(&path)
        .unwrap()
        .into_iter()
        .map(|(name, tensor)| {
            let of_neurons = name.contains("mlp") && !name.contains("ln");
            (name, if of_neurons { tensor * f64::NAN } else { tensor })
        })
        .collect();
    let metadata = metadata(&path);
    write(&path, &tensors, &metadata);
    HookedTransformer::from_pretrained(folder.path())
}
