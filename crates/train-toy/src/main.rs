//! Trains the model that the crate carries, from nothing, and examines it.
//!
//! What one sees: the stages of the training with the loss as it falls, then, for each of the five kinds of sentences
//! of [`language`], how many questions the model answers that it never saw. The model is written as a Hugging Face
//! folder of the GPT-2 family; the same seed on the same machine gives the same model.
//!
//! ```text
//! cargo run --release -p train-toy
//! ```

mod adamw;
mod exam;
mod folder;
mod language;
mod lessons;
mod transcoders;
mod vocabulary;

use std::error::Error;
use std::f64::consts::PI;
use std::path::PathBuf;

use adamw::AdamW;
use indicatif::{ProgressBar, ProgressStyle};
use language::Task;
use lessons::{Lesson, Stage};
use lexopt::prelude::*;
use rand::rngs::StdRng;
use rand::SeedableRng;
use tch::{Device, Kind, Tensor};
use tch_lens::{Config, HookedTransformer, Init, Tokenizer};

const HELP: &str = "\
Trains the toy model and examines it on what it never saw

  --steps N      steps of training (default: 6000)
  --seed N       of the weights and of the texts (default: 1)
  --threads N    one, so that the order of sums, and with it the model, does not depend on the machine's cores (default: 1)
  --out FOLDER   the folder to write (default: models/toy, or models/toy-transcoders)
  --transcoders  trains the transcoders of the toy model instead, in 900 steps unless said otherwise";

struct Options {
    steps: usize,
    seed: u64,
    threads: i32,
    out: PathBuf,
}

/// Spans come first: the heads that look up what followed a word are slow to form among other sentences, and once
/// there they serve all kinds. Short documents come before long ones, which cost more and teach the same.
const STAGES: [Stage; 3] = [
    Stage { from: 0.0, tasks: &[Task::Repetition], documents: 32, length: 32, repeated: 4.0 },
    Stage { from: 0.2, tasks: &Task::ALL, documents: 32, length: 32, repeated: 1.0 },
    Stage { from: 0.5, tasks: &Task::ALL, documents: 16, length: 64, repeated: 1.0 },
];

const N_CTX: usize = 64;
/// The standard deviation of fresh weights.
const SPREAD: f64 = 0.07;

/// The highest learning rate, and the steps in which it is reached.
const RATE: f64 = 2e-3;
const WARM_UP: f64 = 100.0;

/// Questions of each kind in the examination, and the share of them that must be answered.
const QUESTIONS: usize = 1000;
const ENOUGH: f64 = 0.95;

fn main() -> Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let mut transcoders = false;
    let (mut steps, mut out) = (None, None);
    let mut options = Options { steps: 6000, seed: 1, threads: 1, out: "models/toy".into() };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("steps") => steps = Some(arguments.value()?.parse()?),
            Long("seed") => options.seed = arguments.value()?.parse()?,
            Long("threads") => options.threads = arguments.value()?.parse()?,
            Long("out") => out = Some(PathBuf::from(arguments.value()?)),
            Long("transcoders") => transcoders = true,
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    tch::set_num_threads(options.threads);
    if transcoders {
        let out = out.unwrap_or_else(|| "models/toy-transcoders".into());
        return transcoders::train(steps.unwrap_or(900), options.seed, &out);
    }
    options.steps = steps.unwrap_or(options.steps);
    options.out = out.unwrap_or(options.out);
    let tokenizer = Tokenizer::from_bytes(
        vocabulary::tokenizer().to_string().as_bytes(),
        Some(vocabulary::tokenizer_config(N_CTX).to_string().as_bytes()),
    )?;
    let model = fresh(tokenizer.vocab_size(), options.seed)?;
    println!("A transformer of {} parameters learns a language of {} words.", model.n_params(), tokenizer.vocab_size());
    train(&model, &tokenizer, &options)?;

    folder::write(&options.out, &model)?;
    println!("\nWritten to {}. What it answers, of {QUESTIONS} questions never seen:\n", options.out.display());
    if !examined(&HookedTransformer::from_pretrained(&options.out)?)? {
        return Err(format!("the model does not answer {:.0} % of each kind", 100.0 * ENOUGH).into());
    }
    Ok(())
}

