//! What does the model believe after each layer? A logit lens at the last position of a prompt.
//!
//! Prints a row for the stream before each layer, and one for its end, each as if the model ended there: where the answer
//! stands among all tokens (0 is the likeliest), how probable it is, and the likeliest tokens. On the toy model's
//! indirect-object prompt " Mary" climbs to the top as heads move her name to the end.
//!
//! ```text
//! cargo run --release --example logit_lens
//! cargo run --release --example logit_lens -- --prompt "The capital of France is" --top 3
//! cargo run --release --example logit_lens -- --model path/to/folder --prompt "…" --answer " road"
//! cargo run --release --features hub --example logit_lens -- --model gpt2-small --prompt "…"
//! ```

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use tch_lens::{HookedTransformer, LensOptions, Load, Result};

#[derive(Parser)]
#[command(about = "What a model believes after each layer")]
struct Options {
    /// A Hugging Face folder or, with feature `hub`, a name there; the toy model without one
    #[arg(long)]
    model: Option<String>,
    #[arg(long, default_value = "When Mary and John went to the shop, John gave a bag to")]
    prompt: String,
    /// One token, with its space: " Mary"; what the model itself says without one
    #[arg(long)]
    answer: Option<String>,
    /// How many tokens to list for each layer
    #[arg(long, default_value_t = 4)]
    top: usize,
}

fn main() -> ExitCode {
    tch_lens::tune_allocator();
    match print(Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
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
            let cell = format!("  {:<10} {:>5}", shown(&token, 10), percent(probability));
            print!("{}", if token == text { bold(&cell) } else { cell });
        }
        println!();
    }
    Ok(())
}

/// Large models take seconds: a bar on the terminal says so, if it is one.
fn loaded(name: &str) -> Result<HookedTransformer> {
    let bar = ProgressBar::no_length().with_style(ProgressStyle::default_bar());
    let shown = bar.clone();
    let progress = move |done, of| {
        shown.set_length(of as u64);
        shown.set_position(done as u64);
    };
    let model = Load::new().on_progress(progress).open(name);
    bar.finish_and_clear();
    model
}

/// A token in quotes, so that its space is seen, cut to `width`.
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
