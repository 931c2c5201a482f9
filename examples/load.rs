//! Loads a model, and says what it is, what was done to its weights, and what that cost.
//!
//! ```text
//! $ cargo run --release --example load -- FOLDER
//! $ cargo run --release --features hub --example load -- roneneldan/TinyStories-1M
//! $ cargo run --release --features hub --example load -- pythia-70m --step 1000 --kind bf16
//!
//! model         gpt2, a GPT2LMHeadModel
//! parameters    163.0 M as Float on Cpu
//! layers        12 of 12 heads of 64; d_model 768, d_mlp 3072 (GeluNew)
//! vocabulary    50257 tokens, contexts of 1024
//! norms         LNPre, before each sublayer
//! positions     Standard
//! tokenizer     50257 tokens, BOS 50256
//!
//! processing    fold_ln done
//!               …
//!
//! loaded in     0.51 s
//! memory        621 MB of weights; at most 705 MB at once beyond what the program had, 1.13 times as much
//! ```

use std::error::Error;
use std::io::IsTerminal;
use std::time::Instant;

use lexopt::prelude::*;
use tch_lens::config::{MlpConfig, MlpKind, Reach};
use tch_lens::tch::Kind;
use tch_lens::{Config, HookedTransformer, LoadOptions};

const HELP: &str = "\
Loads a model, and says what it is, what was done to its weights, and what that cost

  MODEL            a folder or, with feature `hub`, a name there
  --kind KIND      what the weights are converted to: fp32, bf16 or fp16 (default: fp32)
  --raw            leave the weights as they are
  --revision NAME  a branch, tag or commit on the hub
  --step N         the model after so many steps of its training";

struct Options {
    model: String,
    kind: Kind,
    raw: bool,
    revision: Option<String>,
    step: Option<usize>,
}

fn main() -> Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let mut model = None;
    let mut options = Options { model: String::new(), kind: Kind::Float, raw: false, revision: None, step: None };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Value(name) if model.is_none() => model = Some(name.string()?),
            Long("kind") => options.kind = arguments.value()?.parse_with(kind)?,
            Long("raw") => options.raw = true,
            Long("revision") => options.revision = Some(arguments.value()?.string()?),
            Long("step") => options.step = Some(arguments.value()?.parse()?),
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    options.model = model.ok_or("which model? A folder, or with feature `hub` a name there")?;
    Ok(show(&options)?)
}

fn kind(name: &str) -> Result<Kind, String> {
    match name {
        "fp32" => Ok(Kind::Float),
        "bf16" => Ok(Kind::BFloat16),
        "fp16" => Ok(Kind::Half),
        _ => Err("the kinds are fp32, bf16 and fp16".into()),
    }
}

fn show(options: &Options) -> tch_lens::Result<()> {
    let mut load = LoadOptions::new().kind(options.kind).device(tch_lens::cuda_if_available());
    if options.raw {
        load = load.no_processing();
    }
    if let Some(revision) = &options.revision {
        load = load.revision(revision);
    }
    if let Some(step) = options.step {
        load = load.checkpoint_step(step);
    }
    let terminal = std::io::stderr().is_terminal();
    load = load.on_progress(move |done, of| {
        if terminal {
            eprint!("\rloading: {done} of {of}");
        }
    });
    let before = Memory::now();
    before.forget_the_peak();
    let start = Instant::now();
    let model = load.open(&options.model);
    let seconds = start.elapsed().as_secs_f64();
    if terminal {
        eprint!("\r\x1b[K");
    }
    let model = model?;
    let after = Memory::now();

    describe(&model);
    row("loaded in", format!("{seconds:.2} s"));
    let parameters = model.parameters();
    let bytes: usize = parameters.iter().map(|(_, w)| w.numel() * w.kind().elt_size_in_bytes()).sum();
    let mut memory = format!("{} MB of weights", bytes >> 20);
    if let (Some(before), Some(peak)) = (before.resident, after.peak) {
        let peak = peak.saturating_sub(before);
        let times = peak as f64 / bytes.max(1) as f64;
        memory += &format!("; at most {} MB at once beyond what the program had, {times:.2} times as much", peak >> 20);
    }
    row("memory", memory);
    Ok(())
}

