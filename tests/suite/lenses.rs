//! Lenses against the package tuned-lens, TransformerLens 4.3 and identities: a lens of the identity is the logit lens, a Jacobian lens is
//! the mean of the full Jacobian, a Patchscope of a prompt in itself changes nothing.

use std::path::{Path, PathBuf};

use rstest::rstest;
use tch::{Device, Kind, Tensor};
use tch_lens::analysis::{Component, LogitLens};
use tch_lens::lens::{JacobianLens, JacobianLensOptions, Patchscope, TunedLens};
use tch_lens::{hook, GenerateOptions, HookedTransformer, LensOptions, LoadOptions, RunOptions};

use crate::common::models::{fresh, in_fp64, small};
use crate::common::{families, fixtures, mechanisms, raw, read, Tally};

/// Of logits and Jacobians in fp32, computed in another order of sums.
const TOLERANCE: f64 = 1e-4;

fn file(name: &str) -> PathBuf {
    fixtures().join("lenses").join(name)
}

fn eye(model: &HookedTransformer) -> Tensor {
    Tensor::eye(model.config().d_model as i64, (Kind::Double, Device::Cpu))
}

/// Numbers that depend on nothing but the seed.
fn numbers(shape: &[i64], seed: i64) -> Tensor {
    let n: i64 = shape.iter().product();
    let numbers: Vec<f64> = (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f64 / 504.5 - 1.0).collect();
    Tensor::from_slice(&numbers).view(shape)
}

// --- the tuned lens ---------------------------------------------------------------------------------------------------------

/// Logits and divergences of the package tuned-lens, from its own files, in both formats.
#[rstest]
#[case("capp_gpt2", "params.pt")]
#[case("capp_gpt2", "params.safetensors")]
#[case("stories260K", "params.pt")]
fn a_tuned_lens_reads_as_its_package_does(#[case] name: &str, #[case] params: &str) {
    let Some(models) = std::env::var_os("TCH_LENS_MODELS") else {
        return eprintln!("skipped: {name} (TCH_LENS_MODELS names no folder of real models)");
    };
    let model = HookedTransformer::from_pretrained_no_processing(Path::new(&models).join(name)).unwrap();
    let expected = read(&file(&format!("tuned_{name}/expected.safetensors")));
    let saved = file(&format!("tuned_{name}/tuned_lens"));
    let folder = tempfile::tempdir().unwrap();
    for one in ["config.json", params] {
        std::fs::copy(saved.join(one), folder.path().join(one)).unwrap();
    }
    let lens = TunedLens::open(&model, folder.path()).unwrap();
    assert_eq!(lens.base_model(), Some(name));
    let tokens = &expected["tokens"];
    let (_, cache) = model.run_with_cache(tokens).unwrap();
    let tuned = lens.read(&cache, LensOptions::new()).unwrap();
    let plain = cache.logit_lens(LensOptions::new()).unwrap();
    let n_layers = model.config().n_layers as i64;
    let last = (tokens.size()[1] - 2)..tokens.size()[1];
    let mut tally = Tally::default();
    for (what, lens) in [("tuned", &tuned), ("logit", &plain)] {
        let logits = lens.pos(last.clone()).unwrap().logits().narrow(0, 0, n_layers);
        tally.compare(&format!("{what} lens"), &logits, &expected[&format!("{what}_lens")], TOLERANCE);
        let divergences = lens.kl_to_final().unwrap().narrow(0, 0, n_layers); // [layer, batch, pos]
        tally.compare(&format!("{what} KL"), &divergences, &expected[&format!("kl_{what}_to_final")], TOLERANCE);
    }
    tally.finish(&format!("{name}, {params}"));
}

