//! This crate's side of `benches/peers/run`: loads a checkpoint, runs 16 positions, prints "first", and answers each line
//! on its standard input with milliseconds.
//!
//! Lines: `forward B P`, `cache B P` (every activation that fires by default), `resid B P` (`resid_post` of all layers),
//! `layer L B P` (that of layer L, and nothing after it); `full B P` (every neuron's, head's and embedding's part in one logit,
//! out of a cache that is there already), `heads B P` (that of the heads alone); `sweep SITE` (TransformerLens' patching function of
//! that site, out of a cache that is there already: all layers and positions of `resid_pre`, all heads of the others); `eap` (scores of
//! all edges by EAP, all runs included); `memory`, the largest memory so far over that of the weights; `bandwidth`, the rate in GB/s at
//! which one sum reads 400 MB; `weights`, the MB that one position reads.
//!
//! `saes_relu B P` and `saes_topk B P` (a run with 12 dictionaries of 24,576 features);
//! `generate B P N` (N tokens after P, greedily), `late P` (a token behind P positions: the mean of eight), `prefix P B N` (N tokens
//! in each of B rows behind a prefix of P that is run once), `apart P B N` (the same B rows, each run by itself).

use std::error::Error;
use std::io::BufRead;
use std::time::Instant;

use tch::{Device, Kind, Tensor};
use tch_lens::circuits::{Ablation, CircuitTask, EdgeMethod};
use tch_lens::sae::{DictionaryConfig, DictionaryWeights, FeatureActivation, SaeOptions};
use tch_lens::{
    hook, patching, Dictionary, FullOptions, GenerateOptions, HeadOptions, HookedTransformer, KeyValueStore, Metric,
    ReturnType, RunOptions, StepOptions,
};

fn main() -> Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let folder = std::env::args().nth(1).ok_or("usage: peer FOLDER")?;
    let model = HookedTransformer::from_pretrained(&folder)?;
    let _ = model.forward(tokens(1, 16))?;
    println!("first");
    let mut spliced: Option<(String, HookedTransformer)> = None;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["sweep", site] = words[..] {
            println!("{}", sweep(&model, site)?);
            continue;
        }
        let numbers = words.iter().skip(1).map(|word| word.parse()).collect::<Result<Vec<i64>, _>>()?;
        if let Some(kind) = words.first().and_then(|word| word.strip_prefix("saes_")) {
            if spliced.as_ref().is_none_or(|(of, _)| of != kind) {
                drop(spliced.take()); // one set in memory at a time
                spliced = Some((kind.into(), saes(&model, kind)?));
            }
            if let (Some((_, spliced)), [batch, pos]) = (&spliced, &numbers[..]) {
                let start = Instant::now();
                drop(spliced.forward(tokens(*batch, *pos))?);
                println!("{}", start.elapsed().as_secs_f64() * 1e3);
            }
            continue;
        }
        let cache = match (words.first(), &numbers[..]) {
            (Some(&("full" | "heads")), [batch, pos]) => Some(model.run_with_cache(tokens(*batch, *pos))?.1),
            _ => None,
        };
        let start = Instant::now();
        match (words.first().copied().unwrap_or_default(), &numbers[..]) {
            ("forward", [batch, pos]) => drop(model.forward(tokens(*batch, *pos))?),
            ("cache", [batch, pos]) => drop(model.run_with_cache(tokens(*batch, *pos))?),
            ("resid", [batch, pos]) => drop(model.run_with_cache_of(tokens(*batch, *pos), "resid_post")?),
            ("layer", [layer, batch, pos]) => {
                let run = RunOptions::new().cache(hook::resid_post(*layer as usize)).return_type(ReturnType::None);
                drop(model.run(tokens(*batch, *pos), run)?);
            }
            ("full", _) => drop(cache.map(|cache| cache.logit_attrs(FullOptions::new(), TOKEN)).transpose()?),
            ("heads", _) => drop(cache.map(|cache| cache.logit_attrs(HeadOptions::new(), TOKEN)).transpose()?),
            ("generate", [batch, pos, new]) => drop(model.generate(tokens(*batch, *pos), &greedy(*new))?),
            ("late", [pos]) => {
                let mut store = KeyValueStore::new(&model, 1, *pos as usize + 9)?;
                model.run(tokens(1, *pos), RunOptions::new().past(&mut store).return_type(ReturnType::None))?;
                let start = Instant::now();
                drop(model.generate_with(tokens(1, 1), &greedy(8), StepOptions::new().past(store))?);
                println!("{}", start.elapsed().as_secs_f64() * 1e3 / 8.0);
                continue;
            }
            ("prefix", [pos, batch, new]) => {
                let mut store = KeyValueStore::new(&model, 1, (*pos + *new) as usize + 1)?;
                model.run(tokens(1, *pos), RunOptions::new().past(&mut store).return_type(ReturnType::None))?;
                drop(model.generate_with(tokens(*batch, 1), &greedy(*new), StepOptions::new().past(store))?);
            }
            ("apart", [pos, batch, new]) => {
                for row in 0..*batch {
                    let prompt = Tensor::cat(&[tokens(1, *pos), tokens(*batch, 1).narrow(0, row, 1)], 1);
                    drop(model.generate(prompt, &greedy(*new))?);
                }
            }
            ("eap", []) => {
                println!("{}", eap(&model)?);
                continue;
            }
            ("bandwidth", []) => {
                let x = Tensor::ones([100_000_000], (Kind::Float, Device::Cpu));
                let rate = || {
                    let start = Instant::now();
                    let _ = x.sum(Kind::Float);
                    0.4 / start.elapsed().as_secs_f64()
                };
                println!("{}", (0..8).map(|_| rate()).fold(0.0, f64::max));
                continue;
            }
            ("weights", []) => {
                // All but the embeddings, of which one row is read.
                let read = |name: &str| !(name.starts_with("embed.") || name.starts_with("pos_embed."));
                let weights = model.parameters();
                let bytes: usize = weights.iter().filter(|(name, _)| read(name)).map(|(_, w)| w.numel() * 4).sum();
                println!("{}", bytes as f64 / 1e6);
                continue;
            }
            ("memory", []) => {
                let bytes = |w: &tch::Tensor| w.numel() * w.kind().elt_size_in_bytes();
                let weights: usize = model.parameters().iter().map(|(_, w)| bytes(w)).sum();
                println!("{}", peak_bytes() / weights as f64);
                continue;
            }
            _ => return Err(format!("unknown line: {line}").into()),
        }
        println!("{}", start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(())
}

