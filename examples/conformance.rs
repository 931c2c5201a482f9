//! Compares every family with its reference, and with itself, and prints `docs/conformance.md`.
//!
//! ```text
//! $ cargo run --release --example conformance > docs/conformance.md
//! ```
//!
//! The tiny checkpoints and the expected figures are those of `tests/fixtures`, so the command runs in the repository.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

use tch_lens::config::NormPosition;
use tch_lens::tch::{Kind, Tensor};
use tch_lens::{
    hook, ActivationCache, Comparison, Config, DecomposeOptions, FullOptions, GenerateOptions, HeadOptions, HookFilter,
    HookPoint, HookedTransformer, KeyValueStore, LoadOptions, PaddingSide, Reference, RunOptions, StepOptions,
    SupportedArchitecture, Target, Tokens,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const HEAD: &str = "\
# Conformance

This page is made by `cargo run --release --example conformance > docs/conformance.md`. Each row is a tiny checkpoint of
`tests/fixtures`, with random weights. The reference is transformers 5.23 (logits, residual streams, attention patterns) and, where the
row has more than that, TransformerLens 3.9 (all activations). The table has the largest differences, relative to the largest entry of
what is compared where that is above one.

| column | what is compared |
| --- | --- |
| logits | fp32, of the raw model, with the reference |
| activations | fp32, how many of the reference's there are, and their largest difference |
| sums | fp64, every decomposition with the stream at every target, and every attribution with the logit |
| alone | fp64, rows of a batch with the same rows alone |
| left, right | fp64, rows that are padded on that side with the same rows alone |
| processed | fp64, log-probabilities after weight processing with those before |
| cached | fp64, tokens in parts, after a store of keys and values, with all at once |
| generated | fp64, logits of each token of a greedy generation behind a store with those of the whole text computed again |
| gradients | fp64, the derivative of a fixed combination of the logits along a fixed direction of the first stream, with finite differences at the best of four steps |

| checkpoint | architecture | logits | activations | sums | alone | left | right | processed | cached | generated | gradients | reference |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |";

const ARCHITECTURES: &str = "
## Architectures

What `HookedTransformer::supported()` returns: each architecture, the checkpoints above that are of it, what these were compared with,
and the largest difference of logits and activations.

| architecture | model_type | checkpoints | reference | largest |
| --- | --- | --- | --- | ---: |";

fn main() -> Result<()> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    println!("{HEAD}");
    let (mut rows, mut refused, mut compared) = (0, Vec::new(), Vec::new());
    for folder in folders(&fixtures)? {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match LoadOptions::new().no_processing().open(&folder) {
            Ok(model) => {
                let (text, comparison) = row(name, &folder, &model)?;
                println!("{text}");
                rows += 1;
                compared.push((model.config().original_architecture.clone(), comparison));
            }
            Err(error) => refused.push(format!("| {name} | {error} |")),
        }
    }
    println!("\n{rows} checkpoints are compared. These are refused:\n\n| checkpoint | why |\n| --- | --- |");
    refused.iter().for_each(|row| println!("{row}"));
    println!("{ARCHITECTURES}");
    for architecture in HookedTransformer::supported() {
        let rows = compared.iter().filter(|(of, _)| of == architecture.architecture).map(|(_, row)| *row);
        println!("{}", SupportedArchitecture { comparisons: rows.collect(), ..architecture });
    }
    encoder_decoders(&fixtures.join("encoder_decoders"))
}

const HEAD_OF_TWO: &str = "
## Encoder-decoders

The activations are the residual streams and the attention patterns of both stacks, those of cross-attention included. The sums are of
both streams. Inputs of the encoder are padded. Five tokens are generated with a store of keys and values, and the last logits compared
with those of a whole run.

| checkpoint | architecture | logits | activations | sums | padded | cached |
| --- | --- | ---: | ---: | ---: | ---: | ---: |";