/// The map is `h + W h + b`, whatever the model's norms, positions and caps are.
#[test]
fn a_tuned_lens_is_an_affine_map_before_the_last_norm() {
    let mut tally = Tally::default();
    for family in families() {
        let model = raw(&family);
        let (n_layers, d) = (model.config().n_layers, model.config().d_model as i64);
        let map = |layer: usize| (numbers(&[d, d], layer as i64) * 0.1, numbers(&[d], 7 + layer as i64) * 0.3);
        let lens = TunedLens::new(&model, (0..n_layers).map(map).map(|(w, b)| (w, Some(b)))).unwrap();
        let cache =
            model.run([[5, 17, 3, 6], [9, 4, 4, 8]].map(Vec::from).to_vec(), RunOptions::new().cache("resid_pre"));
        let cache = cache.unwrap().cache;
        for layer in 0..n_layers {
            let stream = cache[hook::resid_pre(layer)].to_kind(Kind::Double);
            let (w, b) = map(layer);
            let want = &stream + stream.matmul(&w.tr()) + b;
            let got = lens.translate(&cache[hook::resid_pre(layer)], layer).unwrap();
            tally.compare(&format!("{family}, layer {layer}"), &got, &want, TOLERANCE);
        }
    }
    tally.finish("translated streams");
}

// --- the Jacobian lens ------------------------------------------------------------------------------------------------------

fn model_of(name: &str) -> HookedTransformer {
    match name {
        "toy" => LoadOptions::new().no_processing().toy().unwrap(),
        family => raw(family),
    }
}

/// Fit, readings and swaps are those of TransformerLens 4.3.
#[rstest]
#[case("gpt2")]
#[case("llama_gqa_tied")]
#[case("gemma2")]
#[cfg_attr(feature = "toy", case("toy"))]
fn a_jacobian_lens_is_fitted_and_read_as_transformer_lens_does(#[case] name: &str, #[values(1, 5, 64)] rows: usize) {
    if name == "toy" && rows != 64 {
        return; // the small models show that this number changes nothing
    }
    let model = model_of(name);
    let expected = read(&file(&format!("jacobian_{name}.safetensors")));
    let skip = expected["skip"].int64_value(&[]) as usize;
    let prompts = (0..3).map(|i| &expected[&format!("tokens.{i}")]);
    let options = JacobianLensOptions::new().skip_first(skip).rows_at_once(rows);
    let lens = JacobianLens::fit(&model, prompts, options).unwrap();
    assert_eq!((lens.n_prompts(), lens.layers().count()), (3, model.config().n_layers - 1));
    let mut tally = Tally::default();
    for layer in lens.layers() {
        let jacobian = lens.jacobian(layer).unwrap();
        tally.compare(&format!("J of layer {layer}"), &jacobian, &expected[&format!("J.{layer}")], TOLERANCE);
    }
    let tokens = &expected["readout.tokens"];
    let (logits, cache) = model.run_with_cache(tokens).unwrap();
    tally.compare("logits", &logits.select(0, 0), &expected["model.logits"], TOLERANCE);
    let reading = lens.read(&cache, LensOptions::new().batch(0)).unwrap();
    for layer in 0..model.config().n_layers {
        let row = match layer + 1 < model.config().n_layers {
            true => Component::ResidPre(layer + 1),
            false => Component::FinalPost,
        };
        let want = &expected[&format!("readout.{layer}")];
        tally.compare(&format!("reading of layer {layer}"), &reading.row(&row).unwrap(), want, 10.0 * TOLERANCE);
    }
    let pair = Vec::<i64>::try_from(&expected["swap.tokens"]).unwrap();
    for (i, alpha) in Vec::<f32>::try_from(&expected["swap.alpha"]).unwrap().into_iter().enumerate() {
        let hooks = lens.swap(pair[0], pair[1], lens.layers().collect::<Vec<_>>(), .., alpha.into()).unwrap();
        let logits = model.run_with_hooks(tokens, hooks).unwrap().select(0, 0);
        tally.compare(&format!("swap {alpha}"), &logits, &expected["swap"].get(i as i64), 10.0 * TOLERANCE);
    }
    tally.finish(&format!("{name}, {rows} rows at once"));
}

