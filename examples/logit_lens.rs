//! What does the model believe after each layer? A logit lens at the last position of a prompt.
//!
//! Prints a row for the stream before each layer, and one for its end, each as if the model ended there: where the answer
//! stands among all tokens (0 is the likeliest), how probable it is, and the likeliest tokens. On the toy model's
//! indirect-object prompt " Mary" climbs to the top as heads move her name to the end.
//!
//! ```text
//! cargo run --example logit_lens
//! cargo run --example logit_lens -- --prompt "The capital of France is" --top 3
//! cargo run --release --example logit_lens -- --model path/to/folder --prompt "…" --answer " road"
//! cargo run --release --features hub --example logit_lens -- --model gpt2-small --prompt "…"
//! ```

use std::error::Error;
use std::io::IsTerminal;

use lexopt::prelude::*;
use tch_lens::{HookedTransformer, LensOptions, LoadOptions, Result};

const HELP: &str = "\
What a model believes after each layer

  --model NAME     a Hugging Face folder or, with feature `hub`, a name there (default: the toy model)
  --prompt TEXT    (default: When Mary and John went to the shop, John gave a bag to)
  --answer TOKEN   one token, with its space: ' Mary' (default: what the model itself says)
  --top N          how many tokens to list for each layer (default: 3, which fits 80 columns)";

struct Options {
    model: Option<String>,
    prompt: String,
    answer: Option<String>,
    top: usize,
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let mut options = Options {
        model: None,
        prompt: "When Mary and John went to the shop, John gave a bag to".into(),
        answer: None,
        top: 3,
    };
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("model") => options.model = Some(arguments.value()?.string()?),
            Long("prompt") => options.prompt = arguments.value()?.string()?,
            Long("answer") => options.answer = Some(arguments.value()?.string()?),
            Long("top") => options.top = arguments.value()?.parse()?,
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(print(options)?)
}

fn print(options: Options) -> Result<()> {
    let model = match &options.model {
        Some(name) => loaded(name)?,
        None => HookedTransformer::toy()?,
    };
    let (logits, cache) = model.run_with_cache(&options.prompt)?;
    let answer = match options.answer {
        Some(text) => model.to_single_token(&text)?,
        None => logits.select(0, 0).select(0, -1).argmax(-1, false).int64_value(&[]),
    };
    let text = model.to_single_str_token(answer)?;

    let lens = cache.logit_lens(LensOptions::new().pos(-1))?;
    let ranks = lens.rank_of(answer)?;

    println!("{}", options.prompt);
    println!("{:10}  {:>6} {:>7}   likeliest", "", "rank of", shown(&text, 10));
    for ((row, rank, probability), likely) in ranks.rows.iter().zip(lens.top(options.top)?) {
        print!("{:10}  {:>6} {:>7} ", row.to_string(), rank, percent(*probability));
        for (token, probability) in likely.tokens {
            let cell = format!(" {:<10} {:>5}", shown(&token, 10), percent(probability));
            print!("{}", if token == text { bold(&cell) } else { cell });
        }
        println!();
    }
    Ok(())
}

/// Large models take seconds: a line on the terminal says how far it is.
fn loaded(name: &str) -> Result<HookedTransformer> {
    let terminal = std::io::stderr().is_terminal();
    let model = LoadOptions::new().on_progress(move |done, of| {
        if terminal {
            eprint!("\rloading: {done} of {of}");
        }
    });
    let model = model.open(name);
    if terminal {
        eprint!("\r\x1b[K");
    }
    model
}

/// A token in quotes, so that its space is visible, cut to `width`.
fn shown(token: &str, width: usize) -> String {
    let quoted = format!("{token:?}");
    if quoted.chars().count() <= width {
        return quoted;
    }
    quoted.chars().take(width - 1).chain(['…']).collect()
}

fn percent(probability: f64) -> String {
    match 100.0 * probability {
        p if p < 0.05 => "0 %".into(),
        p if p < 9.95 => format!("{p:.1} %"),
        p => format!("{p:.0} %"),
    }
}

/// Bold in a terminal; unchanged in a file.
fn bold(text: &str) -> String {
    if std::io::stdout().is_terminal() {
        format!("\x1b[1m{text}\x1b[0m")
    } else {
        text.into()
    }
}
