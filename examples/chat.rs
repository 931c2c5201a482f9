//! A conversation with a model that has a chat template.
//!
//! ```text
//! cargo run --release --features chat,hub --example chat -- Qwen/Qwen2.5-0.5B-Instruct
//! cargo run --release --features chat --example chat -- path/to/folder --system "You answer in rhymes."
//! ```
//!
//! The keys and values of the conversation are kept, so that each answer begins at once: only what is new of it is run.

use std::error::Error;
use std::io::{BufRead, IsTerminal, Write};

use lexopt::prelude::*;
use tch_lens::{
    ChatMessage, ChatOptions, GenerateOptions, HookedTransformer, KeyValueStore, LoadOptions, Result, SamplingOptions,
    StepOptions,
};

const HELP: &str = "\
A conversation with a model that has a chat template

  MODEL            a Hugging Face folder or, with feature `hub`, a name there
  --system TEXT    what the model is told first
  --tokens N       how many tokens an answer has at most (default: 400)
  --temperature T  above 0; without it, always the most likely token
  --top-p P        draws among the most likely tokens whose probabilities reach P
  --seed N         where the random numbers begin

  An empty line ends the conversation.";

fn main() -> std::result::Result<(), Box<dyn Error>> {
    tch_lens::tune_allocator();
    let (mut name, mut messages, mut tokens) = (None, Vec::new(), 400);
    let (mut sampling, mut draws) = (SamplingOptions::new(), false);
    let mut arguments = lexopt::Parser::from_env();
    while let Some(argument) = arguments.next()? {
        match argument {
            Value(value) if name.is_none() => name = Some(value.string()?),
            Long("system") => messages = vec![ChatMessage::system(arguments.value()?.string()?)],
            Long("tokens") => tokens = arguments.value()?.parse()?,
            Long("temperature") => (sampling, draws) = (sampling.temperature(arguments.value()?.parse()?), true),
            Long("top-p") => (sampling, draws) = (sampling.top_p(arguments.value()?.parse()?), true),
            Long("seed") => (sampling, draws) = (sampling.seed(arguments.value()?.parse()?), true),
            Short('h') | Long("help") => {
                println!("{HELP}");
                return Ok(());
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let name = name.ok_or("which model? A folder, or with feature `hub` a name there")?;
    let sampling = if draws { sampling } else { SamplingOptions::greedy() };
    let model = LoadOptions::new().no_processing().device(tch_lens::cuda_if_available()).open(&name)?;
    let options = GenerateOptions::new().sampling(sampling).max_new_tokens(tokens);
    let mut chat = Chat { model, options, messages, past: None };
    let ask = || {
        if std::io::stdin().is_terminal() {
            print!("> ");
            let _ = std::io::stdout().flush();
        }
    };
    ask();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line.trim().is_empty() {
            break;
        }
        chat.answer(line)?;
        ask();
    }
    Ok(())
}

struct Chat {
    model: HookedTransformer,
    options: GenerateOptions,
    messages: Vec<ChatMessage>,
    past: Option<KeyValueStore>,
}

impl Chat {
    /// Prints the answer to what the user says, as it comes.
    fn answer(&mut self, text: String) -> Result<()> {
        self.messages.push(ChatMessage::user(text));
        let ids = self.model.tokenizer()?.encode_chat(&self.messages, &ChatOptions::new().generation_prompt(true))?;
        let mut steps = StepOptions::new();
        let mut known = 0;
        if let Some(mut past) = self.past.take() {
            // The template may have written earlier messages otherwise than they were generated: what is the same is kept.
            let held = past.tokens()?.rows()?.remove(0);
            known = held.iter().zip(&ids).take_while(|(held, id)| held == id).count().min(ids.len() - 1);
            match past.truncate(known) {
                Ok(()) => steps = steps.past(past),
                Err(_) => known = 0, // a window has moved on
            }
        }
        let mut generation = self.model.generation(&ids[known..], &self.options, steps)?;
        for step in &mut generation {
            for row in step?.rows {
                print!("{}", row.text);
                let _ = std::io::stdout().flush();
            }
        }
        println!();
        let generated = generation.stop()?;
        self.messages.push(ChatMessage::assistant(generated.rows[0].text()));
        self.past = generated.past;
        Ok(())
    }
}