/// The published form, as it is saved in fp32 and fp16, a checkpoint of the fit, and the crate's own file.
#[test]
fn files_of_jacobian_lenses_hold_the_fit() {
    let model = raw("gpt2");
    let expected = &read(&file("jacobian_gpt2.safetensors"))["J.0"];
    let mut tally = Tally::default();
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("lens.safetensors");
    for (name, tolerance) in
        [("jacobian_gpt2.pt", 0.0), ("jacobian_gpt2_half.pt", 1e-3), ("jacobian_gpt2_checkpoint.pt", 1e-6)]
    {
        let lens = JacobianLens::open(&model, file(name)).unwrap();
        assert_eq!((lens.n_prompts(), lens.layers().collect::<Vec<_>>()), (3, vec![0]), "{name}");
        tally.compare(name, &lens.jacobian(0).unwrap(), expected, tolerance);
        lens.save(&own).unwrap();
        let again = JacobianLens::open(&model, &own).unwrap();
        assert_eq!((again.n_prompts(), again.jacobian(0).unwrap()), (3, lens.jacobian(0).unwrap()), "{name}, saved");
    }
    tally.finish("files");
    // The streams of a processed model lack their mean; those of the fit have it.
    let processed = LoadOptions::new().open(fixtures().join("gpt2")).unwrap();
    let error = JacobianLens::open(&processed, &own).unwrap_err().to_string();
    assert!(error.contains("center_writing_weights(false)"), "{error}");
    let lens = JacobianLens::new(&processed, [(0, eye(&processed))], 1).unwrap();
    lens.save(&own).unwrap();
    JacobianLens::open(&processed, &own).unwrap();
    let error = JacobianLens::open(&model, &own).unwrap_err().to_string();
    assert!(error.contains("center_writing_weights(true)"), "{error}");
    // Folded norms leave the streams as they are.
    let folded = LoadOptions::new().center_writing_weights(false).open(fixtures().join("gpt2")).unwrap();
    JacobianLens::open(&folded, file("jacobian_gpt2.pt")).unwrap();
}

/// Sums and means over the full Jacobian, entry by entry, in fp64.
#[test]
fn a_jacobian_lens_is_the_mean_of_the_full_jacobian() {
    let mut tally = Tally::default();
    let models =
        in_fp64().into_iter().filter(|(name, _)| ["gpt2", "gemma3", "mixtral", "alibi"].contains(&name.as_str()));
    for (name, model) in models {
        let ids = [5, 9, 3, 6, 11, 2];
        let (skip, n, d) = (1, ids.len() as i64, model.config().d_model as i64);
        let lens = JacobianLens::fit(&model, [&ids[..]], JacobianLensOptions::new().skip_first(1).layers([0])).unwrap();
        let last = hook::resid_post(model.config().n_layers - 1);
        let full = model.jacobian(&ids[..], RunOptions::new(), last, hook::resid_post(0)).unwrap();
        let counted = skip..n - 1;
        let want = Tensor::zeros([d, d], (Kind::Double, Device::Cpu));
        for later in counted.clone() {
            for entry in 0..d {
                let vector = Tensor::zeros([1, n, d], (Kind::Double, Device::Cpu));
                let _ = vector.get(0).get(later).get(entry).fill_(1.0);
                let gradient = full.vjp(&vector).unwrap().get(0).narrow(0, skip, n - 1 - skip).sum_dim_intlist(
                    [0i64].as_slice(),
                    false,
                    Kind::Double,
                );
                let _ = want.get(entry).g_add_(&gradient);
            }
        }
        let want = want / (n - 1 - skip) as f64;
        tally.compare(&name, &lens.jacobian(0).unwrap(), &want, 1e-10);
    }
    assert_eq!(tally.count, 4);
    tally.finish("means of full Jacobians in fp64");
}

fn same_rows(tally: &mut Tally, what: &str, ours: &LogitLens, logit_lens: &LogitLens) {
    for row in ours.rows() {
        let (ours, want) = (ours.row(row).unwrap(), logit_lens.row(row).unwrap());
        tally.compare(&format!("{what}, {row}"), &ours, &want, TOLERANCE);
    }
}

