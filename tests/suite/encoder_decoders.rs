//! Every family of encoder-decoders against transformers, in every style of `config.json`: the folders of
//! `tests/fixtures/encoder_decoders`, each a tiny checkpoint with what transformers 5.23 computes of it. A folder more is a case more.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::common::{fixtures, read, stream_after, Tally};
use rstest::rstest;
use tch::{IndexOp, Kind, Tensor};
use tch_lens::hook::{self, HookPoint, Stack};
use tch_lens::{
    ActivationCache, DecomposeOptions, FullOptions, GenerateOptions, HeadOptions, HookFilter, HookedEncoderDecoder,
    Hooks, LoadOptions, NeuronOptions, PaddingSide, Patch, RunOptions, StepOptions, Target, Tokens,
};

/// Absolute, or relative to the largest entry where that is above one.
const TOLERANCE: f64 = 1e-4;
/// What is computed in fp64 and differs by more than this, relative to the largest entry, is another thing.
const EXACT: f64 = 1e-9;

/// The cases are run so many at once.
const STRIPES: usize = 4;

/// What transformers computes of one checkpoint.
struct Case {
    name: String,
    folder: PathBuf,
    expected: BTreeMap<String, Tensor>,
}

impl Case {
    fn open(name: &str) -> Self {
        let folder = fixtures().join("encoder_decoders").join(name);
        Case { name: name.into(), expected: read(&folder.join("expected.safetensors")), folder }
    }

    fn inputs(&self) -> (&Tensor, &Tensor) {
        (&self.expected["tokens"], &self.expected["decoder_tokens"])
    }

    /// The model, with the configuration in this file.
    fn load(&self, config: &str) -> tch_lens::Result<HookedEncoderDecoder> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(self.folder.join(config), folder.path().join("config.json")).unwrap();
        std::fs::copy(self.folder.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        HookedEncoderDecoder::from_pretrained(folder.path())
    }

    /// The model in fp64.
    fn exact(&self) -> HookedEncoderDecoder {
        LoadOptions::new().kind(Kind::Double).open_encoder_decoder(&self.folder).unwrap()
    }

    fn configs(&self) -> Vec<&'static str> {
        let has = |name: &&str| self.folder.join(name).is_file();
        ["config.json", "config_v4.json", "config_hub.json"].into_iter().filter(has).collect()
    }
}