/// The table of encoder-decoders.
fn encoder_decoders(folder: &Path) -> Result<()> {
    println!("{HEAD_OF_TWO}");
    let mut folders = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    folders.sort();
    for folder in folders {
        let expected: BTreeMap<String, Tensor> =
            Tensor::read_safetensors(folder.join("expected.safetensors"))?.into_iter().collect();
        let (tokens, decoder_tokens) = (&expected["tokens"], &expected["decoder_tokens"]);
        let model = LoadOptions::new().open_encoder_decoder(&folder)?;
        let (logits, cache) = model.run_with_cache(tokens, decoder_tokens)?;
        let (mut count, mut of_activations) = (0, 0f64);
        for (key, theirs) in &expected {
            let stacks = [("encoder", &cache.encoder), ("decoder", &cache.decoder)];
            let Some((cache, rest)) = stacks.iter().find_map(|(stack, cache)| Some((cache, key.strip_prefix(stack)?)))
            else {
                continue;
            };
            let last = cache.model().config().n_layers - 1;
            let point = match rest.trim_start_matches('.').split_once('.') {
                Some(("hidden", layer)) if layer.parse::<usize>()? <= last => hook::resid_pre(layer.parse::<usize>()?),
                Some(("pattern", layer)) => hook::pattern(layer.parse::<usize>()?),
                Some(("cross", layer)) => hook::cross_pattern(layer.parse::<usize>()?),
                _ => continue,
            };
            (count, of_activations) = (count + 1, of_activations.max(difference(cache.get(point)?, theirs)));
        }
        let mask = expected["pad.attention_mask"].to_kind(Kind::Bool);
        let padded = Tokens { mask: Some(mask), ..Tokens::new(&expected["pad.tokens"])? };
        let of_padding = difference(&model.forward(&padded, decoder_tokens)?, &expected["pad.logits"]);
        let double = LoadOptions::new().kind(Kind::Double).open_encoder_decoder(&folder)?;
        let (_, cache) = double.run_with_cache(tokens, decoder_tokens)?;
        let of_sums = sums_of_cache(&cache.encoder)?.max(sums_of_cache(&cache.decoder)?);
        let options = GenerateOptions::new().do_sample(false).stop_at_eos(false).max_new_tokens(5);
        let steps = StepOptions::new().logits(true);
        let start = vec![vec![double.start_token()?]; tokens.size()[0] as usize];
        let generated = double.generate_with(tokens, start, &options, steps)?;
        let whole = double.forward(tokens, &generated.tokens)?;
        let mut of_generation = 0f64;
        for (row, logits) in generated.logits.iter().flatten().enumerate() {
            let whole = whole.select(0, row as i64).narrow(0, 0, logits.size()[0]);
            of_generation = of_generation.max(difference(logits, &whole));
        }
        let cells = [
            shown(difference(&logits, &expected["logits"])),
            format!("{count}: {}", shown(of_activations)),
            shown(of_sums),
            shown(of_padding),
            shown(of_generation),
        ];
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("| {name} | {} | {} |", model.decoder().config().original_architecture, cells.join(" | "));
    }
    Ok(())
}

/// Decompositions of one stack's stream at every target.
fn sums_of_cache(cache: &ActivationCache) -> Result<f64> {
    let config = cache.model().config();
    let mut targets = vec![Target::Unembed];
    for layer in 0..config.n_layers {
        targets.extend([Target::attn(layer), Target::mlp(layer)]);
        if config.attention.cross.is_some() {
            targets.push(Target::cross_attn(layer));
        }
    }
    let mut worst = 0f64;
    for target in targets {
        let heads = cache.stack_head_results(HeadOptions::new().target(target).incl_remainder(true))?;
        let whole = heads.sum()?;
        let sublayers = cache.decompose_resid(DecomposeOptions::new().target(target))?;
        let full = cache.get_full_resid_decomposition(FullOptions::new().target(target))?;
        worst = worst.max(difference(&sublayers.sum()?, &whole)).max(difference(&full.sum()?, &whole));
    }
    Ok(worst)
}