fn describe(model: &HookedTransformer) {
    let config: &Config = model.config();
    let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let architecture = match config.original_architecture.as_str() {
        "" => String::new(),
        known => format!(", a {known}"),
    };
    row("model", format!("{}{architecture}", config.model_name));
    let millions = model.n_params() as f64 / 1e6;
    row("parameters", format!("{millions:.1} M as {:?} on {:?}", model.kind(), model.device()));
    let heads = match config.n_key_value_heads == config.n_heads {
        true => plural(config.n_heads, "head"),
        false => format!("{} ({} of keys and values)", plural(config.n_heads, "head"), config.n_key_value_heads),
    };
    let width = |layer: usize| config.mlp.as_ref().and_then(|mlp| mlp.widths.get(layer).copied().flatten());
    let has_others = (0..config.n_layers).any(|layer| width(layer).is_some());
    let others = match has_others {
        true => ", other widths in some layers",
        false => "",
    };
    let mlp = match &config.mlp {
        None => "no MLPs".to_string(),
        Some(MlpConfig { d_mlp, activation, kind, norm: _, widths: _ }) => match kind {
            MlpKind::Plain => format!("d_mlp {d_mlp}{others} ({activation:?})"),
            MlpKind::Gated => format!("d_mlp {d_mlp}{others} ({activation:?}, gated)"),
            MlpKind::Experts(experts) => {
                let (all, chosen) = (plural(experts.num_experts, "expert"), experts.experts_per_token);
                format!("{all} of d_mlp {d_mlp} ({activation:?}), {chosen} a token")
            }
        },
    };
    let shape = format!("{} of {heads} of {}; d_model {}, {mlp}", config.n_layers, config.d_head, config.d_model);
    row("layers", shape);
    row("vocabulary", format!("{} tokens, contexts of {}", config.d_vocab, config.n_ctx));
    let place = match config.norm_position() {
        tch_lens::config::NormPosition::Before => "before each sublayer",
        tch_lens::config::NormPosition::After => "after each sublayer",
        tch_lens::config::NormPosition::BeforeAndAfter => "before and after each sublayer",
        tch_lens::config::NormPosition::InStream => "of the stream after each sublayer",
    };
    row("norms", format!("{:?}, {place}", config.normalization_type()));
    let local = (0..config.n_layers).filter(|layer| config.reach(*layer) != Reach::Global);
    let window = match (config.window_size(), local.count()) {
        (Some(window), local) if local > 0 => format!("; {} of a window of {window}", plural(local, "layer")),
        _ => String::new(),
    };
    row("positions", format!("{:?}{window}", config.positional_embedding_type()));
    row(
        "tokenizer",
        match model.tokenizer() {
            Err(_) => "none".into(),
            Ok(tokenizer) => {
                let bos = tokenizer.bos_id().map_or("no BOS".into(), |bos| format!("BOS {bos}"));
                format!("{} tokens, {bos}", tokenizer.vocab_size())
            }
        },
    );
    println!();
    let mut name = "processing";
    for step in model.processing() {
        row(name, step.to_string());
        name = "";
    }
    if model.processing().is_empty() {
        row(name, "none: the weights are as they were".into());
    }
    println!();
}

fn row(name: &str, value: String) {
    println!("{name:<13} {value}");
}

/// This process' memory in bytes, as Linux counts it; elsewhere nothing.
struct Memory {
    resident: Option<usize>,
    peak: Option<usize>,
}

impl Memory {
    fn now() -> Self {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |field: &str| -> Option<usize> {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            Some(line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<usize>().ok()? << 10)
        };
        Memory { resident: bytes("VmRSS"), peak: bytes("VmHWM") }
    }

    /// From here on the peak is a new one.
    fn forget_the_peak(&self) {
        let _ = std::fs::write("/proc/self/clear_refs", "5"); // Linux alone has it
    }
}