/// The milliseconds of a sweep over a site: two rows of 15 tokens, which differ from those of the clean run from the second on.
fn sweep(model: &HookedTransformer, site: &str) -> Result<f64, Box<dyn Error>> {
    let (clean, corrupted) = prompts();
    let (_, cache) = model.run_with_cache(&clean)?;
    let metric = Metric::logit_diff(TOKEN, TOKEN + 2);
    let patch = match site {
        "resid_pre" => patching::get_act_patch_resid_pre,
        "z" => patching::get_act_patch_attn_head_out_all_pos,
        "q" => patching::get_act_patch_attn_head_q_all_pos,
        "k" => patching::get_act_patch_attn_head_k_all_pos,
        "v" => patching::get_act_patch_attn_head_v_all_pos,
        "pattern" => patching::get_act_patch_attn_head_pattern_all_pos,
        _ => return Err(format!("no sweep over {site}").into()),
    };
    let start = Instant::now();
    let map = patch(model, &corrupted, &cache, &metric)?;
    let value = map.tensor().sum(Kind::Double).double_value(&[]);
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    eprintln!("{site}: the values sum to {value:.4}");
    Ok(milliseconds)
}

/// The milliseconds of EAP over all edges, on the same rows.
fn eap(model: &HookedTransformer) -> Result<f64, Box<dyn Error>> {
    let (clean, corrupted) = prompts();
    let metric = Metric::logit_diff(TOKEN, TOKEN + 2);
    let start = Instant::now();
    let task = CircuitTask::new(model, &clean, Ablation::counterfactual(&corrupted), &metric)?;
    let scores = task.edge_scores(EdgeMethod::Gradient)?.tensor()?;
    let milliseconds = start.elapsed().as_secs_f64() * 1e3;
    let sum = scores.abs().sum(Kind::Double).double_value(&[]);
    eprintln!("eap: the sizes of {} scores sum to {sum:.6}", scores.numel());
    Ok(milliseconds)
}

/// Two rows of 15 tokens, and others that differ from the second token on.
fn prompts() -> (Tensor, Tensor) {
    let clean = tokens(2, 15);
    let corrupted = Tensor::cat(&[clean.narrow(1, 0, 1), clean.narrow(1, 1, 14) + 1], 1);
    (clean, corrupted)
}

/// The model with 12 dictionaries of 24,576 features at `resid_pre`: random directions, with biases at which 60 features of a token are
/// active on average, or TopK 32.
fn saes(model: &HookedTransformer, kind: &str) -> Result<HookedTransformer, Box<dyn Error>> {
    let (_, cache) = model.run_with_cache_of(tokens(1, 128), "resid_pre")?;
    let mut saes = Vec::new();
    for layer in 0..model.config().n_layers {
        let drawn = Tensor::randn([24576, 768], (Kind::Float, Device::Cpu));
        let directions = &drawn / drawn.square().sum_dim_intlist([-1i64].as_slice(), true, Kind::Float).sqrt();
        let point = hook::resid_pre(layer);
        let (activation, bias) = match kind {
            "topk" => (FeatureActivation::TopK(32), 0.0),
            _ => {
                let pre = cache.get(point)?.select(0, 0).matmul(&directions.tr()).flatten(0, -1);
                (FeatureActivation::Relu, -pre.topk(60 * 128, 0, true, false).0.min().double_value(&[]))
            }
        };
        let zeros = |n: i64| Tensor::zeros([n], (Kind::Float, Device::Cpu));
        let weights = DictionaryWeights {
            w_dec: directions.copy(),
            w_enc: directions,
            b_enc: zeros(24576) + bias,
            b_dec: zeros(768),
            w_skip: None,
            threshold: None,
            b_gate: None,
            r_mag: None,
        };
        saes.push(Dictionary::new(DictionaryConfig::new(point, activation), weights)?);
    }
    Ok(model.with_saes(saes, SaeOptions::new())?)
}

/// So many of the most likely tokens, whatever they are.
fn greedy(new: i64) -> GenerateOptions {
    GenerateOptions::new().do_sample(false).stop_at_eos(false).max_new_tokens(new as usize)
}

/// Whose logit is attributed.
const TOKEN: i64 = 5;

fn tokens(batch: i64, pos: i64) -> Tensor {
    let ids = Tensor::arange(batch * pos, (Kind::Int64, Device::Cpu)) * 7919;
    ids.remainder(50000).view([batch, pos])
}

fn peak_bytes() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(f64::NAN) * 1024.0
}