/// Every folder with a checkpoint and what is expected of it.
fn folders(fixtures: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for parent in [fixtures.to_path_buf(), fixtures.join("transformers")] {
        for entry in std::fs::read_dir(parent)? {
            let folder = entry?.path();
            let has_config = ["config.json", "cfg.json"].iter().any(|name| folder.join(name).is_file());
            if has_config && folder.join("expected.safetensors").is_file() {
                folders.push(folder);
            }
        }
    }
    folders.sort_by_key(|folder| folder.file_name().map(std::ffi::OsStr::to_os_string));
    Ok(folders)
}

fn row(name: String, folder: &Path, model: &HookedTransformer) -> Result<(String, Comparison)> {
    let expected: BTreeMap<String, Tensor> =
        Tensor::read_safetensors(folder.join("expected.safetensors"))?.into_iter().collect();
    let tokens = Tokens::new(&expected["tokens"])?;
    let tokens = &match expected.get("token_type_ids") {
        Some(types) => tokens.with_types(types)?,
        None => tokens,
    };
    let logits = ["logits", "hf.logits", "raw.logits"].iter().find_map(|key| expected.get(*key));
    let logits = logits.ok_or("no logits are expected")?;
    let of_transformers = expected.contains_key("logits");
    let reference = if of_transformers { Reference::Transformers } else { Reference::TransformerLens };
    let of_logits = difference(&model.forward(tokens)?, logits);
    let (count, of_activations) = activations(model, tokens, &expected)?;
    let double = LoadOptions::new().no_processing().kind(Kind::Double).open(folder)?;
    let processed = LoadOptions::new().kind(Kind::Double).open(folder)?;
    let log_probs =
        |model: &HookedTransformer| -> Result<Tensor> { Ok(model.forward(tokens)?.log_softmax(-1, Kind::Double)) };
    let cells = [
        shown(of_logits),
        format!("{count}: {}", shown(of_activations)),
        shown(sums(&double, tokens)?.max(sums(&processed, tokens)?)),
        shown(alone(&double, tokens, None)?),
        shown(alone(&double, tokens, Some(PaddingSide::Left))?),
        shown(alone(&double, tokens, Some(PaddingSide::Right))?),
        shown(difference(&log_probs(&processed)?, &log_probs(&double)?)),
        cached(&double, tokens)?.map_or("–".into(), shown),
        generated(&double, tokens)?.map_or("–".into(), shown),
        shown(gradients(&double, tokens)?),
        match reference {
            Reference::Transformers => "transformers 5.23".into(),
            Reference::TransformerLens => "TransformerLens 3.9".into(),
        },
    ];
    let architecture = &model.config().original_architecture;
    let shown = if architecture.is_empty() { "–" } else { architecture };
    let text = format!("| {name} | {shown} | {} |", cells.join(" | "));
    let (checkpoint, difference) = (name.leak(), of_activations);
    Ok((text, Comparison { checkpoint, reference, logits: of_logits, activations: count, difference }))
}

/// Streams and patterns, or the activations of TransformerLens that have our shape.
fn activations(
    model: &HookedTransformer,
    tokens: &Tokens,
    expected: &BTreeMap<String, Tensor>,
) -> Result<(usize, f64)> {
    let names = model.hook_names();
    let cache = model.run(tokens, RunOptions::new().cache(names.clone()))?.cache;
    let last = model.config().n_layers - 1;
    let (mut count, mut worst) = (0, 0f64);
    for (key, theirs) in expected {
        let name = match key.split_once('.') {
            _ if key == "resid_final" => stream_after(model.config(), last).to_string(),
            Some(("hidden", layer)) if layer.parse::<usize>()? <= last => {
                hook::resid_pre(layer.parse::<usize>()?).to_string()
            }
            Some(("pattern", layer)) => hook::pattern(layer.parse::<usize>()?).to_string(),
            _ => match key.strip_prefix("raw.cache.") {
                Some(name) if names.iter().any(|known| known == name) => name.to_string(),
                _ => continue,
            },
        };
        let ours = cache.get(name.as_str())?;
        if ours.size() == theirs.size() {
            (count, worst) = (count + 1, worst.max(difference(ours, theirs)));
        }
    }
    Ok((count, worst))
}

