//! Real, trained models against what transformers, or their own author, computed.
//!
//! These tests read the folder that the variable `TCH_LENS_MODELS` names; where it is unset they are skipped, and say so.

use std::path::{Path, PathBuf};

use crate::common::{read, Tally};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::Value;
use tch::{IndexOp, Kind, Tensor};
use tch_lens::{hook, Bos, HookedTransformer, Hooks, RunOptions, TokenOptions, Tokenizer};

const TOLERANCE: f64 = 1e-4;

/// The folder of a real model, or `None` and a word where there is none.
fn folder(name: &str) -> Option<PathBuf> {
    let Some(models) = std::env::var_os("TCH_LENS_MODELS") else {
        // Past the test harness, which shows what `println!` prints of failed tests only.
        eprintln!("skipped: {name} (TCH_LENS_MODELS names no folder of real models)");
        return None;
    };
    Some(Path::new(&models).join(name))
}

fn ids(json: &Value) -> Vec<i64> {
    serde_json::from_value(json.clone()).unwrap()
}

/// The likeliest next token, again and again.
fn greedy(model: &HookedTransformer, prompt: &[i64], steps: usize) -> Vec<i64> {
    let mut all = prompt.to_vec();
    for _ in 0..steps {
        let outcome = model.run(&all, RunOptions::new().logits_at(-1)).unwrap();
        all.push(outcome.logits.unwrap().argmax(-1, false).int64_value(&[0, 0]));
    }
    all.split_off(prompt.len())
}

#[rstest]
#[case("stories260K", Bos::Default)]
#[case("capp_gpt2", Bos::No)]
fn agrees_with_transformers(#[case] name: &str, #[case] bos: Bos) {
    let Some(folder) = folder(name) else { return };
    let model = HookedTransformer::from_pretrained_no_processing(&folder).unwrap();
    let json: Value = serde_json::from_slice(&std::fs::read(folder.join("fixtures.json")).unwrap()).unwrap();
    let tensors = read(&folder.join("fixtures.safetensors"));
    let mut tally = Tally::default();
    for (i, prompt) in json["prompts"].as_array().unwrap().iter().enumerate() {
        let theirs = |what: &str| tensors[&format!("{i}.{what}")].shallow_clone();
        let text = prompt["prompt"].as_str().unwrap();
        let tokens = model.to_tokens_with(text, TokenOptions::new().prepend_bos(bos)).unwrap();
        let expected = ids(&prompt["ids"]);
        assert_eq!(Vec::<i64>::try_from(tokens.ids.i(0)).unwrap(), expected, "{text}");

        let (logits, cache) = model.run_with_cache(&tokens).unwrap();
        tally.compare(&format!("{i}.logits"), &logits.i(0), &theirs("logits"), TOLERANCE);
        let n_layers = model.config().n_layers;
        let (hidden, patterns) = (theirs("hidden_states"), theirs("attn"));
        for layer in 0..n_layers {
            let resid = cache.get(hook::resid_pre(layer)).unwrap();
            tally.compare(&format!("{i}.hidden_states[{layer}]"), &resid.i(0), &hidden.i(layer as i64), TOLERANCE);
            let pattern = cache.get(hook::pattern(layer)).unwrap();
            tally.compare(&format!("{i}.attn[{layer}]"), &pattern.i(0), &patterns.i(layer as i64), TOLERANCE);
        }
        // The last one is after the final norm.
        let last = cache.get("unembed.hook_in").unwrap();
        tally.compare(&format!("{i}.hidden_states[-1]"), &last.i(0), &hidden.i(n_layers as i64), TOLERANCE);

        let wanted = ids(&prompt["greedy_ids"]);
        assert_eq!(greedy(&model, &expected, wanted.len()), wanted, "the continuation of {text}");
        // Their text leaves special tokens out.
        let written: Vec<i64> = expected.into_iter().chain(wanted).collect();
        let special = |id: &i64| model.to_single_str_token(*id).unwrap().starts_with('<');
        let written: Vec<i64> = written.into_iter().filter(|id| !special(id)).collect();
        assert_eq!(model.to_string(&written).unwrap().trim_start(), prompt["greedy_text"].as_str().unwrap());

        // The default processing changes nothing that a reader could see.
        let processed = HookedTransformer::from_pretrained(&folder).unwrap().forward(&tokens).unwrap();
        let (ours, raw) = (processed.log_softmax(-1, Kind::Double), logits.log_softmax(-1, Kind::Double));
        tally.compare(&format!("{i}.log_probs, processed"), &ours, &raw, TOLERANCE);
    }
    tally.finish(name);
}