#[test]
fn a_lens_of_the_identity_is_the_logit_lens() {
    let mut tally = Tally::default();
    for family in families().into_iter().chain(mechanisms()) {
        let model = raw(&family);
        let n_layers = model.config().n_layers;
        let tokens = [[5, 17, 3, 6], [9, 4, 4, 8]].map(Vec::from).to_vec();
        let (_, cache) = model.run_with_cache(tokens).unwrap();
        let want = cache.logit_lens(LensOptions::new()).unwrap();
        if n_layers > 1 {
            let ones = (0..n_layers - 1).map(|layer| (layer, eye(&model)));
            let lens = JacobianLens::new(&model, ones, 1).unwrap();
            let read = lens.read(&cache, LensOptions::new()).unwrap();
            assert_eq!(read.len(), n_layers, "{family}");
            same_rows(&mut tally, &format!("{family}, J = 1"), &read, &want);
        }
        let zeros = (0..n_layers).map(|_| (eye(&model) * 0.0, None));
        let tuned = TunedLens::new(&model, zeros).unwrap();
        same_rows(&mut tally, &format!("{family}, W = 0"), &tuned.read(&cache, LensOptions::new()).unwrap(), &want);
        // A Patchscope whose target layer is the end reads each stream as the unembedding does.
        let scope = Patchscope::new(&model, vec![7, 2, 9]).unwrap().layer(n_layers).unwrap();
        same_rows(&mut tally, &format!("{family}, scope"), &scope.read(&cache, LensOptions::new()).unwrap(), &want);
    }
    tally.finish("lenses of the identity");
}

/// Exchanged coordinates, and nothing else: twice is once more the stream.
#[test]
fn a_swap_exchanges_two_coordinates() {
    let model = fresh(small());
    let lens = JacobianLens::new(&model, [(0, numbers(&[24, 24], 3))], 1).unwrap();
    let ids = [5, 9, 3, 6];
    let stream = |hooks| {
        let run = RunOptions::new().cache(hook::resid_post(0)).hooks(hooks);
        model.run(ids, run).unwrap().cache[hook::resid_post(0)].get(0)
    };
    let plain = stream(tch_lens::Hooks::new()); // [pos, d_model]
    let v = Tensor::stack(&[lens.directions(4, 0).unwrap(), lens.directions(9, 0).unwrap()], 0); // [2, d_model]
    let coordinates = |x: &Tensor| x.matmul(&v.pinverse(1e-12)); // [pos, 2]
    let mut tally = Tally::default();
    let swapped = stream(lens.swap(4, 9, [0], 1.., 1.0).unwrap());
    tally.compare(
        "coordinates",
        &coordinates(&swapped).narrow(0, 1, 3),
        &coordinates(&plain).flip([-1i64]).narrow(0, 1, 3),
        1e-10,
    );
    tally.compare("the first position", &swapped.get(0), &plain.get(0), 0.0);
    let off = |x: &Tensor| x - coordinates(x).matmul(&v);
    tally.compare("what is orthogonal", &off(&swapped), &off(&plain), 1e-10);
    let hooks = lens.swap(4, 9, [0, 0], .., 1.0).unwrap();
    tally.compare("twice", &stream(hooks), &plain, 1e-10);
    tally.finish("swaps");
}

// --- Patchscopes --------------------------------------------------------------------------------------------------------------

/// A stream in its own place changes nothing; a stream in another place is what a patch puts there.
#[test]
fn a_patchscope_is_a_patch() {
    let mut tally = Tally::default();
    for (name, model) in in_fp64() {
        let ids = [5, 9, 3, 6];
        let (logits, cache) = model.run_with_cache(&ids[..]).unwrap();
        let scope = Patchscope::new(&model, &ids[..]).unwrap();
        let read = scope.read(&cache, LensOptions::new().pos(-1)).unwrap().logits().squeeze_dim(1); // [row, d_vocab_out]
        let want = logits.get(0).get(-1).unsqueeze(0).expand_as(&read);
        tally.compare(&format!("{name}, in its own place"), &read, &want, 1e-9);
        if model.config().n_layers == 1 {
            continue;
        }
        let scope = Patchscope::new(&model, vec![7, 2, 9, 4, 1]).unwrap().layer(1).unwrap().position(2).unwrap();
        let read = scope.read(&cache, LensOptions::new().batch(0)).unwrap();
        let patch = tch_lens::Patch::set(cache[hook::resid_pre(0)].get(0).get(3)).pos(2);
        let hooks = tch_lens::Hooks::new().patch(hook::resid_pre(1), patch);
        let want = model.run_with_hooks([7, 2, 9, 4, 1], hooks).unwrap().get(0).get(-1);
        tally.compare(&format!("{name}, elsewhere"), &read.row(&Component::ResidPre(0)).unwrap().get(3), &want, 1e-9);
    }
    tally.finish("Patchscopes");
}

