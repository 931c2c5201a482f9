//! Caches in files: what is opened is what was saved, bit for bit and in every analysis, with the model and without; and what is no such
//! file, or another model's, is an error.

use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use tch::{Kind, Tensor};
use tch_lens::{
    hook, AccumulateOptions, ActivationCache, DecomposeOptions, Error, FileSink, FullOptions, GenerateOptions,
    HeadOptions, HookedTransformer, Hooks, LensOptions, LoadOptions, PaddingSide, Patch, ReturnType, RunOptions,
    SinkEntry, StepOptions, TokenizerError, Tokens,
};

use crate::common::{child, families, fixtures, raw};

/// Prompts of different lengths, of vocabularies as small as 16.
fn prompts() -> Vec<Vec<i64>> {
    vec![vec![5, 14, 3, 10, 9], vec![7, 4]]
}

/// Prompts of one length.
fn rows() -> Vec<Vec<i64>> {
    vec![vec![5, 14, 3, 10, 9], vec![7, 4, 12, 3, 3]]
}

/// All that a cache knows is the same.
fn same(what: &str, opened: &ActivationCache, saved: &ActivationCache) {
    assert!(opened.keys().eq(saved.keys()), "{what}");
    for (point, tensor) in saved {
        let found = &opened[*point];
        assert_eq!((found.size(), found.kind()), (tensor.size(), tensor.kind()), "{what}, {point}");
        // NaN equals NaN here: the bits are compared.
        assert!(bits(found).equal(&bits(tensor)), "{what}, {point}");
        assert_eq!(opened.positions_of(*point).unwrap(), saved.positions_of(*point).unwrap(), "{what}, {point}");
    }
    assert!(opened.tokens().ids.equal(&saved.tokens().ids), "{what}");
    assert_eq!(opened.tokens().mask, saved.tokens().mask, "{what}");
    assert_eq!((opened.positions(), opened.has_batch_dim()), (saved.positions(), saved.has_batch_dim()), "{what}");
    assert!(opened.changed().eq(saved.changed()), "{what}");
    assert_eq!(opened.model().config(), saved.model().config(), "{what}");
}

fn bits(tensor: &Tensor) -> Tensor {
    let tensor = tensor.contiguous().view(-1);
    match tensor.kind().elt_size_in_bytes() {
        8 => tensor.view_dtype(Kind::Int64),
        4 => tensor.view_dtype(Kind::Int),
        2 => tensor.view_dtype(Kind::Int16),
        _ => tensor,
    }
}

/// What each analysis gives: its numbers, or its sentence.
fn analyses(cache: &ActivationCache) -> Vec<Result<Tensor, String>> {
    let values = |stack: tch_lens::Result<tch_lens::analysis::ResidualStack>| {
        stack.map(|stack| stack.tensor()).map_err(|error| error.to_string())
    };
    let attributed = cache
        .decompose_resid(DecomposeOptions::default())
        .and_then(|stack| Ok(cache.logit_attrs(&stack, 3)?.tensor()))
        .map_err(|error| error.to_string());
    vec![
        values(cache.accumulated_resid(AccumulateOptions::new().apply_ln(true))),
        values(cache.decompose_resid(DecomposeOptions::default())),
        values(cache.stack_head_results(HeadOptions::new())),
        values(cache.get_full_resid_decomposition(FullOptions::new().expand_neurons(false))),
        attributed,
        cache.logit_lens(LensOptions::new().pos(-1)).map(|lens| lens.tensor()).map_err(|error| error.to_string()),
    ]
}

