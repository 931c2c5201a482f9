//! [`Generation`]: a model that continues prompts, token by token.

mod draft;
mod methods;
mod options;
mod output;
mod record;
mod steps;
mod token_columns;

use std::collections::VecDeque;

use tch::Tensor;

pub use self::options::{StepInfo, StepOptions};
pub use self::output::{Generated, GenerationStep, RowStep};

use self::draft::Draft;
use self::options::HooksAt;
use self::record::Record;
use self::token_columns::TokenColumns;
use super::HookedTransformer;
use crate::config::Stack;
use crate::error::KeyValueStoreError;
use crate::generate::{Continuation, GenerateOptions, Sampler};
use crate::model::KeyValueStore;
use crate::run::step::PromptEnd;
use crate::run::Hooks;
use crate::text::input::{Input, TokenOptions};
use crate::text::tokenizer::Bos;
use crate::{Error, Result};

/// A model that continues prompts: an iterator over [steps](GenerationStep).
///
/// Made by [`HookedTransformer::generation`], where an example is. It ends when every row has ended, or with the first error.
pub struct Generation<'a> {
    model: HookedTransformer,
    sampler: Sampler,
    rows: Vec<Continuation>,
    /// The tokens of all rows; those from `run` on are not run yet.
    columns: TokenColumns,
    run: usize,
    /// The prompt of each row, as long as the columns have one row for each prompt.
    to_expand: Option<Vec<usize>>,
    /// Absent where every step computes all positions again.
    store: Option<KeyValueStore>,
    prompt: PromptEnd,
    hooks: Hooks<'a>,
    hooks_at: Option<Box<HooksAt<'a>>>,
    record: Option<Record>,
    draft: Option<Draft>,
    /// Whether logits and entropies are kept.
    keeps: (bool, bool),
    logits: Vec<Vec<Tensor>>,
    entropies: Vec<Vec<f64>>,
    /// Steps that a run computed beyond the one that was asked for.
    ready: VecDeque<GenerationStep>,
    step: usize,
    runs: usize,
    failed: bool,
}

impl<'a> Generation<'a> {
    fn new(model: &HookedTransformer, input: Input, options: &GenerateOptions, steps: StepOptions<'a>) -> Result<Self> {
        let config = model.config();
        steps.check(options.keeps_keys())?;
        if config.stack == Stack::Encoder {
            return Err(Error::unsupported("an encoder has no logits, of which the next token is chosen"));
        }
        if config.d_vocab_out != config.d_vocab {
            let (d_vocab, d_vocab_out) = (config.d_vocab, config.d_vocab_out);
            return Err(Error::unsupported(format!(
                "a text is continued with tokens of the vocabulary of {d_vocab}, but this model has {d_vocab_out} outputs"
            )));
        }
        let StepOptions { hooks, hooks_at, cache, logits, entropies, past, mut draft } = steps;
        let past = past.filter(|past| !past.is_empty());
        let (bos, side) = options.token_settings();
        let bos = if past.is_some() && bos == Bos::Default { Bos::No } else { bos };
        if bos == Bos::Yes && !matches!(input, Input::Texts(_)) {
            let why = "the prompts are token ids, which are taken as they are: put the BOS token's id first";
            return Err(Error::setting("prepend_bos", format!("`prepend_bos` cannot be used: {why}")));
        }
        let tokens = model.to_tokens_with(input, TokenOptions::new().prepend_bos(bos).padding_side(side))?;
        tokens.rows()?; // the sizes of ids and mask
        let new = TokenColumns::new(&tokens)?;
        let n_prompts = tokens.ids.size()[0] as usize;
        let columns = match &past {
            Some(past) => TokenColumns::new(&past.tokens()?)?.chosen(&rows_of(past, n_prompts)?).followed_by(new),
            None => new,
        };
        let tokenizer = model.tokenizer().ok();
        let (sampler, rows) = options.start_rows(&columns.ids(), config, tokenizer)?;
        let of_prompt: Vec<usize> = (0..n_prompts).flat_map(|row| vec![row; options.n_samples()]).collect();
        let record = cache.map(|select| Record::new(&select, model)).transpose()?;
        let room = rows.iter().map(Continuation::room).max().unwrap_or(0);
        let capacity = columns.len() + room + draft.as_ref().map_or(0, Draft::tokens);
        let run = past.as_ref().map_or(0, KeyValueStore::len);
        let store = match past {
            Some(past) if past.batch() != n_prompts => Some(past.rows_for(&rows_of(&past, n_prompts)?, capacity)?),
            Some(past) => Some(past.with_capacity(capacity)?),
            None if options.keeps_keys() => {
                Some(KeyValueStore::of_columns(model, n_prompts, capacity, !hooks.change_patterns(config)?)?)
            }
            None => None,
        };
        if let Some(draft) = &mut draft {
            draft.start(model, rows.len(), capacity)?;
        }
        // Prompts are run once for all of their samples, where nothing looks at the rows.
        let at_once =
            options.n_samples() == 1 || store.is_none() || record.is_some() || !hooks.is_empty() || hooks_at.is_some();
        let mut generation = Generation {
            prompt: PromptEnd { columns: columns.len() as i64, last: Vec::new() },
            model: model.clone(),
            sampler,
            logits: rows.iter().map(|_| Vec::new()).collect(),
            entropies: rows.iter().map(|_| Vec::new()).collect(),
            rows,
            columns,
            run,
            to_expand: Some(of_prompt),
            store,
            hooks,
            hooks_at,
            record,
            draft,
            keeps: (logits, entropies),
            ready: VecDeque::new(),
            step: 0,
            runs: 0,
            failed: false,
        };
        if at_once {
            generation.expand()?;
        }
        generation.prompt.last = generation.columns.last();
        Ok(generation)
    }

