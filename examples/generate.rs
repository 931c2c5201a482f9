//! Continues a prompt, token by token, and steers it.
//!
//! ```text
//! cargo run --release --example generate
//! cargo run --release --example generate -- --prompt "The capital of" --samples 3 --temperature 0.8 --top-p 0.9 --seed 1
//! cargo run --release --example generate -- --steer "1:3: John: Mary"
//! cargo run --release --features hub --example generate -- --model gpt2-small --prompt "I think that" --tokens 60
//! ```
//!
//! `--steer LAYER:SCALE:FROM:TO` adds a direction to the stream before a layer, at every position but the first: the stream's difference
//! at the ends of the texts FROM and TO, times SCALE (Turner et al. 2023, "Activation Addition"). Both continuations are shown.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::time::Instant;

use lexopt::prelude::*;
use tch_lens::steering::{SteeringOptions, SteeringVector};
use tch_lens::{GenerateOptions, HookedTransformer, LoadOptions, Result, SamplingOptions, StepOptions};

const HELP: &str = "\
Continues a prompt, token by token

  --model NAME        a Hugging Face folder or, with feature `hub`, a name there (default: the toy model)
  --prompt TEXT       (default: When Mary and John went to the shop, John gave a bag to)
  --tokens N          how many tokens come at most (default: 24)
  --stop TEXT         a text that ends the continuation; may be repeated
  --samples N         how many continuations there are (default: 1)
  --greedy            always the most likely token: the default without options for drawing
  --temperature T     above 0: below 1 sharper, above 1 flatter
  --top-k K           draws among the K most likely tokens
  --top-p P           draws among the most likely tokens whose probabilities reach P
  --min-p P           draws among tokens at least P times as likely as the likeliest
  --repetition P      makes tokens that occurred less likely, above 1
  --seed N            where the random numbers begin
  --steer L:S:FROM:TO adds S times the way from text FROM to text TO to the stream before layer L";

struct Options {
    model: Option<String>,
    prompt: String,
    generate: GenerateOptions,
    sampling: SamplingOptions,
    draws: bool,
    samples: usize,
    steer: Option<Steer>,
}

struct Steer {
    layer: i64,
    scale: f64,
    from: String,
    to: String,
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let mut options = Options {
        model: None,
        prompt: "When Mary and John went to the shop, John gave a bag to".into(),
        generate: GenerateOptions::new().max_new_tokens(24),
        sampling: SamplingOptions::new(),
        draws: false,
        samples: 1,
        steer: None,
    };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        let (generate, sampling) = (options.generate.clone(), options.sampling.clone());
        match argument {
            Long("model") => options.model = Some(arguments.value()?.string()?),
            Long("prompt") => options.prompt = arguments.value()?.string()?,
            Long("tokens") => options.generate = generate.max_new_tokens(arguments.value()?.parse()?),
            Long("stop") => options.generate = generate.stop_string(arguments.value()?.string()?),
            Long("samples") => options.samples = arguments.value()?.parse()?,
            Long("greedy") => options.sampling = SamplingOptions::greedy(),
            Long("repetition") => options.sampling = sampling.repetition_penalty(arguments.value()?.parse()?),
            Long("steer") => options.steer = Some(arguments.value()?.parse_with(steer)?),
            Long(name @ ("temperature" | "top-k" | "top-p" | "min-p" | "seed")) => {
                let name = name.to_string();
                let value = arguments.value()?;
                options.draws = true;
                options.sampling = match name.as_str() {
                    "temperature" => sampling.temperature(value.parse()?),
                    "top-k" => sampling.top_k(value.parse()?),
                    "top-p" => sampling.top_p(value.parse()?),
                    "min-p" => sampling.min_p(value.parse()?),
                    _ => sampling.seed(value.parse()?),
                };
            }
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(run(options)?)
}

fn steer(text: &str) -> std::result::Result<Steer, String> {
    let parts: Vec<&str> = text.splitn(4, ':').collect();
    let [layer, scale, from, to] = parts[..] else { return Err("expected LAYER:SCALE:FROM:TO".into()) };
    let number = |what: &str| format!("{what} is no number");
    let layer = layer.trim().parse().map_err(|_| number("the layer"))?;
    let scale = scale.trim().parse().map_err(|_| number("the scale"))?;
    Ok(Steer { layer, scale, from: from.into(), to: to.into() })
}

fn run(options: Options) -> Result<()> {
    let model = match &options.model {
        Some(name) => LoadOptions::new().device(tch_lens::cuda_if_available()).open(name)?,
        None => HookedTransformer::toy()?,
    };
    let mut generate = options.generate.sampling(options.sampling).samples(options.samples);
    if !options.draws && options.samples == 1 {
        generate = generate.do_sample(false);
    }
    continued(&model, &options.prompt, &generate, StepOptions::new())?;
    if let Some(steer) = options.steer {
        let Steer { layer, scale, from, to } = &steer;
        println!("\nsteered before layer {layer}, {scale} times from {from:?} to {to:?}:\n");
        let point = ("resid_pre", *layer);
        let vector = SteeringVector::from_pairs(&model, point, to, from, SteeringOptions::new())?;
        let hooks = vector.hooks(*scale, 1..)?;
        continued(&model, &options.prompt, &generate, StepOptions::new().hooks(hooks))?;
    }
    Ok(())
}

/// Prints each piece of text when it is certain: of one sample as it comes, of several one after the other.
fn continued(model: &HookedTransformer, prompt: &str, options: &GenerateOptions, steps: StepOptions) -> Result<()> {
    let start = Instant::now();
    let mut generation = model.generation(prompt, options, steps)?;
    let single = generation.rows().len() == 1;
    if single {
        print!("{prompt}");
    }
    let mut count = 0;
    for step in &mut generation {
        for row in step?.rows {
            count += 1;
            if single {
                print!("{}", row.text);
                let _ = std::io::stdout().flush();
            }
        }
    }
    if single {
        println!();
    }
    for row in generation.rows() {
        if !single {
            println!("{prompt}{}", row.text());
        }
        if std::io::stderr().is_terminal()
            && let Some(reason) = row.stop_reason()
        {
            eprintln!("  ends with: {reason}");
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("  {count} tokens in {seconds:.2} s, {:.0} a second", count as f64 / seconds);
    Ok(())
}
