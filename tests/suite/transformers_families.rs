//! Every family against transformers, in every style of `config.json`: the folders of `tests/fixtures/transformers`, each a tiny
//! checkpoint with what transformers 5.23 computes of it. A folder more is a case more.

use std::path::{Path, PathBuf};

use crate::common::{fixtures, read, stream_after, Tally};
use rstest::rstest;
use serde_json::Value;
use tch::{IndexOp, Kind, Tensor};
use tch_lens::config::AttentionDir;
use tch_lens::{
    hook, DecomposeOptions, FullOptions, GenerateOptions, HeadOptions, HookFilter, HookedTransformer, KeyValueStore,
    LoadOptions, NeuronOptions, PaddingSide, RunOptions, StepOptions, Target, Tokens,
};

/// Absolute, or relative to the largest entry where that is above one.
const TOLERANCE: f64 = 1e-4;
/// What is computed in fp64 and differs by more than this, relative to the largest entry, is another thing.
const EXACT: f64 = 1e-9;

/// Families that are refused, and what the error says.
pub(crate) const REFUSED: &[(&str, &str)] = &[
    ("gemma3n_text", "several residual streams"),
    ("hrm_text", "run several times"),
    ("axk2", "multiplied by gates"),
    ("deepseek_v4", "several residual streams"),
    ("dots3_note_text", "rescaled"),
    ("hy_v4", "several residual streams"),
    ("longcat_flash", "two attentions"),
    ("minimax_m3_vl_text", "chooses"),
    ("mobilebert", "several MLPs"),
];

/// The cases are run so many at once.
const STRIPES: usize = 8;

/// What transformers computes of one checkpoint.
struct Case {
    name: String,
    folder: PathBuf,
    expected: std::collections::BTreeMap<String, Tensor>,
}

impl Case {
    fn open(name: &str) -> Self {
        let folder = fixtures().join("transformers").join(name);
        Case { name: name.into(), expected: read(&folder.join("expected.safetensors")), folder }
    }

    fn tokens(&self) -> Tokens {
        self.input("tokens", None)
    }

    /// A batch of the expected tensors, with its types where the case has some.
    fn input(&self, ids: &str, mask: Option<&str>) -> Tokens {
        let tokens = Tokens::new(&self.expected[ids]).unwrap();
        let tokens = match mask {
            Some(mask) => tokens.with_mask(&self.expected[mask]).unwrap(),
            None => tokens,
        };
        match self.expected.get("token_type_ids") {
            Some(types) => tokens.with_types(types).unwrap(),
            None => tokens,
        }
    }

    /// The model, with the configuration in this file.
    fn load(&self, config: &str, load: &LoadOptions) -> tch_lens::Result<HookedTransformer> {
        if config == "config.json" {
            return load.open(&self.folder);
        }
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(self.folder.join(config), folder.path().join("config.json")).unwrap();
        std::fs::copy(self.folder.join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
        load.open(folder.path())
    }

    fn configs(&self) -> Vec<&'static str> {
        let has = |name: &&str| self.folder.join(name).is_file();
        ["config.json", "config_v4.json", "config_hub.json"].into_iter().filter(has).collect()
    }
}