#[test]
fn fits_and_files_keep_their_bounds() {
    // A prompt with one position that counts is long enough, and what is behind `max_tokens` does not count.
    let model = fresh(small());
    let fit = |prompt: &[i64], options| JacobianLens::fit(&model, [prompt], options);
    let two = || JacobianLensOptions::new().skip_first(2);
    assert!(fit(&[5, 9, 3], two()).is_err());
    let shortest = fit(&[5, 9, 3, 4], two()).unwrap();
    let longer = fit(&[5, 9, 3, 4, 11, 12], two().max_tokens(4)).unwrap();
    assert_eq!(longer.jacobian(0).unwrap(), shortest.jacobian(0).unwrap());
    assert_ne!(fit(&[5, 9, 3, 4, 11, 12], two()).unwrap().jacobian(0).unwrap(), shortest.jacobian(0).unwrap());
    // A lens does not go to a model whose streams lack their mean.
    let centered = LoadOptions::new().open(crate::common::Fixture::folder("gpt2")).unwrap();
    let published = JacobianLens::open(&raw("gpt2"), file("jacobian_gpt2.pt")).unwrap();
    assert!(published.with_model(&raw("gpt2")).is_ok());
    let error = published.with_model(&centered).map(drop).unwrap_err().to_string();
    assert!(error.contains("center_writing_weights"), "{error}");
    // Every tensor of a tuned lens' file has its layer.
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), r#"{"d_model": 24, "num_hidden_layers": 2, "bias": false}"#)
        .unwrap();
    let write = |n: usize| {
        let maps: Vec<_> = (0..n).map(|layer| (format!("{layer}.weight"), eye(&model) * 0.1)).collect();
        Tensor::write_safetensors(&maps, folder.path().join("params.safetensors")).unwrap();
        TunedLens::open(&model, folder.path()).map(drop)
    };
    assert!(write(2).is_ok());
    let error = write(3).unwrap_err().to_string();
    assert!(error.contains("2.weight"), "{error}");
    assert!(write(1).unwrap_err().to_string().contains("1.weight"));
}

