//! [`Generation`]: a model that continues prompts, token by token.

mod draft;
mod options;
mod output;
mod record;
mod token_columns;

use std::collections::VecDeque;
use std::ops::Range;

use tch::{Kind, Tensor};

pub use self::options::{StepInfo, StepOptions};
pub use self::output::{Generated, GenerationStep, RowStep};

use self::draft::Draft;
use self::options::HooksAt;
use self::record::Record;
use self::token_columns::TokenColumns;
use super::run_input::RunInput;
use super::run_options::RunOptions;
use super::HookedTransformer;
use crate::config::Stack;
use crate::error::KeyValueStoreError;
use crate::generate::{Continuation, GenerateOptions, Progress, Sampler};
use crate::model::KeyValueStore;
use crate::run::step::PromptEnd;
use crate::run::Hooks;
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::tensor::span::Span;
use crate::text::input::{Input, TokenOptions};
use crate::text::positions::Positions;
use crate::text::tokenizer::Bos;
use crate::{Error, Result};

impl HookedTransformer {
    /// Continues prompts: TransformerLens' `generate`.
    ///
    /// ```
    /// use tch_lens::{GenerateOptions, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let options = GenerateOptions::new().do_sample(false).max_new_tokens(8).stop_string(".");
    /// let generated = model.generate(["The capital of France is", "When Mary and John went to the shop, John gave a"], &options)?;
    /// assert_eq!(generated.rows[0].text(), " Paris");
    /// assert_eq!(generated.rows[0].stop_reason().unwrap().to_string(), "stop string \".\"");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// Rows may have any lengths. Each gets exactly what it gets alone, and ends where it ends alone. A row that fills the model's context ends
    /// with [`StopReason::ContextFull`](crate::StopReason::ContextFull) and keeps what it has.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::generation`], and of its steps.
    pub fn generate(&self, input: impl Into<Input>, options: &GenerateOptions) -> Result<Generated> {
        self.generate_with(input, options, StepOptions::new())
    }

    /// Continues prompts, with hooks, caches and other settings of its steps.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::generation`], and of its steps.
    pub fn generate_with(
        &self,
        input: impl Into<Input>,
        options: &GenerateOptions,
        steps: StepOptions<'_>,
    ) -> Result<Generated> {
        self.generation(input, options, steps)?.finish()
    }

    /// Continues a text, and gives it with what was generated.
    ///
    /// ```
    /// use tch_lens::{GenerateOptions, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let options = GenerateOptions::new().do_sample(false).max_new_tokens(2);
    /// assert_eq!(model.generate_text("The capital of France is", &options)?, "The capital of France is Paris.");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::generate`]; [`Error::Setting`] for several samples.
    pub fn generate_text(&self, prompt: &str, options: &GenerateOptions) -> Result<String> {
        if options.n_samples() > 1 {
            return Err(Error::option_value("samples", options.n_samples(), "one text has one sample: use `generate`"));
        }
        let generated = self.generate(prompt, options)?;
        Ok(generated.rows.iter().fold(prompt.to_string(), |text, row| text + row.text()))
    }