/// The names of all cases.
fn cases() -> Vec<String> {
    let folders = std::fs::read_dir(fixtures().join("transformers")).unwrap();
    let mut names: Vec<String> = folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The names of the cases of a stripe that load.
fn cases_of(stripe: usize) -> Vec<Case> {
    let loads = |name: &String| !REFUSED.iter().any(|(refused, _)| refused == name);
    cases().iter().filter(|name| loads(name)).skip(stripe).step_by(STRIPES).map(|name| Case::open(name)).collect()
}

fn relative(tally: &mut Tally, what: &str, ours: &Tensor, theirs: &Tensor, tolerance: f64) {
    // An expert that no token goes to has no rows.
    let largest = if theirs.numel() == 0 { 1.0 } else { theirs.abs().max().double_value(&[]).max(1.0) };
    tally.compare(what, &(ours / largest), &(theirs / largest), tolerance);
}

#[rstest]
fn agrees_with_transformers(#[values(0, 1, 2, 3, 4, 5, 6, 7)] stripe: usize) {
    let mut tally = Tally::default();
    for case in cases_of(stripe) {
        for config in case.configs() {
            let what = format!("{}, {config}", case.name);
            let raw = match case.load(config, &LoadOptions::new().no_processing()) {
                Ok(model) => model,
                Err(error) => {
                    tally.failures.push(format!("{what}: {error}"));
                    continue;
                }
            };
            activations(&case, &what, &raw, &mut tally);
            let processed = case.load(config, &LoadOptions::new()).unwrap();
            let log_probs = |logits: &Tensor| logits.log_softmax(-1, Kind::Float);
            let ours = log_probs(&processed.forward(case.tokens()).unwrap());
            relative(&mut tally, &format!("{what}, processed"), &ours, &log_probs(&case.expected["logits"]), TOLERANCE);
        }
    }
    tally.finish("logits, streams and patterns against transformers");
}

/// Logits with and without a cache, the stream before each block and at the end, and patterns.
fn activations(case: &Case, what: &str, model: &HookedTransformer, tally: &mut Tally) {
    let (logits, cache) = model.run_with_cache(case.tokens()).unwrap();
    let fused = model.forward(case.tokens()).unwrap();
    relative(tally, &format!("{what}, logits"), &logits, &case.expected["logits"], TOLERANCE);
    relative(tally, &format!("{what}, logits without a cache"), &fused, &case.expected["logits"], TOLERANCE);
    let n_layers = model.config().n_layers;
    for layer in 0..n_layers {
        let hidden = &case.expected[&format!("hidden.{layer}")];
        relative(tally, &format!("{what}, hidden.{layer}"), &cache[hook::resid_pre(layer)], hidden, TOLERANCE);
        let pattern = &case.expected[&format!("pattern.{layer}")];
        relative(tally, &format!("{what}, pattern.{layer}"), &cache[hook::pattern(layer)], pattern, TOLERANCE);
    }
    let last = &cache[stream_after(model.config(), n_layers - 1)];
    relative(tally, &format!("{what}, resid_final"), last, &case.expected["resid_final"], TOLERANCE);
}

/// Decompositions add up to the stream, attributions to the logit, raw and processed, in fp64.
#[rstest]
fn parts_add_up(#[values(0, 1, 2, 3, 4, 5, 6, 7)] stripe: usize) {
    let mut tally = Tally::default();
    for case in cases_of(stripe) {
        let raw = LoadOptions::new().no_processing().kind(Kind::Double).open(&case.folder).unwrap();
        let processed = LoadOptions::new().kind(Kind::Double).open(&case.folder).unwrap();
        let log_probs = |model: &HookedTransformer| {
            let logits = model.forward(case.tokens()).unwrap();
            logits.log_softmax(-1, Kind::Double)
        };
        let name = &case.name;
        relative(&mut tally, &format!("{name}, processed"), &log_probs(&processed), &log_probs(&raw), EXACT);
        for (setting, model) in [("raw", raw), ("processed", processed)] {
            sums(&format!("{name}, {setting}"), &model, &case.tokens(), &mut tally);
        }
    }
    tally.finish("sums of parts");
}

fn sums(what: &str, model: &HookedTransformer, tokens: &Tokens, tally: &mut Tally) {
    let (_, cache) = model.run_with_cache(tokens).unwrap();
    let config = model.config();
    let mut targets = vec![(Target::Unembed, stream_after(config, config.n_layers - 1))];
    for layer in 0..config.n_layers {
        let mid = if config.parallel_attn_mlp { hook::resid_pre(layer) } else { hook::resid_mid(layer) };
        targets.extend([(Target::attn(layer), hook::resid_pre(layer)), (Target::mlp(layer), mid)]);
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
        relative(tally, &format!("{what}: logit by {name}"), &sum, &logit, EXACT);
    }
}

/// A row that is padded gets what it gets alone.
#[rstest]
fn padded_rows_are_as_if_alone(#[values(0, 1, 2, 3, 4, 5, 6, 7)] stripe: usize) {
    let mut tally = Tally::default();
    for case in cases_of(stripe) {
        let model = LoadOptions::new().no_processing().kind(Kind::Double).open(&case.folder).unwrap();
        let row = |row: i64, len: i64| Vec::<i64>::try_from(case.tokens().ids.i(row).narrow(0, 0, len)).unwrap();
        let rows = [row(0, 11), row(1, 6), row(0, 1)];
        for side in [PaddingSide::Left, PaddingSide::Right] {
            let batch = Tokens::padded(&rows, 0, side).unwrap();
            let fused = model.forward(&batch).unwrap();
            let (formed, _) = model.run_with_cache(&batch).unwrap();
            for (i, row) in rows.iter().enumerate() {
                let alone = model.forward(row.clone()).unwrap().i(0);
                let len = row.len() as i64;
                let start = if side == PaddingSide::Left { 11 - len } else { 0 };
                for (how, logits) in [("fused", &fused), ("formed", &formed)] {
                    let what = format!("{}, row {i}, padded {side:?}, {how}", case.name);
                    relative(&mut tally, &what, &logits.i(i as i64).narrow(0, start, len), &alone, EXACT);
                }
            }
        }
    }
    tally.finish("padded rows");
}

/// Padded batches of encoders give what transformers gives, at the tokens that are none.
#[test]
fn padding_is_as_in_transformers() {
    let mut tally = Tally::default();
    for case in (0..STRIPES).flat_map(cases_of).filter(|case| case.expected.contains_key("pad.tokens")) {
        let model = LoadOptions::new().no_processing().open(&case.folder).unwrap();
        let input = case.input("pad.tokens", Some("pad.attention_mask"));
        let real = case.expected["pad.attention_mask"].to_kind(Kind::Float).unsqueeze(-1);
        let (formed, _) = model.run_with_cache(&input).unwrap();
        for (how, logits) in [("fused", model.forward(&input).unwrap()), ("formed", formed)] {
            relative(
                &mut tally,
                &format!("{}, {how}", case.name),
                &(logits * &real),
                &case.expected["pad.logits"],
                TOLERANCE,
            );
        }
    }
    tally.finish("padded batches of encoders");
}

/// Tokens that come in parts, after a store of keys and values, give what they give at once.
#[rstest]
fn runs_in_parts_are_the_whole_run(#[values(0, 1, 2, 3, 4, 5, 6, 7)] stripe: usize) {
    let mut tally = Tally::default();
    for case in cases_of(stripe) {
        let model = LoadOptions::new().no_processing().kind(Kind::Double).open(&case.folder).unwrap();
        if model.config().attention_dir() == AttentionDir::Bidirectional {
            continue; // earlier tokens see later ones
        }
        let whole = model.forward(&case.tokens().ids).unwrap();
        let mut store = KeyValueStore::new(&model, 2, 11).unwrap();
        for (start, len) in [(0, 5), (5, 1), (6, 5)] {
            // Every second part with scores and patterns, which attention forms only there.
            let run = RunOptions::new().past(&mut store);
            let run = if start == 5 { run.cache(HookFilter::All) } else { run };
            let tokens = case.tokens().ids.narrow(1, start, len);
            let logits = model.run(&tokens, run).unwrap().logits.unwrap();
            let what = format!("{}, {start} + {len}", case.name);
            relative(&mut tally, &what, &logits, &whole.narrow(1, start, len), EXACT);
        }
    }
    tally.finish("runs in parts");
}

/// Prompts that are continued together, padded on either side, give what they give alone, and the activations of one run over the whole.
#[rstest]
fn continuations_are_as_if_alone_and_whole(#[values(0, 1, 2, 3, 4, 5, 6, 7)] stripe: usize) {
    let mut tally = Tally::default();
    let options = GenerateOptions::new().do_sample(false).stop_at_eos(false).max_new_tokens(4);
    for case in cases_of(stripe) {
        let model = LoadOptions::new().no_processing().kind(Kind::Double).open(&case.folder).unwrap();
        let config = model.config();
        if config.d_vocab_out != config.d_vocab || config.attention_dir() == AttentionDir::Bidirectional {
            continue;
        }
        let rows = Vec::<Vec<i64>>::try_from(&case.tokens().ids).unwrap();
        let rows = vec![rows[0][..5].to_vec(), rows[1][..2].to_vec()];
        let alone = |row: &Vec<i64>| model.generate(row, &options).unwrap().rows[0].ids().to_vec();
        let expected: Vec<Vec<i64>> = rows.iter().map(alone).collect();
        for side in [PaddingSide::Left, PaddingSide::Right] {
            let options = options.clone().padding_side(side);
            let steps = StepOptions::new().cache(HookFilter::All);
            let generated = model.generate_with(rows.clone(), &options, steps).unwrap();
            let found: Vec<&[i64]> = generated.rows.iter().map(|row| row.ids()).collect();
            assert_eq!(found, expected, "{}, {side:?}", case.name);
            let (cache, (_, whole)) = (generated.cache.unwrap(), model.run_with_cache(&generated.tokens).unwrap());
            for (point, tensor) in &cache {
                // Scores that are hidden are −∞, and whatever a model of its own kind hides with.
                if point.to_string().ends_with("hook_attn_scores") {
                    continue;
                }
                relative(&mut tally, &format!("{}, {side:?}, {point}", case.name), tensor, &whole[*point], EXACT);
            }
        }
    }
    tally.finish("continuations");
}

/// A model that is written is the same when it is read, in our own form and in that of its family.
#[rstest]
fn saved_models_are_the_same(#[values(0, 1, 2, 3, 4, 5, 6, 7)] stripe: usize) {
    let mut tally = Tally::default();
    for case in cases_of(stripe) {
        let model = LoadOptions::new().no_processing().open(&case.folder).unwrap();
        let logits = model.forward(case.tokens()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path()).unwrap();
        let again = LoadOptions::new().open(folder.path()).unwrap().forward(case.tokens()).unwrap();
        tally.compare(&format!("{}, save_pretrained", case.name), &again, &logits, 0.0);
        let folder = tempfile::tempdir().unwrap();
        model.save_hugging_face(folder.path(), Kind::Float).unwrap();
        let again = LoadOptions::new().no_processing().open(folder.path()).unwrap().forward(case.tokens()).unwrap();
        // A factor that is divided by and multiplied with again may round.
        relative(&mut tally, &format!("{}, save_hugging_face", case.name), &again, &logits, 1e-5);
    }
    tally.finish("saved models");
}

/// A language model is found under each of the names that checkpoints of multimodal models have for its place.
#[rstest]
#[case("model.language_model.", "lm_head.weight")]
#[case("language_model.model.", "language_model.lm_head.weight")]
#[case("model.text_model.", "lm_head.weight")]
#[case("text_model.model.", "text_model.lm_head.weight")]
#[case("language_model.", "lm_head.weight")]
#[case("model.", "lm_head.weight")]
fn language_models_are_found_where_they_lie(#[case] place: &str, #[case] unembedding: &str) {
    let case = Case::open("llava_multimodal");
    let expected = LoadOptions::new().no_processing().open(&case.folder).unwrap().forward(case.tokens()).unwrap();
    let tensors = read(&case.folder.join("model.safetensors"));
    let embedding = tensors.keys().find(|name| name.ends_with("embed_tokens.weight")).unwrap();
    let old = embedding.strip_suffix("embed_tokens.weight").unwrap();
    let rename = |name: &String| match name.strip_prefix(old) {
        Some(rest) => format!("{place}{rest}"),
        None if name.ends_with("lm_head.weight") => unembedding.to_string(),
        None => name.clone(),
    };
    let renamed: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (rename(name), tensor)).collect();
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(case.folder.join("config.json"), folder.path().join("config.json")).unwrap();
    Tensor::write_safetensors(&renamed, folder.path().join("model.safetensors")).unwrap();
    let model = LoadOptions::new().no_processing().open(folder.path()).unwrap();
    assert_eq!(model.forward(case.tokens()).unwrap(), expected);
    assert_eq!(model.config().original_architecture, "LlamaForCausalLM");
}