#[test]
fn what_a_lens_cannot_do_is_an_error() {
    let (model, other) = (fresh(small()), raw("gpt2"));
    let (_, cache) = model.run_with_cache([5, 9, 3]).unwrap();
    let identity = || JacobianLens::new(&model, [(0, eye(&model))], 1).unwrap();
    let zeros = |n: usize| (0..n).map(|_| (eye(&model) * 0.0, None)).collect::<Vec<_>>();
    let tuned = TunedLens::new(&model, zeros(2)).unwrap();
    let options = JacobianLensOptions::new;
    let folder = tempfile::tempdir().unwrap();
    let opened = |config: &str| {
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        TunedLens::open(&model, folder.path()).map(drop)
    };
    let broken = folder.path().join("lens.pt");
    std::fs::copy(fixtures().join("torch_files/zip.bin"), &broken).unwrap();
    let scope = || Patchscope::new(&model, [5, 9]).unwrap();
    let (_, wide) = raw("llama").run_with_cache([5, 9]).unwrap();
    let generate = GenerateOptions::new().max_new_tokens(1);
    let errors: Vec<(tch_lens::Result<()>, &str)> = vec![
        (TunedLens::new(&model, zeros(1)).map(drop), "1 maps of width 24, but the model has 2 layers of width 24"),
        (
            TunedLens::new(&model, [(eye(&model).narrow(0, 0, 3), None)]).map(drop),
            "the weight of layer 0 has shape [3, 24]",
        ),
        (tuned.read(&cache, LensOptions::new().incl_mid(true)).map(drop), "between blocks only"),
        (tuned.with_model(&raw("llama")).map(drop), "width"),
        (tuned.with_model(&other).and_then(|lens| lens.read(&cache, LensOptions::new())).map(drop), "of another model"),
        (tuned.translate(&eye(&model), 2).map(drop), "layer 2 is out of range"),
        (opened(r#"{"d_model": 24, "num_hidden_layers": 2, "lens_type": "mlp"}"#), "`lens_type` is mlp"),
        (opened(r#"{"d_model": 25, "num_hidden_layers": 2}"#), "`d_model` is 25: the model has 24"),
        (opened(r#"{"d_model": 24, "num_hidden_layers": 3}"#), "`num_hidden_layers` is 3: the model has 2"),
        (opened(r#"{"d_model": 24, "num_hidden_layers": 2, "rank": 3}"#), "unknown field `rank`"),
        (opened(r#"{"d_model": 24, "num_hidden_layers": 2}"#), "params.pt"),
        (JacobianLens::new(&model, [], 1).map(drop), "at least one layer"),
        (
            JacobianLens::new(&model, [(1, eye(&model))], 1).map(drop),
            "only the layers before the last one have one: 0 to 0",
        ),
        (JacobianLens::open(&model, &broken).map(drop), "no matrices under `J` or `jacobian_sum`"),
        (JacobianLens::open(&raw("llama"), file("jacobian_gpt2.pt")).map(drop), "width 24, but the model's have"),
        (identity().save(folder.path().join("lens.pt")), "must end so"),
        (identity().jacobian(1).map(drop), "no matrix for layer 1, only for 0"),
        (identity().swap(3, 3, [0], .., 1.0).map(drop), "the same direction"),
        (identity().swap(3, 4, [0usize; 0], .., 1.0).map(drop), "at least one layer"),
        (identity().swap(3, 4, [0], .., f64::NAN).map(drop), "`strength` is NaN"),
        (identity().swap(3, 99, [0], .., 1.0).map(drop), "token id 99 is out of range"),
        (JacobianLens::fit(&model, [[5, 9, 3]; 0], options()).map(drop), "give at least one"),
        (JacobianLens::fit(&model, [[5, 9, 3]], options()).map(drop), "prompt 0 has 3 tokens, but 18 are needed"),
        (JacobianLens::fit(&model, [[5, 9, 3]], options().layers([1])).map(drop), "layer 1 is the last one"),
        (JacobianLens::fit(&model, [[5, 9, 3]], options().layers([7])).map(drop), "layer 7 is out of range"),
        (
            JacobianLens::fit(&raw("transformers/bert"), [[5, 9, 3]], options()).map(drop),
            "this model's tokens act on those before them as well",
        ),
        (JacobianLens::fit(&model, [[5, 9, 3]], options().rows_at_once(0)).map(drop), "`rows_at_once` is 0"),
        (Patchscope::new(&model, vec![vec![1, 2], vec![3, 4]]).map(drop), "one target prompt"),
        (scope().layer(3).map(drop), "layer 3 is out of range"),
        (scope().position(2).map(drop), "index 2 is out of range for the position axis"),
        (scope().read(&wide, LensOptions::new()).map(drop), "the width of the target's model"),
        (scope().generate(&cache, hook::z(0), -1, &generate).map(drop), "is no residual stream"),
        (scope().generate(&cache, hook::resid_pre(0), 5, &generate).map(drop), "index 5 is out of range"),
        (
            cache
                .logit_lens(LensOptions::new())
                .and_then(|lens| lens.select(|row| *row != Component::FinalPost)?.kl_to_final())
                .map(drop),
            "no row `final_post`",
        ),
    ];
    for (result, sentence) in errors {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(sentence), "{error}\nwithout: {sentence}");
    }
}