    /// The rows so far: their tokens, their text, and why they ended.
    pub fn rows(&self) -> &[Continuation] {
        &self.rows
    }

    /// Continues all rows to their ends.
    ///
    /// # Errors
    ///
    /// The first error of a step.
    pub fn finish(mut self) -> Result<Generated> {
        for step in &mut self {
            step?;
        }
        self.stop()
    }

    /// Ends here, with what there is.
    ///
    /// # Errors
    ///
    /// Those of a run, if a cache was asked for: it is of all tokens, and the last ones were not run yet.
    pub fn stop(mut self) -> Result<Generated> {
        if self.to_expand.is_some() {
            self.expand()?;
        }
        if self.record.is_some() && self.run < self.columns.len() {
            let _logits = self.run_model(self.columns.len(), 1)?;
        }
        let tokens = self.columns.tokens(0..self.columns.len())?;
        let cache = match self.record {
            Some(record) => {
                let tokens = self.columns.tokens(record.first()..self.columns.len())?;
                Some(record.finish(&self.model, tokens)?)
            }
            None => None,
        };
        let logits = |rows: Vec<Vec<Tensor>>| {
            let d_vocab = self.model.config().d_vocab_out as i64;
            let of_row = |row: Vec<Tensor>| match row.is_empty() {
                true => Ok(Tensor::f_zeros([0, d_vocab], (self.model.kind(), self.model.device()))?),
                false => Ok(Tensor::f_stack(&row, 0)?),
            };
            rows.into_iter().map(of_row).collect::<Result<Vec<_>>>()
        };
        Ok(Generated {
            tokens,
            logits: self.keeps.0.then(|| logits(self.logits)).transpose()?,
            entropies: self.keeps.1.then_some(self.entropies),
            rows: self.rows,
            cache,
            past: self.store,
            runs: self.runs,
            tokenizer: self.model.tokenizer().ok().cloned(),
        })
    }

    /// From one row for each prompt to one for each sample.
    fn expand(&mut self) -> Result<()> {
        let Some(of_prompt) = self.to_expand.take() else { return Ok(()) };
        if self.columns.n_rows() == of_prompt.len() {
            return Ok(());
        }
        let n_prompts = self.columns.n_rows();
        self.columns = self.columns.chosen(&of_prompt);
        self.store = self.store.take().map(|store| store.rows(&of_prompt)).transpose()?;
        if let Some(output) = self.model.encoder_output() {
            let rows = output.for_batch(n_prompts)?.rows(&of_prompt)?;
            self.model = self.model.with_encoder_output(rows)?;
        }
        Ok(())
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<GenerationStep>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ready.is_empty()
            && !self.failed
            && let Err(error) = self.advance()
        {
            self.failed = true;
            return Some(Err(error));
        }
        self.ready.pop_front().map(Ok)
    }
}

/// The row of a past that each prompt continues.
fn rows_of(past: &KeyValueStore, n_prompts: usize) -> Result<Vec<usize>> {
    match past.batch() {
        rows if rows == n_prompts => Ok((0..rows).collect()),
        1 => Ok(vec![0; n_prompts]),
        rows => Err(KeyValueStoreError::Batch { rows, found: n_prompts }.into()),
    }
}