#[test]
fn refused_families_say_why() {
    for (name, why) in REFUSED {
        let error = LoadOptions::new().open(fixtures().join("transformers").join(name)).unwrap_err().to_string();
        assert!(error.contains(why), "{name}: {error}");
    }
}

/// The encoder-decoders that are refused and have no folder here: their experts have a capacity, so tokens depend on each other.
pub(crate) const REFUSED_ENCODER_DECODERS: &[&str] = &["switch_transformers", "nllb-moe"];

/// At most ten of the cases that could match are an error.
#[test]
fn few_families_are_refused() {
    let accept = |folder: &Path| -> String {
        let case: Value = serde_json::from_slice(&std::fs::read(folder.join("case.json")).unwrap()).unwrap();
        case["accept"].as_str().unwrap().into()
    };
    let must_match = |(name, _): &&(&str, &str)| accept(&fixtures().join("transformers").join(name)) == "match";
    let mut refused: Vec<&str> = REFUSED.iter().filter(must_match).map(|(name, _)| *name).collect();
    refused.extend(REFUSED_ENCODER_DECODERS);
    println!("{} of the refused cases could match: {}", refused.len(), refused.join(", "));
    assert!(refused.len() <= 10, "{refused:?}");
    println!("{} families, of which {} are refused", cases().len(), REFUSED.len());
}