const SORT: &str = "gpt2_nano_sort";

/// Every intermediate of the sorting model, as its author's own code computed it.
#[test]
fn the_sorting_model_equals_its_author_s_activations() {
    let Some(folder) = folder(SORT) else { return };
    let model = HookedTransformer::from_pretrained_no_processing(&folder).unwrap();
    let theirs = read(&folder.join("reference_activations.safetensors"));
    let tokens = theirs["idx"].to_kind(Kind::Int64);
    let (logits, cache) = model.run_with_cache(&tokens).unwrap();
    let weights: std::collections::BTreeMap<String, Tensor> = model.parameters().into_iter().collect();

    // What is within a block was recorded of the first.
    let of = |short: &str| cache.get((short, 0)).unwrap().shallow_clone();
    let within = |norm: &str| {
        let normalized = cache.get(("normalized", 0, norm)).unwrap();
        normalized * &weights[&format!("blocks.0.{norm}.w")] + &weights[&format!("blocks.0.{norm}.b")]
    };
    let heads_first = |t: Tensor| t.transpose(1, 2); // [batch, head, pos, d_head]
    let flat = |t: Tensor| t.flatten(2, 3); // [batch, pos, head d_head]
    let ours: Vec<(&str, Tensor)> = vec![
        ("tok_emb", cache["hook_embed"].shallow_clone()),
        ("pos_emb", cache["hook_pos_embed"].i(0..1)),
        ("x", cache[hook::resid_pre(0)].shallow_clone()),
        ("ln1", within("ln1")),
        ("qkv", Tensor::cat(&[flat(of("q")), flat(of("k")), flat(of("v"))], -1)),
        ("q", heads_first(of("q"))),
        ("k", heads_first(of("k"))),
        ("v", heads_first(of("v"))),
        ("att", of("attn_scores")),
        ("attSm", of("pattern")),
        ("y", flat(of("z"))),
        ("yProj", of("attn_out")),
        ("attnResid", of("resid_mid")),
        ("ln2", within("ln2")),
        ("fc", of("pre")),
        ("gelu", of("post")),
        ("mlp", of("mlp_out")),
        ("mlpResid", of("resid_post")),
        ("block0", cache[hook::resid_post(0)].shallow_clone()),
        ("block1", cache[hook::resid_post(1)].shallow_clone()),
        ("block2", cache[hook::resid_post(2)].shallow_clone()),
        ("ln_f", cache["unembed.hook_in"].shallow_clone()),
        ("lm_head", logits.shallow_clone()),
        ("probs", logits.softmax(-1, Kind::Float)),
    ];
    assert_eq!(ours.len() + 1, theirs.len(), "every tensor of theirs but `idx` is compared");
    let mut tally = Tally::default();
    for (name, ours) in ours {
        tally.compare(name, &ours, &theirs[name], TOLERANCE);
    }
    tally.finish(SORT);
}

/// How many of all inputs the model sorts: each of six letters, after which it writes six.
fn sorted(model: &HookedTransformer, inputs: &[Vec<i64>], hooks: impl Fn() -> Hooks<'static>) -> i64 {
    let mut tokens = Tensor::from_slice2(inputs); // [input, letter]
    for _ in 0..6 {
        let run = RunOptions::new().hooks(hooks()).logits_at(-1);
        let logits = model.run(&tokens, run).unwrap().logits.unwrap(); // [input, 1, letter]
        tokens = Tensor::cat(&[tokens, logits.argmax(-1, false)], 1);
    }
    let (expected, _) = tokens.i((.., ..6)).sort(-1, false);
    tokens.i((.., 6..)).eq_tensor(&expected).all_dim(-1, false).sum(Kind::Int64).int64_value(&[])
}