/// The model before it learned anything.
fn fresh(d_vocab: usize, seed: u64) -> Result<HookedTransformer, Box<dyn Error>> {
    let config = Config { tie_word_embeddings: true, ..Config::new(4, 128, 4, d_vocab, N_CTX) };
    let model = HookedTransformer::init_with(config, Init::Gpt2 { std: Some(SPREAD) }, seed as i64)?;
    let writes = (2.0 * model.config().n_layers as f64).sqrt(); // as many sublayers add to the stream (Radford et al. 2019)
    for (name, mut tensor) in model.parameters() {
        match name.as_str() {
            "embed.W_E" => tensor *= 0.05 / 0.07,
            "pos_embed.W_pos" => tensor.copy_(&(waves(&tensor) * 0.07)),
            name if name.ends_with("attn.o.weight") || name.ends_with("mlp.out.weight") => tensor /= writes,
            _ => {}
        }
    }
    Ok(model)
}

/// Positions begin as sines and cosines (Vaswani et al. 2017), so that a head finds the position before it at once.
fn waves(like: &Tensor) -> Tensor {
    let (positions, width) = like.size2().expect("a matrix");
    let range = |of: i64| Tensor::arange(of, (Kind::Float, Device::Cpu));
    let frequencies = (range(width / 2) * (-1000_f64.ln() / (width / 2) as f64)).exp();
    let angles = range(positions).unsqueeze(1) * frequencies; // [pos, width / 2]
    Tensor::cat(&[angles.sin(), angles.cos()], 1) // [pos, width]
}

fn train(model: &HookedTransformer, tokenizer: &Tokenizer, options: &Options) -> Result<(), Box<dyn Error>> {
    // What GPT-2 does not have stays as it is: zero.
    let learned = model.parameters().into_iter().filter(|(name, _)| name != "unembed.b_U");
    let mut optimizer = AdamW::new(learned.map(|(_, tensor)| tensor));
    let mut rng = StdRng::seed_from_u64(options.seed);
    let bar = ProgressBar::new(options.steps as u64).with_style(ProgressStyle::with_template(
        "{bar:40} step {pos} of {len}   {msg}   {elapsed_precise} of about {duration_precise}",
    )?);
    let mut mean = 0.0; // of the last hundred losses, about
    for step in 0..options.steps {
        let stage = stage(step as f64 / options.steps as f64);
        let loss = loss(model, stage.lesson(tokenizer, &mut rng)?)?;
        optimizer.step(&loss, rate(step, options.steps));
        bar.inc(1);
        if step % 10 == 0 {
            mean += (loss.double_value(&[]) - mean) / if step == 0 { 1.0 } else { 10.0 };
            bar.set_message(format!("loss {mean:.3}"));
        }
        if (step + 1) % 500 == 0 {
            let line = format!("step {:5}   loss {mean:.3}   after {:.0} s", step + 1, bar.elapsed().as_secs_f64());
            bar.suspend(|| println!("{line}"));
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// The stage at this share of the training.
fn stage(done: f64) -> &'static Stage {
    STAGES.iter().rfind(|stage| stage.from <= done).expect("the first begins at 0")
}

/// Up in a line, down along a cosine to a fiftieth.
fn rate(step: usize, steps: usize) -> f64 {
    let (step, steps) = (step as f64 + 1.0, steps as f64);
    let done = ((step - WARM_UP) / (steps - WARM_UP)).max(0.0);
    RATE * (step / WARM_UP).min(0.02 + 0.98 * 0.5 * (1.0 + (PI * done).cos()))
}

/// The weighted mean of the cross entropy.
fn loss(model: &HookedTransformer, lesson: Lesson) -> tch_lens::Result<Tensor> {
    let logits = model.forward(lesson.tokens)?; // [document, pos, d_vocab]
    let log_probs =
        logits.log_softmax(-1, Kind::Float).gather(-1, &lesson.targets.unsqueeze(-1), false).squeeze_dim(-1);
    Ok(-(log_probs * &lesson.weights).sum(Kind::Float) / lesson.weights.sum(Kind::Float))
    // []
}

/// Prints the model's marks; whether they are all enough.
fn examined(model: &HookedTransformer) -> tch_lens::Result<bool> {
    println!("{:16} {:>8} {:>26}", "", "answered", "probability of the answer");
    let mut enough = true;
    for task in Task::ALL {
        let mark = exam::examine(model, task, QUESTIONS)?;
        println!("{task:16} {:>6.1} % {:>24.1} %", 100.0 * mark.right, 100.0 * mark.probability);
        enough &= mark.right >= ENOUGH;
    }
    Ok(enough)
}