    /// Begins to continue prompts: an iterator over steps, each of which gives the next token of every row. Nothing is run before the first
    /// step.
    ///
    /// ```
    /// use tch_lens::{GenerateOptions, HookedTransformer, StepOptions};
    /// let model = HookedTransformer::toy()?;
    /// let options = GenerateOptions::new().do_sample(false).max_new_tokens(3);
    /// let mut text = String::new();
    /// for step in model.generation("The capital of France is", &options, StepOptions::new().entropies(true))? {
    ///     let row = &step?.rows[0];
    ///     text += &row.text; // never half a character
    ///     assert!(row.entropy.unwrap() > 0.0);
    /// }
    /// assert!(text.starts_with(" Paris."));
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::to_tokens`] and [`GenerateOptions::start`] for prompts and options; [`Error::Setting`] for settings that
    /// contradict each other; [`Error::KeyValueStore`] for a past of another model or batch; [`Error::Unsupported`] for a model whose outputs
    /// are not its vocabulary.
    pub fn generation<'a>(
        &self,
        input: impl Into<Input>,
        options: &GenerateOptions,
        steps: StepOptions<'a>,
    ) -> Result<Generation<'a>> {
        Generation::new(self, input.into(), options, steps)
    }
}

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

    /// The rows that go on.
    fn active(&self) -> Vec<usize> {
        (0..self.rows.len()).filter(|row| self.rows[*row].stop_reason().is_none()).collect()
    }

    /// Runs the model, chooses the next tokens, and makes the steps ready.
    fn advance(&mut self) -> Result<()> {
        let active = self.active();
        if active.is_empty() {
            return Ok(());
        }
        let before = self.columns.len();
        let proposals = self.proposals(&active)?;
        let n_proposed = proposals.first().map_or(0, Vec::len);
        for nth in 0..n_proposed {
            let mut column = vec![None; self.rows.len()];
            active.iter().zip(&proposals).for_each(|(row, proposal)| column[*row] = Some(proposal[nth]));
            self.columns.push(&column);
        }
        let expansion = self.to_expand.clone();
        let mut logits = self.run_model(self.columns.len(), n_proposed + 1)?; // [row, 1 + proposed, d_vocab]
        if let (Some(of_prompt), true) = (&expansion, logits.size()[0] as usize != self.rows.len()) {
            let index: Vec<i64> = of_prompt.iter().map(|row| *row as i64).collect();
            logits = logits.f_index_select(0, &Tensor::f_from_slice(&index)?.f_to_device(logits.device())?)?;
        }
        self.expand()?;
        self.columns.truncate(before);
        let mut accepted = 0;
        for nth in 0..=n_proposed {
            let logits = going_rows(&logits.f_select(1, nth as i64)?, &active, self.rows.len())?; // [active row, d_vocab]
            let (column, ended) = self.choose(&logits, &active)?;
            let confirmed = |(row, proposal): (&usize, &Vec<i64>)| column[*row] == proposal.get(nth).copied();
            let go_on = nth < n_proposed && !ended && active.iter().zip(&proposals).all(confirmed);
            self.columns.push(&column);
            if !go_on {
                break;
            }
            accepted += 1;
        }
        if n_proposed > 0 {
            self.run = before + accepted;
            if let Some(store) = &mut self.store {
                store.truncate(self.run)?;
            }
            if let Some(record) = &mut self.record {
                record.keep(1 + accepted);
            }
            if let Some(draft) = &mut self.draft {
                draft.truncate(self.run)?;
            }
        }
        Ok(())
    }

    /// Proposals for each row that goes on, none before the prompt has been run.
    fn proposals(&mut self, active: &[usize]) -> Result<Vec<Vec<i64>>> {
        let Some(draft) = &mut self.draft else { return Ok(Vec::new()) };
        if self.step == 0 {
            return Ok(Vec::new());
        }
        // The last token of a row is run already, or proposed.
        let most = active.iter().map(|row| self.rows[*row].room().saturating_sub(1)).min().unwrap_or(0);
        if most == 0 {
            return Ok(Vec::new());
        }
        draft.propose(&self.sampler, &self.columns, &self.rows, active, most)
    }

    /// Runs the columns up to `end` that were not run yet: the logits of the last `n_logits` columns, or of each row's last token,
    /// `[row, n_logits, d_vocab]`.
    fn run_model(&mut self, end: usize, n_logits: usize) -> Result<Tensor> {
        match self.run_columns(self.run..end, n_logits) {
            Err(Error::KeyValueStore(KeyValueStoreError::Rotation { .. })) => {
                // All keys are rotated otherwise from here on.
                if self.hooks_at.is_some() {
                    return Err(Error::setting(
                        "hooks_at",
                        "`hooks_at` cannot be used: this model's rotation depends on the length, so all positions are computed again",
                    ));
                }
                if let Some(store) = &mut self.store {
                    store.truncate(0)?;
                }
                if let Some(record) = &mut self.record {
                    record.clear();
                }
                self.run_columns(0..end, n_logits)
            }
            logits => logits,
        }
    }

    fn run_columns(&mut self, columns: Range<usize>, n_logits: usize) -> Result<Tensor> {
        let columns = if self.store.is_some() { columns } else { 0..columns.end };
        let span = Span { past: columns.start, new: columns.len() };
        let info = StepInfo { step: self.step, columns: columns.clone() };
        let mut of_step = self.hooks_at.as_mut().map(|hooks| hooks(&info)).unwrap_or_default();
        let mut hooks = self.hooks.in_span(&self.prompt, span)?;
        hooks.entries.extend(of_step.in_span(&self.prompt, span)?.entries);
        let mut run = RunOptions::new().hooks(hooks);
        if let Some(record) = &self.record {
            run = run.cache(record.filter());
        }
        if let Some(store) = &mut self.store {
            run = run.past(store);
        }
        // Where something is done after the last layer, all positions get there.
        let all = n_logits > 1 || columns.len() == 1 || self.model.plan(&run)?.reaches_logits();
        if !all {
            run = run.logits_at(last_token());
        }
        let plan = self.model.plan(&run)?;
        let input = run_input(&self.columns, columns.clone())?;
        let mask = input.tokens.mask.as_ref().map(Tensor::shallow_clone);
        let (mut output, _) = self.model.run_planned(input, &plan, run)?;
        let logits = output.take_logits()?;
        self.run = columns.end;
        self.runs += 1;
        if let Some(record) = &mut self.record {
            if self.store.is_none() {
                record.clear();
            }
            record.push(output.cache, columns.len());
        }
        let n = logits.size()[1];
        match mask {
            Some(_) if all && n_logits == 1 && n > 1 => {
                let last: Vec<i64> = self.columns.last().iter().map(|column| column - columns.start as i64).collect();
                let rows: Vec<i64> = (0..last.len() as i64).collect();
                let [rows, last] = [rows, last].map(|index| Tensor::f_from_slice(&index));
                let (rows, last) = (rows?.f_to_device(logits.device())?, last?.f_to_device(logits.device())?);
                Ok(logits.f_index(&[Some(&rows), Some(&last.at_least_int(0)?)])?.f_unsqueeze(1)?)
            }
            _ => Ok(logits.f_narrow(1, n - n_logits as i64, n_logits as i64)?),
        }
    }

    /// Chooses the next token of each row that goes on, by its logits: `[active row, d_vocab]`. Gives the column of all rows, and whether
    /// one has ended.
    fn choose(&mut self, logits: &Tensor, active: &[usize]) -> Result<(Vec<Option<i64>>, bool)> {
        let mut going: Vec<&mut Continuation> =
            self.rows.iter_mut().enumerate().filter(|(row, _)| active.contains(row)).map(|(_, row)| row).collect();
        let ids = self.sampler.sample(logits, &mut going)?;
        let entropies = match self.keeps.1 {
            true => Some(entropies(logits)?),
            false => None,
        };
        let mut column = vec![None; self.rows.len()];
        let (mut rows, mut ended) = (Vec::with_capacity(ids.len()), false);
        for (nth, (id, row)) in ids.into_iter().zip(active).enumerate() {
            column[*row] = Some(id);
            let Progress { text, stop } = self.rows[*row].push(id)?;
            ended |= stop.is_some();
            let entropy = entropies.as_ref().map(|entropies| entropies[nth]);
            self.entropies[*row].extend(entropy);
            if self.keeps.0 {
                self.logits[*row].push(logits.f_get(nth as i64)?);
            }
            rows.push(RowStep { row: *row, id, text, stop, entropy });
        }
        let logits = self.keeps.0.then(|| logits.shallow_clone());
        self.ready.push_back(GenerationStep { step: self.step, rows, logits });
        self.step += 1;
        Ok((column, ended))
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

/// Each row's last token, whatever stands in rows that have ended.
fn last_token() -> Positions {
    Positions::LastToken.with_padding()
}

/// Some columns, as the input of a run.
fn run_input(columns: &TokenColumns, range: Range<usize>) -> Result<RunInput> {
    Ok(RunInput { tokens: columns.tokens(range)?, stream: None })
}

/// The rows of `[row, d_vocab]` that go on.
fn going_rows(logits: &Tensor, active: &[usize], n_rows: usize) -> Result<Tensor> {
    if active.len() == n_rows {
        return Ok(logits.shallow_clone());
    }
    let index: Vec<i64> = active.iter().map(|row| *row as i64).collect();
    Ok(logits.f_index_select(0, &Tensor::f_from_slice(&index)?.f_to_device(logits.device())?)?)
}

/// The entropy of each row's distribution, in nats.
fn entropies(logits: &Tensor) -> Result<Vec<f64>> {
    let log_probs = widened(logits)?.f_log_softmax(-1, None::<Kind>)?; // [row, d_vocab]
    let terms = log_probs.f_mul(&log_probs.f_exp()?)?;
    let sums = terms.f_nansum(-1i64, false, None::<Kind>)?.f_neg()?;
    Ok(Vec::<f64>::try_from(sums.f_to_kind(Kind::Double)?)?)
}