fn cases() -> Vec<String> {
    let folders = std::fs::read_dir(fixtures().join("encoder_decoders")).unwrap();
    let mut names: Vec<String> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn cases_of(stripe: usize) -> Vec<Case> {
    cases().iter().skip(stripe).step_by(STRIPES).map(|name| Case::open(name)).collect()
}

fn relative(tally: &mut Tally, what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
    // An expert that no token goes to has no rows.
    let largest = if theirs.numel() == 0 { 1.0 } else { theirs.abs().max().double_value(&[]).max(1.0) };
    tally.compare(what, &(ours / largest), &(theirs / largest), tolerance);
}

/// Logits with and without a cache, the streams before each block and at the end of either stack, and all patterns.
#[rstest]
fn agrees_with_transformers(#[values(0, 1, 2, 3)] stripe: usize) {
    let mut tally = Tally::default();
    for case in cases_of(stripe) {
        for config in case.configs() {
            let what = format!("{}, {config}", case.name);
            let model = match case.load(config) {
                Ok(model) => model,
                Err(error) => {
                    tally.failures.push(format!("{what}: {error}"));
                    continue;
                }
            };
            activations(&case, &what, &model, &mut tally);
        }
    }
    tally.finish("logits, streams and patterns against transformers");
}

fn activations(case: &Case, what: &str, model: &HookedEncoderDecoder, tally: &mut Tally) {
    let expected = |name: &str| &case.expected[name];
    let (input, decoder_input) = case.inputs();
    let (logits, cache) = model.run_with_cache(input, decoder_input).unwrap();
    let fused = model.forward(input, decoder_input).unwrap();
    relative(tally, &format!("{what}, logits"), &logits, expected("logits"), TOLERANCE);
    relative(tally, &format!("{what}, logits without a cache"), &fused, expected("logits"), TOLERANCE);
    for (stack, cache) in [("encoder", &cache.encoder), ("decoder", &cache.decoder)] {
        let n_layers = cache.model().config().n_layers;
        let mut compare = |name: String, point: HookPoint| {
            relative(
                tally,
                &format!("{what}, {stack}.{name}"),
                &cache[point],
                expected(&format!("{stack}.{name}")),
                TOLERANCE,
            );
        };
        for layer in 0..n_layers {
            compare(format!("hidden.{layer}"), hook::resid_pre(layer));
            compare(format!("pattern.{layer}"), hook::pattern(layer));
            if stack == "decoder" {
                compare(format!("cross.{layer}"), hook::cross_pattern(layer));
            }
        }
        compare("resid_final".into(), stream_after(cache.model().config(), n_layers - 1));
    }
}

/// Inputs of the encoder that are padded give each row what it gets alone, and transformers' logits.
#[rstest]
fn padded_rows_are_as_if_alone(#[values(0, 1, 2, 3)] stripe: usize) {
    let mut tally = Tally::default();
    for case in cases_of(stripe) {
        let mask = case.expected["pad.attention_mask"].to_kind(Kind::Bool);
        let tokens = Tokens { mask: Some(mask.shallow_clone()), ..Tokens::new(&case.expected["pad.tokens"]).unwrap() };
        let model = case.load("config.json").unwrap();
        let logits = model.forward(&tokens, &case.expected["decoder_tokens"]).unwrap();
        relative(&mut tally, &format!("{}, padded", case.name), &logits, &case.expected["pad.logits"], TOLERANCE);
        let model = case.exact();
        let rows = |of: &Tensor, lens: [i64; 2]| -> Vec<Vec<i64>> {
            (0..2).map(|row| Vec::try_from(of.i(row).narrow(0, 0, lens[row as usize])).unwrap()).collect()
        };
        let (input, decoder_input) = case.inputs();
        let (input, decoder_input) = (rows(input, [11, 4]), rows(decoder_input, [3, 9]));
        for side in [PaddingSide::Left, PaddingSide::Right] {
            let [padded, of_decoder] = [&input, &decoder_input].map(|rows| Tokens::padded(rows, 0, side).unwrap());
            let (formed, cache) = model.run_with_cache(&padded, &of_decoder).unwrap();
            let fused = model.forward(&padded, &of_decoder).unwrap();
            assert_eq!(cache.decoder[hook::cross_pattern(0)].isnan().any().int64_value(&[]), 0);
            for row in 0..2usize {
                let alone = model.forward(input[row].clone(), decoder_input[row].clone()).unwrap().i(0);
                let len = decoder_input[row].len() as i64;
                let start = if side == PaddingSide::Left { 9 - len } else { 0 };
                for (how, logits) in [("fused", &fused), ("formed", &formed)] {
                    let what = format!("{}, row {row}, padded {side:?}, {how}", case.name);
                    relative(&mut tally, &what, &logits.i(row as i64).narrow(0, start, len), &alone, EXACT);
                }
            }
        }
    }
    tally.finish("padded rows");
}

/// Decompositions of either stream add up to it at every target, and attributions of the decoder to the logit, in fp64.
#[rstest]
fn parts_add_up(#[values(0, 1, 2, 3)] stripe: usize) {
    let mut tally = Tally::default();
    for case in cases_of(stripe) {
        let model = case.exact();
        let (input, decoder_input) = case.inputs();
        let (_, cache) = model.run_with_cache(input, decoder_input).unwrap();
        sums(&format!("{}, encoder", case.name), &cache.encoder, &mut tally);
        sums(&format!("{}, decoder", case.name), &cache.decoder, &mut tally);
        let cache = &cache.decoder;
        let heads = cache.stack_head_results(HeadOptions::new()).unwrap().labels();
        assert!(heads.contains(&"L0H1".to_string()) && heads.contains(&"L1C3".to_string()), "{heads:?}");
        let logit = cache[hook::unembed_out()].i((.., .., 7));
        let stack = cache.decompose_resid(DecomposeOptions::new()).unwrap();
        let attributions = [
            ("sublayers", cache.logit_attrs(&stack, 7)),
            ("sublayers, normalised", cache.logit_attrs(&stack.apply_ln().unwrap(), 7)),
            ("heads", cache.logit_attrs(HeadOptions::new().incl_remainder(true), 7)),
            ("full", cache.logit_attrs(FullOptions::new(), 7)),
        ];
        for (name, attribution) in attributions {
            let sum = attribution.unwrap().sum().unwrap();
            relative(&mut tally, &format!("{}: logit by {name}", case.name), &sum, &logit, EXACT);
        }
    }
    tally.finish("sums of parts");
}

fn sums(what: &str, cache: &ActivationCache, tally: &mut Tally) {
    let config = cache.model().config();
    let is_decoder = config.stack == Stack::Decoder;
    let mut targets = vec![(Target::Unembed, stream_after(config, config.n_layers - 1))];
    for layer in 0..config.n_layers {
        let before_mlp = if is_decoder { hook::resid_mid_cross(layer) } else { hook::resid_mid(layer) };
        targets.extend([(Target::attn(layer), hook::resid_pre(layer)), (Target::mlp(layer), before_mlp)]);
        if is_decoder {
            targets.push((Target::cross_attn(layer), hook::resid_mid(layer)));
        }
    }
    for (target, point) in targets {
        let whole = &cache[point];
        let stacks = [
            ("sublayers", cache.decompose_resid(DecomposeOptions::new().target(target))),
            ("full", cache.get_full_resid_decomposition(FullOptions::new().target(target))),
            ("heads", cache.stack_head_results(HeadOptions::new().target(target).incl_remainder(true))),
            ("neurons", cache.stack_neuron_results(NeuronOptions::new().target(target).incl_remainder(true))),
        ];
        for (name, stack) in stacks {
            relative(tally, &format!("{what}: {name} at {target}"), &stack.unwrap().sum().unwrap(), whole, EXACT);
        }
    }
}

/// A head that is ablated, in either stack or in cross-attention, leaves sums that hold.
#[rstest]
fn sums_hold_in_changed_runs(#[values(0, 1, 2, 3)] stripe: usize) {
    let mut tally = Tally::default();
    for case in cases_of(stripe) {
        let model = case.exact();
        let (input, decoder_input) = case.inputs();
        let plain = model.forward(input, decoder_input).unwrap();
        let changes = [
            hook::z(0).with_stack(Stack::Encoder),
            hook::unembed_in().with_stack(Stack::Encoder),
            hook::cross_k(0),
            hook::cross_v(0),
            hook::cross_pattern(0),
            hook::cross_z(0),
            hook::cross_result(0),
            hook::cross_attn_in(0),
            hook::cross_attn_out(0),
            hook::resid_mid_cross(0),
        ];
        for point in changes {
            let what = format!("{}, {point}", case.name);
            let run = || RunOptions::new().hooks(Hooks::new().patch(point, Patch::zero()));
            let cached = HookFilter::matching(|_| true);
            let output = model.run(input, decoder_input, run().cache(cached)).unwrap();
            let logits = output.logits.unwrap();
            assert!((&logits - &plain).abs().max().double_value(&[]) > 1e-6, "{what} changes nothing");
            let again = model.run(input, decoder_input, run()).unwrap().logits.unwrap();
            relative(&mut tally, &format!("{what}, without a cache"), &again, &logits, EXACT);
            // Rows would be made of what the hook left in `result`, which is kept on request only.
            let is_result = point == hook::cross_result(0);
            for cache in [&output.cache.encoder, &output.cache.decoder].into_iter().filter(|_| !is_result) {
                let config = cache.model().config();
                let whole = &cache[stream_after(config, config.n_layers - 1)];
                let stacks = [
                    cache.decompose_resid(DecomposeOptions::new()),
                    cache.get_full_resid_decomposition(FullOptions::new()),
                ];
                for stack in stacks {
                    relative(&mut tally, &what, &stack.unwrap().sum().unwrap(), whole, EXACT);
                }
            }
        }
    }
    tally.finish("sums in changed runs");
}

/// Generation with a store of keys and values gives what it gives without one, and what a loop over whole runs gives; padded rows give
/// what they give alone; its cache is that of one run over the whole.
#[rstest]
fn generation_is_recomputation(#[values(0, 1, 2, 3)] stripe: usize) {
    let mut tally = Tally::default();
    let options = GenerateOptions::new().do_sample(false).stop_at_eos(false).max_new_tokens(5);
    for case in cases_of(stripe) {
        let model = case.exact();
        let start = model.start_token().unwrap();
        let rows: Vec<Vec<i64>> = Vec::<Vec<i64>>::try_from(case.inputs().0).unwrap();
        let rows = vec![rows[0].clone(), rows[1][..4].to_vec()];
        let greedy = |row: &Vec<i64>| {
            let mut ids = vec![start];
            for _ in 0..5 {
                let logits = model.forward(row.clone(), ids.clone()).unwrap();
                ids.push(logits.i((0, -1)).argmax(0, false).int64_value(&[]));
            }
            ids
        };
        let expected: Vec<Vec<i64>> = rows.iter().map(greedy).collect();
        let recomputed = options.clone().use_past_kv_cache(false);
        for (how, options) in [("with a store", &options), ("without", &recomputed)] {
            let tokens = Tokens::padded(&rows, 0, PaddingSide::Right).unwrap();
            let generated = model.generate(&tokens, options).unwrap();
            let found: Vec<&[i64]> = generated.rows.iter().map(|row| row.ids()).collect();
            assert_eq!(found, expected, "{}, {how}", case.name);
            let steps = StepOptions::new().cache(HookFilter::All);
            let generated = model.generate_with(&tokens, vec![vec![start]; 2], options, steps).unwrap();
            let (cache, whole) = (generated.cache.unwrap(), model.decoder_of(&tokens).unwrap());
            let (_, whole) = whole.run_with_cache(&generated.tokens).unwrap();
            for (point, tensor) in &cache {
                // Scores that are hidden are −∞.
                if !point.to_string().ends_with("hook_attn_scores") {
                    relative(&mut tally, &format!("{}, {how}, {point}", case.name), tensor, &whole[*point], EXACT);
                }
            }
        }
        let samples = GenerateOptions::new().max_new_tokens(5).stop_at_eos(false).seed(3).samples(2);
        let one = |samples: &GenerateOptions| {
            let generated = model.generate(rows[0].clone(), samples).unwrap();
            generated.rows.iter().map(|row| row.ids().to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(one(&samples), one(&samples.clone().use_past_kv_cache(false)), "{}, sampled", case.name);
    }
    tally.finish("generations");
}

/// A model that is written is the same when it is read, in our own form and in that of its family.
#[rstest]
fn saved_models_are_the_same(#[values(0, 1, 2, 3)] stripe: usize) {
    let mut tally = Tally::default();
    for case in cases_of(stripe) {
        let model = case.load("config.json").unwrap();
        let (input, decoder_input) = case.inputs();
        let logits = model.forward(input, decoder_input).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path()).unwrap();
        let again = HookedEncoderDecoder::from_pretrained(folder.path()).unwrap();
        assert_eq!(again.start_token().unwrap(), model.start_token().unwrap());
        let [before, after] = [&model, &again].map(|model| model.decoder().n_params());
        assert_eq!(before, after, "{}: tied weights", case.name);
        let again = again.forward(input, decoder_input).unwrap();
        tally.compare(&format!("{}, save_pretrained", case.name), &again, &logits, 0.0);
        let folder = tempfile::tempdir().unwrap();
        model.save_hugging_face(folder.path(), Kind::Float).unwrap();
        let again = HookedEncoderDecoder::from_pretrained(folder.path()).unwrap();
        let again = again.forward(input, decoder_input).unwrap();
        // A factor that is divided by and multiplied with again may round.
        relative(&mut tally, &format!("{}, save_hugging_face", case.name), &again, &logits, 1e-5);
        let written = read(&folder.path().join("model.safetensors"));
        let read = read(&case.folder.join("model.safetensors"));
        let missing: Vec<_> = read.keys().filter(|name| !written.contains_key(*name)).collect();
        assert!(missing.iter().all(|name| name.contains("embed_positions")), "{}: {missing:?}", case.name);
    }
    tally.finish("saved models");
}

/// Gradients with respect to both streams are the slopes that patches find.
#[rstest]
fn gradients_reach_both_stacks(#[values("t5", "fsmt")] name: &str) {
    let case = Case::open(name);
    let model = case.exact();
    let (input, decoder_input) = case.inputs();
    let points = [
        hook::resid_pre(0).with_stack(Stack::Encoder),
        hook::cross_z(0),
        hook::resid_pre(1).with_stack(Stack::Decoder),
    ];
    let run = RunOptions::new().cache(points);
    let found = model
        .run_with_grad(input, decoder_input, run, |run| Ok(run.logits()?.i((.., -1, 5)).sum(Kind::Double)))
        .unwrap();
    let logit = |hooks: Hooks| {
        model.run_with_hooks(input, decoder_input, hooks).unwrap().i((.., -1, 5)).sum(Kind::Double).double_value(&[])
    };
    assert!((found.value - logit(Hooks::new())).abs() < 1e-9);
    for (point, gradients) in points.into_iter().zip([&found.encoder, &found.decoder, &found.decoder]) {
        let gradient = gradients.get(point).unwrap();
        let direction = gradient.ones_like().cumsum(-1, Kind::Double).sin();
        let step = 1e-5;
        let moved = |by: f64| logit(Hooks::new().patch(point, Patch::add(&direction * by)));
        let slope = (moved(step) - moved(-step)) / (2.0 * step);
        let expected = (gradient * &direction).sum(Kind::Double).double_value(&[]);
        assert!((slope - expected).abs() < 1e-6 * expected.abs().max(1.0), "{name}, {point}: {slope} and {expected}");
    }
    let error = model.run_with_grad(
        input,
        decoder_input,
        RunOptions::new().hooks(Hooks::new().patch("z", Patch::zero())),
        |run| Ok(run.logits()?.sum(Kind::Double)),
    );
    assert!(error.unwrap_err().to_string().contains("decoder_of"));
}

/// Names say which stack they mean, and wrong ones are errors with the nearest name.
#[test]
fn names_mean_one_stack_or_both() {
    let case = Case::open("t5");
    let model = case.load("config.json").unwrap();
    let (input, decoder_input) = case.inputs();
    let (_, cache) = model.run_with_cache(input, decoder_input).unwrap();
    for name in ["hook_embed", "decoder.hook_embed", "encoder_final_ln.hook_scale", "decoder_final_ln.hook_normalized"]
    {
        assert!(cache.contains(name), "{name}");
    }
    assert_eq!(cache["decoder.0.ln2.hook_scale"], cache.decoder[hook::cross_ln_scale(0)]);
    assert_eq!(cache["decoder.0.ln3.hook_scale"], cache.decoder[hook::ln2_scale(0)]);
    assert_eq!(cache["encoder.1.ln2.hook_scale"], cache.encoder[("scale", 1, "ln2")]);
    assert_eq!(cache.decoder[("pattern", -1, "cross_attn")], cache["decoder.2.cross_attn.hook_pattern"]);
    let keys: Vec<String> = cache.keys().map(|point| point.to_string()).collect();
    assert!(keys.iter().all(|name| cache.get(name).is_ok()), "{keys:?}");
    assert_eq!(model.encoder().hook_names().iter().filter(|name| name.contains("cross")).count(), 0);
    let error = |name: &str| cache.get(name).unwrap_err().to_string();
    assert!(error("q1").contains("decoder.1.attn.hook_q") && error("q1").contains("encoder.1.attn.hook_q"));
    assert!(error("decoder.0.cross_attn.hook_patern").contains("`decoder.0.cross_attn.hook_pattern`"));
    assert!(
        error("encoder.0.cross_attn.hook_pattern").contains("encoder"),
        "{}",
        error("encoder.0.cross_attn.hook_pattern")
    );
    let both = model.run(input, decoder_input, RunOptions::new().cache("pattern")).unwrap().cache;
    assert_eq!((both.encoder.len(), both.decoder.len()), (2, 3));
    let one = model.run(input, decoder_input, RunOptions::new().cache("encoder.0.attn.hook_z")).unwrap().cache;
    assert_eq!((one.encoder.len(), one.decoder.len()), (1, 0));
    let none = model.run(input, decoder_input, RunOptions::new().cache("hook_nothing"));
    assert!(none.unwrap_err().to_string().contains("there is no hook point `hook_nothing`"));
}

/// What a stack alone cannot do is an error that says so.
#[test]
fn a_stack_alone_says_what_it_lacks() {
    let case = Case::open("t5");
    let model = case.load("config.json").unwrap();
    let (input, decoder_input) = case.inputs();
    let says = |error: tch_lens::Error, what: &str| assert!(error.to_string().contains(what), "{error}");
    says(model.decoder().forward(decoder_input).unwrap_err(), "with_encoder_output");
    says(model.encoder().loss(input).unwrap_err(), "no logits");
    says(model.encoder().generate(input, &GenerateOptions::new()).unwrap_err(), "no logits");
    says(model.encoder().w_u().unwrap_err(), "unembedding");
    let output = model.encode(input).unwrap();
    says(model.encoder().with_encoder_output(output.clone()).unwrap_err(), "cross-attention");
    let three = model.decoder().with_encoder_output(output.rows(&[0, 1, 0]).unwrap()).unwrap();
    says(three.forward(decoder_input).unwrap_err(), "one row, or 2");
    says(model.forward(input, decoder_input.narrow(0, 0, 1)).unwrap_err(), "2 rows");
    says(LoadOptions::new().open(&case.folder).unwrap_err(), "HookedEncoderDecoder");
    let lone = fixtures().join("gpt2");
    says(HookedEncoderDecoder::from_pretrained(lone).unwrap_err(), "HookedTransformer");
    let empty = Tokens {
        mask: Some(Tensor::from_slice(&[true, true, false, false]).view([2, 2])),
        ..Tokens::new(&input.narrow(1, 0, 2)).unwrap()
    };
    says(model.forward(&empty, decoder_input).unwrap_err(), "no token that is not padding");
    assert!(model.loss(input, decoder_input).unwrap() > 0.0);
}
