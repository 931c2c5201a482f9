//! [`GenerateOptions`]: how a prompt is continued, and until when.

use std::sync::Arc;

use super::continuation::Continuation;
use super::sampler::Sampler;
use super::sampling_options::SamplingOptions;
use super::stop::StopRules;
use crate::text::tokenizer::Tokenizer;
use crate::{Config, Error, Result};

/// How prompts are continued, and until when.
///
/// ```
/// use tch_lens::{generate::{GenerateOptions, SamplingOptions}, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let options = GenerateOptions::new().sampling(SamplingOptions::greedy()).max_new_tokens(8).stop_string(".");
/// let prompt = model.tokenizer()?.encode("The capital of France is", true)?;
/// let (sampler, mut rows) = options.start(&[prompt], model.config(), Some(model.tokenizer()?))?;
/// while rows[0].stop_reason().is_none() {
///     let logits = model.forward(rows[0].ids())?.select(1, -1); // [batch, d_vocab]
///     let next = sampler.sample(&logits, &mut rows)?;
///     print!("{}", rows[0].push(next[0])?.text);
/// }
/// assert_eq!(rows[0].text(), " Paris");
/// assert_eq!(rows[0].stop_reason().unwrap().to_string(), "stop string \".\"");
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    sampling: SamplingOptions,
    max_new_tokens: usize,
    min_new_tokens: usize,
    samples: usize,
    stop_at_eos: bool,
    stop_tokens: Vec<i64>,
    stop_strings: Vec<String>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            sampling: SamplingOptions::default(),
            max_new_tokens: 10,
            min_new_tokens: 0,
            samples: 1,
            stop_at_eos: true,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
        }
    }
}

impl GenerateOptions {
    /// TransformerLens' defaults: at most 10 tokens, drawn from the model's own distribution, until EOS.
    pub fn new() -> Self {
        GenerateOptions::default()
    }

    /// How each token is chosen.
    pub fn sampling(mut self, options: SamplingOptions) -> Self {
        self.sampling = options;
        self
    }

    /// How many tokens come at most; 10 by default. Fewer come where the model's context is full.
    pub fn max_new_tokens(mut self, count: usize) -> Self {
        self.max_new_tokens = count;
        self
    }

    /// How many tokens come before EOS or another stop token can; 0 by default. Stop strings are not held off.
    pub fn min_new_tokens(mut self, count: usize) -> Self {
        self.min_new_tokens = count;
        self
    }

    /// How many continuations there are of each prompt; 1 by default.
    pub fn samples(mut self, count: usize) -> Self {
        self.samples = count;
        self
    }

    /// Whether the tokenizer's EOS tokens, where there are any, end a continuation; they do by default.
    pub fn stop_at_eos(mut self, stop: bool) -> Self {
        self.stop_at_eos = stop;
        self
    }

    /// Another token that ends a continuation.
    pub fn stop_token(mut self, id: i64) -> Self {
        self.stop_tokens.push(id);
        self
    }

    /// A string that ends a continuation, wherever it begins and ends within the tokens' text. It is sought in the
    /// continuation alone, not in the prompt.
    pub fn stop_string(mut self, text: impl Into<String>) -> Self {
        self.stop_strings.push(text.into());
        self
    }

    /// What ends a continuation.
    ///
    /// # Errors
    ///
    /// [`Error::OptionValue`] for no new token at all or an empty stop string; [`Error::TokenOutOfRange`] for a stop token, the
    /// tokenizer's EOS among them, that the model does not have; [`Error::NoTokenizer`] for stop strings without one.
    pub fn stop_rules(&self, config: &Config, tokenizer: Option<&Tokenizer>) -> Result<StopRules> {
        let mut tokens = self.stop_tokens.clone();
        if let (Some(tokenizer), true) = (tokenizer, self.stop_at_eos) {
            tokens.extend(tokenizer.eos_ids());
        }
        let d_vocab = config.d_vocab_out;
        if let Some(&id) = tokens.iter().find(|&&id| usize::try_from(id).ok().is_none_or(|id| id >= d_vocab)) {
            return Err(Error::TokenOutOfRange { id, d_vocab });
        }
        if tokenizer.is_none() && !self.stop_strings.is_empty() {
            return Err(Error::NoTokenizer);
        }
        StopRules::new(&tokens, &self.stop_strings, self.max_new_tokens, config.n_ctx)
    }

    /// The sampler, and one row for each sample of each prompt: those of the first prompt come first. `prompts` are ids
    /// without padding.
    ///
    /// A row's random numbers follow from the seed, the prompt's index and the sample's, so that more samples or other
    /// prompts after it do not change it.
    ///
    /// # Errors
    ///
    /// Those of [`GenerateOptions::stop_rules`] and [`Sampler::new`]; [`Error::EmptyPrompt`], [`Error::PromptTooLong`],
    /// [`Error::TokenOutOfRange`] for a prompt that the model cannot run on; [`Error::OptionValue`] for counts that cannot
    /// be, or several samples where all would be the same.
    pub fn start(
        &self,
        prompts: &[Vec<i64>],
        config: &Config,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<(Sampler, Vec<Continuation>)> {
        let rules = Arc::new(self.stop_rules(config, tokenizer)?);
        self.check_counts(&rules)?;
        let sampler =
            Sampler::with_min_new_tokens(&self.sampling, config.d_vocab_out, self.min_new_tokens, rules.tokens())?;
        if prompts.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let mut rows = Vec::new();
        for (row, prompt) in prompts.iter().enumerate() {
            check_prompt(prompt, config)?;
            for sample in 0..self.samples {
                rows.push(Continuation::new(sampler.sequence(prompt, row, sample), &rules, tokenizer)?);
            }
        }
        Ok((sampler, rows))
    }

    fn check_counts(&self, rules: &StopRules) -> Result<()> {
        let GenerateOptions { samples, min_new_tokens: min, max_new_tokens: max, .. } = *self;
        if samples == 0 {
            return Err(Error::option_value("samples", 0, "it must be at least 1"));
        }
        if samples > 1 && self.sampling.greedy {
            return Err(Error::option_value(
                "samples",
                samples,
                "it must be 1 with `greedy`, where all would be the same",
            ));
        }
        if min > max {
            return Err(Error::option_value(
                "min_new_tokens",
                min,
                format!("it must be at most `max_new_tokens`, {max}"),
            ));
        }
        if min > 0 && rules.tokens().is_empty() {
            return Err(Error::option_value("min_new_tokens", min, "it needs a stop token that it can hold off"));
        }
        Ok(())
    }
}

/// Checks that a model can run on a prompt.
fn check_prompt(prompt: &[i64], config: &Config) -> Result<()> {
    let (n_ctx, d_vocab) = (config.n_ctx, config.d_vocab);
    if prompt.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    if prompt.len() > n_ctx {
        return Err(Error::PromptTooLong { tokens: prompt.len(), n_ctx });
    }
    match prompt.iter().find(|&&id| usize::try_from(id).ok().is_none_or(|id| id >= d_vocab)) {
        Some(&id) => Err(Error::TokenOutOfRange { id, d_vocab }),
        None => Ok(()),
    }
}