/// The stream after a layer, which a norm of the stream itself gives where there is one.
fn stream_after(config: &Config, layer: usize) -> HookPoint {
    match config.norm_position() {
        NormPosition::InStream => hook::normalized_resid_post(layer),
        _ => hook::resid_post(layer),
    }
}

/// Decompositions at every target, and attributions.
fn sums(model: &HookedTransformer, tokens: &Tokens) -> Result<f64> {
    let config = model.config();
    let (_, cache) = model.run_with_cache(tokens)?;
    let mut targets = vec![(Target::Unembed, stream_after(config, config.n_layers - 1))];
    for layer in 0..config.n_layers {
        targets.push((Target::attn(layer), hook::resid_pre(layer)));
        if !config.attn_only() {
            let mid = if config.parallel_attn_mlp { hook::resid_pre(layer) } else { hook::resid_mid(layer) };
            targets.push((Target::mlp(layer), mid));
        }
    }
    let mut worst = 0f64;
    for (target, stream) in targets {
        let sublayers = cache.decompose_resid(DecomposeOptions::new().target(target))?;
        let full = cache.get_full_resid_decomposition(FullOptions::new().target(target))?;
        worst = worst.max(difference(&sublayers.sum()?, &cache[stream])).max(difference(&full.sum()?, &cache[stream]));
    }
    let logit = cache[hook::unembed_out()].select(-1, 1);
    let stack = cache.decompose_resid(DecomposeOptions::new())?;
    for attribution in [cache.logit_attrs(&stack, 1)?, cache.logit_attrs(FullOptions::new(), 1)?] {
        worst = worst.max(difference(&attribution.sum()?, &logit));
    }
    Ok(worst)
}

/// Rows of a batch, padded to one length or of one length already, with the rows alone.
fn alone(model: &HookedTransformer, tokens: &Tokens, padding: Option<PaddingSide>) -> Result<f64> {
    let tokens = &tokens.ids;
    let longest = tokens.size()[1];
    let mut rows = Vec::new();
    for row in 0..tokens.size()[0] {
        let len = if padding.is_some() { (longest - 3 * row).max(1) } else { longest };
        rows.push(Vec::<i64>::try_from(tokens.select(0, row).narrow(0, 0, len))?);
    }
    let batch = Tokens::padded(&rows, 0, padding.unwrap_or(PaddingSide::Right))?;
    let logits = model.forward(&batch)?;
    let mut worst = 0f64;
    for (i, row) in rows.iter().enumerate() {
        let len = row.len() as i64;
        let start = if padding == Some(PaddingSide::Left) { longest - len } else { 0 };
        let alone = model.forward(row.clone())?.select(0, 0);
        worst = worst.max(difference(&logits.select(0, i as i64).narrow(0, start, len), &alone));
    }
    Ok(worst)
}

/// Tokens in two parts with all at once; `None` where a token sees what follows it.
fn cached(model: &HookedTransformer, tokens: &Tokens) -> Result<Option<f64>> {
    if model.config().attention_dir() != tch_lens::config::AttentionDir::Causal {
        return Ok(None);
    }
    let tokens = &tokens.ids;
    let (batch, len) = (tokens.size()[0], tokens.size()[1]);
    let whole = model.forward(tokens)?;
    let mut store = KeyValueStore::new(model, batch as usize, len as usize)?;
    let mut worst = 0f64;
    for (start, len) in [(0, len - 3), (len - 3, 1), (len - 2, 2)] {
        let run = RunOptions::new().past(&mut store);
        let run = if len == 1 { run.cache(HookFilter::All) } else { run };
        let part = tokens.narrow(1, start, len);
        let logits = model.run(&part, run)?.logits.ok_or("a run gives logits")?;
        worst = worst.max(difference(&logits, &whole.narrow(1, start, len)));
    }
    Ok(Some(worst))
}