#[test]
fn every_family_opens_what_it_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let of_transformers = ["deepseek_v3", "qwen3_moe", "jetmoe"].map(|name| {
        let model = LoadOptions::new().no_processing().open(fixtures().join("transformers").join(name)).unwrap();
        (name.to_string(), model)
    });
    for (name, model) in families().into_iter().map(|name| (name.clone(), raw(&name))).chain(of_transformers) {
        let run = || RunOptions::new().cache(model.hook_names());
        let changed = || Hooks::new().patch(hook::z(1), Patch::scale(2.0).head(0)).replace("v_input", |x, _| x * 2.0);
        let plain = model.run([5i64, 14, 3, 10, 9], run()).unwrap().cache;
        let padded = model.run(prompts(), run()).unwrap().cache;
        let mut caches = vec![
            ("plain", plain.clone()),
            ("without batch", plain.remove_batch_dim().unwrap()),
            ("padded", padded.clone()),
            ("a row", padded.apply_slice_to_batch_dim(1..).unwrap()),
            ("some positions", model.run(rows(), run().pos([3, 1]).logits_at([4, 3])).unwrap().cache),
        ];
        if let Ok(output) = model.run(prompts(), run().hooks(changed())) {
            caches.push(("changed", output.cache));
        }
        for (what, cache) in caches {
            let what = format!("{name}, {what}");
            cache.save(&path).unwrap();
            let opened = model.open_cache(&path).unwrap();
            same(&what, &opened, &cache);
            same(&what, &ActivationCache::open(&path).unwrap(), &cache);
            let (found, expected) = (analyses(&opened), analyses(&cache));
            for (nth, (found, expected)) in found.iter().zip(&expected).enumerate() {
                match (found, expected) {
                    (Ok(found), Ok(expected)) => assert!(bits(found).equal(&bits(expected)), "{what}, analysis {nth}"),
                    (found, expected) => assert_eq!(found.as_ref().err(), expected.as_ref().err(), "{what}"),
                }
            }
            // A cache that was opened is saved again.
            opened.save(&path).unwrap();
            same(&what, &model.open_cache(&path).unwrap(), &cache);
        }
        // Written while the run goes on, rows of experts included.
        for hooked in [false, true] {
            let run = || if hooked { run().hooks(changed()) } else { run() };
            let Ok(kept) = model.run(prompts(), run()) else { continue };
            model.run(prompts(), run().sink(FileSink::new(&path))).unwrap();
            same(&format!("{name}, streamed"), &model.open_cache(&path).unwrap(), &kept.cache);
        }
    }
}

#[test]
fn kinds_stay_and_generations_are_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    for kind in [Kind::BFloat16, Kind::Half, Kind::Double] {
        let model = raw("llama_gqa_tied").to_kind(kind).unwrap();
        let cache = model.run(prompts(), RunOptions::new().cache(model.hook_names())).unwrap().cache;
        cache.save(&path).unwrap();
        let opened = model.open_cache(&path).unwrap();
        assert_eq!(opened[("z", 0)].kind(), kind);
        same(&format!("{kind:?}"), &opened, &cache);
        let options = GenerateOptions::new().do_sample(false).stop_at_eos(false).max_new_tokens(4);
        let steps = StepOptions::new().cache(model.hook_names());
        let cache = model.generate_with(prompts(), &options, steps).unwrap().cache.unwrap();
        cache.save(&path).unwrap();
        same(&format!("{kind:?}, generated"), &model.open_cache(&path).unwrap(), &cache);
    }
}

#[test]
fn another_model_s_cache_is_an_error_that_says_what_differs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let model = raw("gpt2");
    let tokens = [5i64, 14, 3];
    model.run_with_cache(tokens).unwrap().1.save(&path).unwrap();
    let said = |model: &HookedTransformer| match model.open_cache(&path).unwrap_err() {
        error @ Error::CacheOfOtherModel { .. } => error.to_string().split(": ").skip(1).collect::<Vec<_>>().join(": "),
        other => panic!("{other}"),
    };
    let double = model.to_kind(Kind::Double).unwrap();
    assert_eq!(said(&double), "its weights are F32, and this model's F64");
    let processed = LoadOptions::new().open(crate::common::Fixture::folder("gpt2")).unwrap();
    let differs = said(&processed);
    let config = differs.starts_with("its `norms"); // folding changes the norms' kind
    assert!(
        config || differs.starts_with("its weight processing is none, and this model's \"fold_ln done"),
        "{differs}"
    );
    let other = said(&raw("llama_gqa_tied"));
    assert!(other.starts_with("its `") && other.contains("and this model's"), "{other}");
    // One entry of one weight.
    let trained = model.to_kind(Kind::Double).unwrap().to_kind(Kind::Float).unwrap();
    trained.open_cache(&path).unwrap();
    let hash = trained.weights_hash().unwrap();
    assert_eq!(hash, model.weights_hash().unwrap());
    let _ = tch::no_grad(|| trained.w_pos().unwrap().get(7).get(3).g_add_scalar_(1e-3));
    assert_ne!(trained.weights_hash().unwrap(), hash);
    assert_eq!(said(&trained), "its weights have the same shapes and other values");
}

