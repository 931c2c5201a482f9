//! Which parts of the model push towards the name? Direct logit attribution on the toy model's indirect-object prompt.
//!
//! Prints, for the difference between the logits of " Mary" and " John": what each layer's attention and MLP add, a table of all
//! heads, the heads that add most and whether they look at the answer, the neurons that add most, and by how much all of it together misses the logit difference (next to nothing).
//!
//! ```text
//! cargo run --example direct_logit_attribution
//! cargo run --example direct_logit_attribution -- --prompt "…" --answer " Mary" --wrong " John"
//! ```

use std::error::Error;
use std::path::PathBuf;

use lexopt::prelude::*;
use tch_lens::tch::Kind;
use tch_lens::{Component, DecomposeOptions, FullOptions, HeadOptions, HookedTransformer, NeuronOptions};

const HELP: &str = "\
Direct logit attribution: by layer, by head, by neuron

  --model FOLDER   a Hugging Face folder (default: the toy model)
  --prompt TEXT    (default: When Mary and John went to the shop, John gave a bag to)
  --answer TOKEN   (default: ' Mary')
  --wrong TOKEN    the token that the answer is compared with (default: ' John')
  --top N          how many heads and neurons to list (default: 5)";

struct Options {
    model: Option<PathBuf>,
    prompt: String,
    answer: String,
    wrong: String,
    top: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let mut options = Options {
        model: None,
        prompt: "When Mary and John went to the shop, John gave a bag to".into(),
        answer: " Mary".into(),
        wrong: " John".into(),
        top: 5,
    };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("model") => options.model = Some(arguments.value()?.into()),
            Long("prompt") => options.prompt = arguments.value()?.string()?,
            Long("answer") => options.answer = arguments.value()?.string()?,
            Long("wrong") => options.wrong = arguments.value()?.string()?,
            Long("top") => options.top = arguments.value()?.parse()?,
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let model = match &options.model {
        Some(folder) => HookedTransformer::from_pretrained(folder)?,
        None => HookedTransformer::toy()?,
    };
    let (_, cache) = model.run_with_cache(&options.prompt)?;
    let answer = || (&options.answer, &options.wrong);
    println!("{}", options.prompt);
    println!("logit of {:?} less that of {:?}, at the last position\n", options.answer, options.wrong);

    println!("by layer");
    let stack = cache.decompose_resid(DecomposeOptions::new().pos(-1))?;
    let by_layer = cache.logit_attrs(&stack, answer())?.batch(0)?;
    for (row, value) in by_layer.rows().iter().zip(Vec::<f64>::try_from(by_layer.tensor())?) {
        println!("  {row:<12}{value:+8.3}  {}", bar(value));
    }

    println!("\nby head");
    let heads = cache.logit_attrs(HeadOptions::new().pos(-1), answer())?.batch(0)?;
    let table = heads.by_head()?; // [layer, head]
    let size = table.size();
    print!("  {:8}", "");
    for head in 0..size[1] {
        print!("{:>8}", format!("H{head}"));
    }
    for layer in 0..size[0] {
        print!("\n  {:8}", format!("layer {layer}"));
        for head in 0..size[1] {
            print!("{:+8.3}", table.double_value(&[layer, head]));
        }
    }

    println!("\n\nthe heads that add most, and where they look from the last position");
    let tokens = model.to_str_tokens(&options.prompt)?;
    for (row, value) in heads.top(options.top)?.rows {
        let Component::Head { layer, head } = row else { continue };
        let pattern = cache.get(("pattern", layer as i64))?.select(0, 0).select(0, head as i64).select(0, -1); // [key]
        let pattern = Vec::<f64>::try_from(pattern.to_kind(Kind::Double))?;
        let most = (0..pattern.len()).max_by(|a, b| pattern[*a].total_cmp(&pattern[*b])).unwrap_or(0);
        // A name mover copies the name that it looks at; without a look at the name, a head adds to its logit in some other way.
        let on_answer: f64 =
            pattern.iter().zip(&tokens).filter(|(_, token)| **token == options.answer).map(|(p, _)| p).sum();
        let verdict = if value > 0.0 && on_answer > 0.5 { "moves the name" } else { "" };
        let look = format!("{:3.0} % on {:?}", 100.0 * pattern[most], tokens[most]);
        let line = format!("  {row:<8}{value:+8.3}  {look:<24}{:3.0} % on the answer  {verdict}", 100.0 * on_answer);
        println!("{}", line.trim_end());
    }

    if !model.config().attn_only() {
        println!("\nby neuron");
        let neurons = cache.logit_attrs(NeuronOptions::new().pos(-1), answer())?.batch(0)?;
        for (row, value) in neurons.top(options.top)?.rows {
            println!("  {row:<8}{value:+8.3}");
        }
    }

    let all = cache.logit_attrs(FullOptions::new().pos(-1), answer())?;
    println!(
        "\nall {} heads, neurons, embeddings and biases: {:+.3}\nthe model: {:+.3} (off by {:.0e})",
        all.rows().len(),
        all.sum()?.double_value(&[0]),
        all.logit()?.double_value(&[0]),
        all.residual_error()?
    );
    Ok(())
}

/// A bar as long as the value, at most 40 characters.
fn bar(value: f64) -> String {
    let mark = if value < 0.0 { "-" } else { "+" };
    mark.repeat((value.abs() * 4.0).round().min(40.0) as usize)
}