/// The logits of each token of a greedy generation with those of its text at once; `None` where a model does not continue text.
fn generated(model: &HookedTransformer, tokens: &Tokens) -> Result<Option<f64>> {
    let config = model.config();
    if config.attention_dir() != tch_lens::config::AttentionDir::Causal || config.d_vocab_out != config.d_vocab {
        return Ok(None);
    }
    let prompts = Vec::<Vec<i64>>::try_from(&tokens.ids)?.into_iter().map(|row| row[..4].to_vec()).collect::<Vec<_>>();
    let options = GenerateOptions::new().do_sample(false).stop_at_eos(false).max_new_tokens(4);
    let steps = StepOptions::new().cache(hook::unembed_out());
    let generated = model.generate_with(prompts, &options, steps)?;
    let found = generated.cache.ok_or("a generation keeps what it is asked for")?;
    let whole = model.run(&generated.tokens, RunOptions::new().cache(hook::unembed_out()))?.cache;
    let point = hook::unembed_out();
    let len = found[point].size()[1];
    Ok(Some(difference(&found[point], &whole[point].narrow(1, 0, len))))
}

/// A derivative by the backward pass with one by finite differences.
fn gradients(model: &HookedTransformer, tokens: &Tokens) -> Result<f64> {
    let point = hook::resid_pre(0);
    let stream = model.run(tokens, RunOptions::new().cache(point))?.cache[point].copy();
    let waves = |size: &[i64], pace: f64| -> Tensor {
        let n = size.iter().product::<i64>();
        (Tensor::arange(n, (Kind::Double, stream.device())) * pace).cos().view(size)
    };
    let run = || RunOptions::new().start_at_layer(0).tokens(tokens);
    let combined = |logits: &Tensor| (logits * waves(&logits.size(), 1.7)).sum(Kind::Double);
    let direction = waves(&stream.size(), 0.3);
    let output = model.run_with_grad(&stream, run().cache(point), |output| Ok(combined(output.logits()?)))?;
    let found = (&output.gradients[point] * &direction).sum(Kind::Double);
    let at = |step: f64| -> Result<f64> {
        let logits = model.run(&stream + &direction * step, run())?.logits.ok_or("a run gives logits")?;
        Ok(combined(&logits).double_value(&[]))
    };
    let mut least = f64::INFINITY;
    // A long step may cross a kink of an activation function or another choice of experts, and a short one rounds more.
    for h in [1e-4, 1e-5, 1e-6, 1e-7] {
        let expected = (8.0 * (at(h)? - at(-h)?) - (at(2.0 * h)? - at(-2.0 * h)?)) / (12.0 * h);
        least = least.min(difference(&found, &Tensor::from(expected)));
    }
    Ok(least)
}

/// The largest difference, relative to the largest entry where that is above one; of infinities zero where both are the same.
fn difference(ours: &Tensor, theirs: &Tensor) -> f64 {
    let (ours, theirs) = (ours.to_kind(Kind::Double), theirs.to_kind(Kind::Double));
    let same = ours.eq_tensor(&theirs);
    let finite = theirs.where_self(&theirs.isfinite(), &Tensor::from(0.0));
    let largest = finite.abs().max().double_value(&[]).max(1.0);
    let differences = (ours - theirs).abs().where_self(&same.logical_not(), &Tensor::from(0.0));
    match differences.max().double_value(&[]) / largest {
        difference if difference.is_nan() => f64::INFINITY,
        difference => difference,
    }
}

fn shown(difference: f64) -> String {
    match difference {
        0.0 => "0".into(),
        _ => format!("{difference:.0e}"),
    }
}