/// What needs no weights works without them; what does says so.
#[test]
fn a_cache_without_its_model_says_what_it_lacks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let model = HookedTransformer::toy().unwrap();
    let (_, cache) = model.run_with_cache("When Mary and John went to the shop").unwrap();
    cache.save(&path).unwrap();
    let alone = ActivationCache::open(&path).unwrap();
    let stacks = [&alone, &cache].map(|cache| cache.accumulated_resid(AccumulateOptions::new()).unwrap());
    assert_eq!(stacks[0].tensor(), stacks[1].tensor());
    assert_eq!(alone.model().kind(), Kind::Float);
    let lens = alone.logit_lens(LensOptions::new()).map(drop).unwrap_err();
    assert!(matches!(lens, Error::NoWeights), "{lens}");
    for error in [
        alone.stack_head_results(HeadOptions::new()).map(drop).unwrap_err(),
        alone.model().w_u().map(drop).unwrap_err(),
        alone.model().weights_hash().map(drop).unwrap_err(),
        tch_lens::KeyValueStore::new(alone.model(), 1, 4).map(drop).unwrap_err(),
        alone.save(folder.path().join("again.safetensors")).unwrap_err(),
    ] {
        assert!(matches!(error, Error::NoWeights), "{error}");
    }
    assert!(matches!(alone.tokenizer(), Err(Error::Tokenizer(TokenizerError::Missing))));
    // Other runs take its activations.
    let frozen = Hooks::new().freeze("pattern", &alone);
    assert!(model.run_with_hooks("When Mary and John went to the shop", frozen).is_ok());
    // What changes an opened tensor in place changes memory, and not the file.
    let _ = alone[("z", 0)].shallow_clone().zero_();
    assert_eq!(model.open_cache(&path).unwrap()[("z", 0)], cache[("z", 0)]);
}

#[test]
fn a_file_that_is_no_cache_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let said = || ActivationCache::open(&path).unwrap_err();
    assert!(matches!(said(), Error::Io { .. }));
    for bytes in [&b""[..], b"no tensors", b"\xff\xff\xff\xff\xff\xff\xff\x7f{}"] {
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(said(), Error::Malformed { .. } | Error::Io { .. }), "{}", said());
    }
    Tensor::write_safetensors(&[("a", Tensor::from(1.0))], &path).unwrap();
    assert!(said().to_string().ends_with("does not hold an activation cache: its metadata does not describe a run"));
    // A closure is a sink that wants no description, and none is made.
    let model = raw("gpt2");
    let run = RunOptions::new().cache("z").return_type(ReturnType::None).sink(|_: SinkEntry| ());
    model.run([1i64, 2], run).unwrap();
}

/// The file of a small cache.
fn saved() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let model = raw("mixtral");
    let hooks = Hooks::new().patch(hook::z(0), Patch::zero());
    let run = RunOptions::new().cache(model.hook_names()).hooks(hooks).logits_at([1, 3]);
    model.run(rows(), run).unwrap().cache.save(&path).unwrap();
    std::fs::read(&path).unwrap()
}

/// What is damaged is an error, or still a cache whose every entry can be read.
fn opens_or_fails(path: &Path) {
    if let Ok(cache) = ActivationCache::open(path) {
        for (_, tensor) in &cache {
            assert!(tensor.numel() < 1 << 20);
            let _ = bits(tensor).to_kind(Kind::Double).sum(Kind::Double);
        }
        let _ = analyses(&cache);
        let _ = cache.apply_slice_to_batch_dim(0);
    }
}

#[test]
fn damaged_files_are_errors() {
    let bytes = saved();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8_lossy(&bytes[8..header]).trim_end().len();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let config = ProptestConfig { cases: 400, ..crate::common::properties() };
    let change = (0..text, any::<u8>(), prop::collection::vec(any::<u8>(), 0..6), 0..4usize);
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&change, |(place, byte, more, how)| {
            let mut damaged = bytes.clone();
            match how {
                // Digits stay digits, so that the JSON often stays valid.
                0 if damaged[8 + place].is_ascii_digit() => damaged[8 + place] = b'0' + byte % 10,
                0 | 1 => damaged[8 + place] = byte,
                2 => damaged.truncate(place * bytes.len() / text),
                _ => {
                    let end = (8 + place + more.len()).min(header);
                    damaged[8 + place..end].copy_from_slice(&more[..end - 8 - place]);
                }
            }
            std::fs::write(&path, &damaged).unwrap();
            opens_or_fails(&path);
            Ok(())
        })
        .unwrap();
}