#[test]
fn the_sorting_model_sorts_every_input() {
    let Some(folder) = folder(SORT) else { return };
    let model = HookedTransformer::from_pretrained(&folder).unwrap();
    let letters = |n: i64| -> Vec<i64> { (0..6).map(|i| n / 3i64.pow(i) % 3).collect() };
    let inputs: Vec<Vec<i64>> = (0..3i64.pow(6)).map(letters).collect();
    assert_eq!(sorted(&model, &inputs, Hooks::new), 729);
    // Which it cannot do blindfold: no position sees another without attention.
    let blind = sorted(&model, &inputs, || Hooks::new().replace("z", |z, _| z.zeros_like()));
    println!("{SORT}: 729 of 729 inputs sorted, {blind} of them without attention");
    assert!(blind < 100); // it writes the same whatever it read, and is right by luck
}

/// What is shown of a token can be given as an answer, for every id; and most tokens are shown as the text that they are.
#[rstest]
#[case("gpt2_tokenizer", 50_257, 49_913)]
#[case("stories260K", 512, 296)]
#[case("capp_gpt2", 53, 53)]
fn a_token_s_text_leads_back_to_it(#[case] name: &str, #[case] vocab_size: usize, #[case] as_decoded: usize) {
    let Some(folder) = folder(name) else { return };
    let tokenizer = Tokenizer::from_folder(&folder).unwrap().unwrap();
    assert_eq!(tokenizer.vocab_size(), vocab_size);
    let ids: Vec<i64> = (0..vocab_size as i64).collect();
    let texts = tokenizer.str_tokens(&ids).unwrap();
    let mut plain = 0;
    for (id, text) in ids.iter().zip(&texts) {
        assert_eq!(tokenizer.single_token(text).unwrap(), *id, "{text:?}");
        plain += usize::from(tokenizer.decode(&[*id]).unwrap().trim_start() == text.trim_start());
    }
    println!("{name}: {plain} of {vocab_size} tokens are shown as they are decoded");
    assert!(plain >= as_decoded, "{plain}");
    // Saved and loaded, special tokens are the same.
    let (json, config) = (tokenizer.json().unwrap(), tokenizer.config_json());
    let again = Tokenizer::from_bytes(json.as_bytes(), Some(config.as_bytes())).unwrap();
    assert_eq!(format!("{again:?}"), format!("{tokenizer:?}"));
    assert_eq!(again.str_tokens(&ids).unwrap(), texts);
}

const TEXTS: [&str; 8] = [
    "Hello, world!",
    "The quick brown fox doesn't jump over 1,234 lazy dogs.",
    "  leading,  double and trailing spaces  ",
    "tabs\tand\nnew lines\r\n\n",
    "Grüße aus Köln — naïve café, “quoted”",
    "日本語のテキスト и русский, العربية",
    "👩‍👩‍👧‍👦 emoji 🇩🇪 and \u{0}control\u{7f}",
    "fn main() { println!(\"{:?}\", x[0] += 1); }",
];

#[test]
fn the_gpt2_tokenizer_takes_text_apart_and_puts_it_together() {
    let Some(folder) = folder("gpt2_tokenizer") else { return };
    let tokenizer = Tokenizer::from_folder(&folder).unwrap().unwrap();
    assert_eq!(tokenizer.single_token(" road").unwrap(), 2975);
    assert_eq!(tokenizer.vocab_size(), 50257);
    assert_eq!(tokenizer.encode("Hello, world!", true).unwrap(), [50256, 15496, 11, 995, 0]);
    let round_trip = |text: &str| tokenizer.decode(&tokenizer.encode(text, false).unwrap()).unwrap();
    for text in TEXTS {
        assert_eq!(round_trip(text), text);
    }
    proptest!(crate::common::properties(), |(text in any::<String>())| {
        prop_assert_eq!(round_trip(&text), text);
    });
}
