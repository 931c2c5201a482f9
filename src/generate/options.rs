//! [`GenerateOptions`]: how a prompt is continued, and until when.

use std::sync::Arc;

use super::continuation::Continuation;
use super::sampler::Sampler;
use super::sampling_options::SamplingOptions;
use super::stop::StopRules;
use crate::text::tokenizer::{Bos, PaddingSide, Tokenizer};
use crate::{Config, Error, Result, TokenizerError};

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
    /// In place of the tokenizer's.
    eos_tokens: Option<Vec<i64>>,
    stop_tokens: Vec<i64>,
    stop_strings: Vec<String>,
    prepend_bos: Bos,
    padding_side: Option<PaddingSide>,
    use_past_kv_cache: Option<bool>,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        GenerateOptions {
            sampling: SamplingOptions::default(),
            max_new_tokens: 10,
            min_new_tokens: 0,
            samples: 1,
            stop_at_eos: true,
            eos_tokens: None,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            prepend_bos: Bos::Default,
            padding_side: None,
            use_past_kv_cache: None,
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

    /// The tokens that count as EOS, in place of the tokenizer's. They end a continuation unless
    /// [`stop_at_eos`](GenerateOptions::stop_at_eos) is off.
    pub fn eos_token_id(mut self, ids: impl Into<Vec<i64>>) -> Self {
        self.eos_tokens = Some(ids.into());
        self
    }

    /// Whether tokens are drawn, which is the default, or the most likely one is taken: [`SamplingOptions::greedy`].
    pub fn do_sample(mut self, sample: bool) -> Self {
        self.sampling.greedy = !sample;
        self
    }

    /// [`SamplingOptions::temperature`].
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.sampling = self.sampling.temperature(temperature);
        self
    }

    /// [`SamplingOptions::top_k`].
    pub fn top_k(mut self, k: usize) -> Self {
        self.sampling = self.sampling.top_k(k);
        self
    }

    /// [`SamplingOptions::top_p`].
    pub fn top_p(mut self, p: f64) -> Self {
        self.sampling = self.sampling.top_p(p);
        self
    }

    /// [`SamplingOptions::frequency_penalty`], under TransformerLens' name.
    pub fn freq_penalty(mut self, penalty: f64) -> Self {
        self.sampling = self.sampling.frequency_penalty(penalty);
        self
    }

    /// [`SamplingOptions::seed`].
    pub fn seed(mut self, seed: u64) -> Self {
        self.sampling = self.sampling.seed(seed);
        self
    }

    /// Whether the BOS token is put before a prompt that is text; as the model's default says, unless set. Behind a key-value store it is
    /// not, unless asked for.
    pub fn prepend_bos(mut self, bos: Bos) -> Self {
        self.prepend_bos = bos;
        self
    }

    /// On which side shorter prompts are padded; on the right by default. The tokens are the same, and only the columns of caches and of
    /// hooks' positions differ.
    pub fn padding_side(mut self, side: PaddingSide) -> Self {
        self.padding_side = Some(side);
        self
    }

    /// Whether keys and values of earlier positions are kept, as they are by default. Otherwise each step computes all positions again.
    pub fn use_past_kv_cache(mut self, keep: bool) -> Self {
        self.use_past_kv_cache = Some(keep);
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
    /// [`Error::Setting`] for no new token at all or an empty stop string; [`Error::TokenOutOfRange`] for a stop token, the
    /// tokenizer's EOS among them, that the model does not have; [`Error::Tokenizer`] for stop strings without one.
    pub fn stop_rules(&self, config: &Config, tokenizer: Option<&Tokenizer>) -> Result<StopRules> {
        let mut tokens = self.stop_tokens.clone();
        match (&self.eos_tokens, tokenizer) {
            (Some(eos), _) if self.stop_at_eos => tokens.extend(eos),
            (Some(_), _) => {
                let rule = "it must be left out where `stop_at_eos` is off";
                return Err(Error::option_value("eos_token_id", format!("{:?}", self.eos_tokens.as_deref()), rule));
            }
            (None, Some(tokenizer)) if self.stop_at_eos => tokens.extend(tokenizer.eos_ids()),
            (None, _) => {}
        }
        let d_vocab = config.d_vocab_out;
        if let Some(&id) = tokens.iter().find(|&&id| usize::try_from(id).ok().is_none_or(|id| id >= d_vocab)) {
            return Err(Error::TokenOutOfRange { id, d_vocab });
        }
        if tokenizer.is_none() && !self.stop_strings.is_empty() {
            return Err(TokenizerError::Missing.into());
        }
        StopRules::new(&tokens, &self.stop_strings, self.max_new_tokens, config.n_ctx)
    }

    /// The sampler, and one row for each sample of each prompt: those of the first prompt come first. `prompts` are ids
    /// without padding, which the caller runs through a model; [`HookedTransformer::generation`](crate::HookedTransformer::generation)
    /// does both.
    ///
    /// A row's random numbers follow from the seed, the prompt's index and the sample's, so that more samples or other
    /// prompts after it do not change it.
    ///
    /// # Errors
    ///
    /// Those of [`GenerateOptions::stop_rules`] and [`Sampler::new`]; [`Error::EmptyPrompt`], [`Error::PromptTooLong`],
    /// [`Error::TokenOutOfRange`] for a prompt that the model cannot run on; [`Error::Setting`] for counts that cannot
    /// be, or several samples where all would be the same; [`Error::Setting`] for settings of a run through a model.
    pub fn start(
        &self,
        prompts: &[Vec<i64>],
        config: &Config,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<(Sampler, Vec<Continuation>)> {
        let of_a_run = [
            ("prepend_bos", self.prepend_bos != Bos::Default),
            ("padding_side", self.padding_side.is_some()),
            ("use_past_kv_cache", self.use_past_kv_cache.is_some()),
        ];
        if let Some((name, _)) = of_a_run.into_iter().find(|(_, set)| *set) {
            return Err(Error::setting(
                name,
                format!("`{name}` cannot be used: the prompts are ids that the caller runs through a model"),
            ));
        }
        self.start_rows(prompts, config, tokenizer)
    }

    /// [`GenerateOptions::start`] for prompts that are run here.
    pub(crate) fn start_rows(
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

    /// How a prompt that is text becomes tokens.
    pub(crate) fn token_settings(&self) -> (Bos, PaddingSide) {
        (self.prepend_bos, self.padding_side.unwrap_or_default())
    }

    /// Whether keys and values of earlier positions are kept.
    pub(crate) fn keeps_keys(&self) -> bool {
        self.use_past_kv_cache.unwrap_or(true)
    }

    /// How many continuations there are of each prompt.
    pub(crate) fn n_samples(&self) -> usize {
        self.samples
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