/// Numbers of the description that do not fit the tensors.
#[test]
fn a_description_that_does_not_fit_is_an_error() {
    let bytes = saved();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    let description = json["__metadata__"]["activation_cache"].as_str().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let error = |from: &str, to: &str| {
        assert!(description.contains(from), "{from} is not in {description}");
        let mut json = json.clone();
        json["__metadata__"]["activation_cache"] = description.replacen(from, to, 1).into();
        let text = serde_json::to_vec(&json).unwrap();
        let bytes = [&(text.len() as u64).to_le_bytes()[..], &text, &bytes[header..]].concat();
        std::fs::write(&path, bytes).unwrap();
        let error = ActivationCache::open(&path).unwrap_err();
        assert!(matches!(error, Error::SavedCache { .. }), "{error}");
        error.to_string()
    };
    let all = r#""all":{"range":{"start":0,"step":1,"len":5}}"#;
    for (from, to, expected) in [
        (r#""version":1"#, r#""version":2"#, "it is of version 2, and this crate reads version 1"),
        (all, &all.replace("5", "4"), "its positions are not those of its tokens"),
        (all, &all.replace("5", "9223372036854775807"), "its positions are not those of its tokens"),
        (all, &all.replace("\"start\":0", "\"start\":9223372036854775806"), "its positions are not"),
        (all, &all.replace("\"step\":1", "\"step\":0"), "its positions are not"),
        (r#""rows":{"range":{"start":0,"step":1,"len":2}}"#, r#""rows":{"list":[0]}"#, "its rows are not those"),
        (r#""has_batch_dim":true"#, r#""has_batch_dim":false"#, "its rows are not those"),
        (r#""n_layers":"#, r#""n_layers":99999999"#, "n_layers"),
        (r#""kind":"F32""#, r#""kind":"I64""#, "its weights are `I64`"),
        (r#""kind":"F32""#, r#""kind":"BF16""#, "which the model's is not"),
        (r#""changed":["blocks.0.attn.hook_z"]"#, r#""changed":["blocks.0.attn.hook_zz"]"#, "there is no hook point"),
        (r#""d_vocab_out":"#, r#""d_vocab_out":1"#, "which the model's is not"),
    ] {
        let found = error(from, to);
        assert!(found.contains(expected), "{found:?} is not {expected:?}");
    }
}

/// Tokens and a mask of another kind are none.
#[test]
fn what_stands_beside_the_tokens_is_like_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let tokens = Tokens::padded(&prompts(), 0, PaddingSide::Left).unwrap();
    raw("gpt2").run(&tokens, RunOptions::new().cache(["resid_pre"])).unwrap().cache.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[8..header]).unwrap();
    for (kind, other) in [("BOOL", "U8"), ("I64", "F64")] {
        let mut json = json.clone();
        let found: Vec<_> = json.as_object_mut().unwrap().values_mut().filter(|entry| entry["dtype"] == kind).collect();
        assert_eq!(found.len(), 1, "the mask, and the tokens");
        found.into_iter().for_each(|entry| entry["dtype"] = other.into());
        let text = serde_json::to_vec(&json).unwrap();
        std::fs::write(&path, [&(text.len() as u64).to_le_bytes()[..], &text, &bytes[header..]].concat()).unwrap();
        let error = ActivationCache::open(&path).unwrap_err();
        assert!(error.to_string().contains("what stands beside them"), "{error}");
    }
}

/// The seed of the fuzz target is a file that opens. `TCH_LENS_UPDATE_SEEDS=1` writes it.
#[test]
fn the_seed_of_the_fuzz_target_opens() {
    let path = crate::common::repository().join("fuzz/seeds/saved_cache/small.safetensors");
    if std::env::var_os("TCH_LENS_UPDATE_SEEDS").is_some() {
        let hooks = Hooks::new().patch(hook::z(1), Patch::zero());
        let run = RunOptions::new().cache(["z", "pattern", "ln_final.hook_scale"]).hooks(hooks).logits_at(-1);
        raw("gpt2").run(rows(), run).unwrap().cache.save(&path).unwrap();
    }
    let cache = ActivationCache::open(&path).unwrap();
    assert_eq!((cache.len(), cache[("z", 1)].size()[..2].to_vec()), (5, vec![2, 5]));
    assert!(cache.is_changed(("z", 1)) && cache[("z", 1)].abs().max().double_value(&[]) == 0.0);
    assert_eq!(cache.positions_of("ln_final.hook_scale").unwrap().of_row(0), [4]);
}

/// A process that is killed while it writes leaves what was there before.
#[test]
#[cfg(target_os = "linux")]
fn a_killed_run_leaves_no_half_file() {
    if let Some(path) = child::argument() {
        let model = raw("gpt2");
        let hooks = Hooks::new().observe(hook::z(1), |_, _| -> () {
            Command::new("kill").args(["-9", &std::process::id().to_string()]).status().unwrap();
            std::thread::park();
        });
        let run = RunOptions::new().cache(model.hook_names()).hooks(hooks).sink(FileSink::new(path));
        let _ = model.run([5i64, 14, 3], run);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let kill = || {
        let name = "saved_caches::a_killed_run_leaves_no_half_file";
        child::run(name, path.to_str().unwrap(), |_| ()).unwrap_err();
    };
    kill();
    assert!(!path.exists());
    let parts = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(parts, 1, "the process was not killed while it wrote");
    let (_, cache) = raw("gpt2").run_with_cache([7i64, 8]).unwrap();
    cache.save(&path).unwrap();
    kill();
    same("what was there before", &raw("gpt2").open_cache(&path).unwrap(), &cache);
}

#[test]
fn python_s_safetensors_opens_the_file() {
    let python = std::env::var("TCH_LENS_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import safetensors, numpy"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "skipped: Python reads a cache ({python} has no safetensors and numpy; TCH_LENS_PYTHON names another)"
        );
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.safetensors");
    let model = HookedTransformer::toy().unwrap();
    let (_, cache) = model.run_with_cache("When Mary and John went").unwrap();
    cache.save(&path).unwrap();
    let script = "import sys, json
from safetensors import safe_open
with safe_open(sys.argv[1], 'np') as file:
    about = json.loads(file.metadata()['activation_cache'])
    z = file.get_tensor('blocks.1.attn.hook_z')
    print(len(list(file.keys())), about['model']['config']['n_layers'], *file.get_tensor('tokens')[0], *z.shape)
    print(float(z.astype('float64').sum()))";
    let output = Command::new(&python).args(["-c", script]).arg(&path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (first, second) = text.trim().split_once('\n').unwrap_or_else(|| panic!("{:?}", output.stderr));
    let ids = cache.tokens().rows().unwrap()[0].iter().map(i64::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(first, format!("{} 4 {ids} 1 6 4 32", cache.len() + 1));
    let sum = cache[("z", 1)].to_kind(Kind::Double).sum(Kind::Double).double_value(&[]);
    assert!((second.parse::<f64>().unwrap() - sum).abs() < 1e-9);
}

/// `.npy` files and ndarray: what tch converts is of the same numbers.
#[test]
fn activations_are_arrays_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("z.npy");
    let model = HookedTransformer::toy().unwrap();
    let (_, cache) = model.run_with_cache("When Mary and John went").unwrap();
    let z = &cache[("z", 1)];
    z.write_npy(&path).unwrap();
    assert_eq!(Tensor::read_npy(&path).unwrap(), *z);
    let array: ndarray::ArrayD<f32> = z.try_into().unwrap();
    assert_eq!(array.shape(), [1, 6, 4, 32]);
    assert_eq!(array[[0, 5, 3, 31]], z.double_value(&[0, 5, 3, 31]) as f32);
    let doubled = Tensor::try_from(array.mapv(|x| 2.0 * x)).unwrap();
    let hooks = Hooks::new().patch(("z", 1), Patch::set(&doubled));
    let changed = model.run("When Mary and John went", RunOptions::new().hooks(hooks).cache("z")).unwrap().cache;
    assert!(changed[("z", 1)].equal(&(z * 2.0)));
}
