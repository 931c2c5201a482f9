//! [`SamplingOptions`]: how the next token is chosen.

use crate::{Error, Result};

/// How the next token is chosen from the logits.
///
/// By default a token is drawn from the model's own distribution, as TransformerLens does. The settings are applied in
/// transformers' order, whatever the order in which they are given: biases, penalties, excluded tokens, then the temperature
/// and the filters from `top_k` to `eta_cutoff`. A setting that could not count beside the others is an error.
///
/// ```
/// use tch_lens::generate::{Sampler, SamplingOptions};
/// let options = SamplingOptions::new().temperature(0.8).top_k(20).top_p(0.9).repetition_penalty(1.2).seed(7);
/// let sampler = Sampler::new(&options, 3)?;
/// let mut rows = [sampler.sequence(&[0], 0, 0), sampler.sequence(&[0], 1, 0)];
/// let logits = tch::Tensor::from_slice2(&[[0.0f32, 9.0, 0.0], [0.0, 0.0, 9.0]]); // [batch, d_vocab]
/// assert_eq!(sampler.sample(&logits, &mut rows)?, [1, 2]);
///
/// let error = Sampler::new(&SamplingOptions::new().top_p(1.5), 3).unwrap_err();
/// assert_eq!(error.to_string(), "`top_p` is 1.5: it must lie above 0 and be at most 1");
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingOptions {
    pub(super) greedy: bool,
    pub(super) seed: Option<u64>,
    pub(super) biases: Vec<(i64, f64)>,
    pub(super) repetition_penalty: Option<f64>,
    pub(super) frequency_penalty: Option<f64>,
    pub(super) presence_penalty: Option<f64>,
    pub(super) no_repeat_ngram_size: Option<usize>,
    pub(super) forbidden_sequences: Vec<Vec<i64>>,
    pub(super) allowed_tokens: Option<Vec<i64>>,
    pub(super) forbidden_tokens: Vec<i64>,
    pub(super) temperature: Option<f64>,
    pub(super) top_k: Option<usize>,
    pub(super) top_p: Option<f64>,
    pub(super) min_p: Option<f64>,
    pub(super) typical_p: Option<f64>,
    pub(super) epsilon_cutoff: Option<f64>,
    pub(super) eta_cutoff: Option<f64>,
    pub(super) min_tokens_to_keep: Option<usize>,
}

impl SamplingOptions {
    /// A draw from the model's own distribution.
    pub fn new() -> Self {
        SamplingOptions::default()
    }

    /// The most likely token, after penalties and excluded tokens. Settings that only change what is drawn are then errors.
    pub fn greedy() -> Self {
        SamplingOptions { greedy: true, ..SamplingOptions::default() }
    }

    /// Where the random numbers begin; 0 by default. The same seed gives the same tokens.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// What the logits are divided by: [`temperature`](super::temperature). Above 0; 1 changes nothing.
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = Some(temperature);
        self
    }

    /// Draws among the `k` most likely tokens: [`top_k`](super::top_k). At least 1.
    pub fn top_k(mut self, k: usize) -> Self {
        self.top_k = Some(k);
        self
    }

    /// Draws among the most likely tokens whose probabilities reach `p`: [`top_p`](super::top_p). In (0, 1].
    pub fn top_p(mut self, p: f64) -> Self {
        self.top_p = Some(p);
        self
    }

    /// Draws among the tokens at least `p` times as likely as the likeliest: [`min_p`](super::min_p). In [0, 1].
    pub fn min_p(mut self, p: f64) -> Self {
        self.min_p = Some(p);
        self
    }

    /// Draws among the tokens of typical surprise: [`typical_p`](super::typical_p). In (0, 1].
    pub fn typical_p(mut self, mass: f64) -> Self {
        self.typical_p = Some(mass);
        self
    }

    /// Draws among the tokens at least this likely: [`epsilon_cutoff`](super::epsilon_cutoff). In (0, 1).
    pub fn epsilon_cutoff(mut self, epsilon: f64) -> Self {
        self.epsilon_cutoff = Some(epsilon);
        self
    }

    /// As `epsilon_cutoff`, lower where the distribution is flat: [`eta_cutoff`](super::eta_cutoff). In (0, 1).
    pub fn eta_cutoff(mut self, epsilon: f64) -> Self {
        self.eta_cutoff = Some(epsilon);
        self
    }

    /// How many of the most likely tokens every filter leaves: transformers' `min_tokens_to_keep`. At least 1, the default.
    pub fn min_tokens_to_keep(mut self, count: usize) -> Self {
        self.min_tokens_to_keep = Some(count);
        self
    }

    /// Makes tokens that occurred less likely: [`repetition_penalty`](super::repetition_penalty). Above 0; 1 changes nothing.
    pub fn repetition_penalty(mut self, penalty: f64) -> Self {
        self.repetition_penalty = Some(penalty);
        self
    }

    /// What a token's score loses each time that it occurs: [`frequency_penalty`](super::frequency_penalty).
    pub fn frequency_penalty(mut self, penalty: f64) -> Self {
        self.frequency_penalty = Some(penalty);
        self
    }

    /// What the score of every token that occurred loses: [`presence_penalty`](super::presence_penalty).
    pub fn presence_penalty(mut self, penalty: f64) -> Self {
        self.presence_penalty = Some(penalty);
        self
    }

    /// No run of this many tokens comes twice: [`no_repeat_ngrams`](super::no_repeat_ngrams). At least 1.
    pub fn no_repeat_ngram_size(mut self, n: usize) -> Self {
        self.no_repeat_ngram_size = Some(n);
        self
    }

    /// These tokens never come: [`forbid_tokens`](super::forbid_tokens).
    pub fn forbid_tokens(mut self, ids: impl Into<Vec<i64>>) -> Self {
        self.forbidden_tokens.extend(ids.into());
        self
    }

    /// This sequence of tokens never comes: [`forbid_sequences`](super::forbid_sequences). At least one token.
    pub fn forbid_sequence(mut self, ids: impl Into<Vec<i64>>) -> Self {
        self.forbidden_sequences.push(ids.into());
        self
    }

    /// Only these tokens come: [`allow_tokens`](super::allow_tokens). At least one.
    pub fn allow_tokens(mut self, ids: impl Into<Vec<i64>>) -> Self {
        self.allowed_tokens.get_or_insert_default().extend(ids.into());
        self
    }

    /// Adds a number to a token's logit: [`bias_tokens`](super::bias_tokens).
    pub fn bias_token(mut self, id: i64, bias: f64) -> Self {
        self.biases.push((id, bias));
        self
    }

    /// Checks every value, for a model with this many output tokens.
    pub(super) fn check(&self, d_vocab: usize) -> Result<()> {
        let positive = |x: f64| x > 0.0 && x.is_finite();
        let fraction = |x: f64| x > 0.0 && x <= 1.0;
        let number = |name, value: Option<f64>, fits: fn(f64) -> bool, rule: &str| match value {
            Some(value) if !fits(value) => Err(Error::option_value(name, value, rule)),
            _ => Ok(()),
        };
        let count = |name, value: Option<usize>, rule: &str| match value {
            Some(0) => Err(Error::option_value(name, 0, rule)),
            _ => Ok(()),
        };
        let (above, at_most_1) = ("it must be finite and above 0", "it must lie above 0 and be at most 1");
        let between = "it must lie between 0 and 1";
        let temperature = "it must be finite and above 0; for the most likely token use `SamplingOptions::greedy`";
        number("temperature", self.temperature, positive, temperature)?;
        count("top_k", self.top_k, "it must be at least 1; leave it out to keep every token")?;
        number("top_p", self.top_p, fraction, at_most_1)?;
        number("min_p", self.min_p, |p| (0.0..=1.0).contains(&p), "it must lie in [0, 1]")?;
        number("typical_p", self.typical_p, fraction, at_most_1)?;
        number("epsilon_cutoff", self.epsilon_cutoff, |x| x > 0.0 && x < 1.0, between)?;
        number("eta_cutoff", self.eta_cutoff, |x| x > 0.0 && x < 1.0, between)?;
        count("min_tokens_to_keep", self.min_tokens_to_keep, "it must be at least 1")?;
        number("repetition_penalty", self.repetition_penalty, positive, above)?;
        number("frequency_penalty", self.frequency_penalty, f64::is_finite, "it must be finite")?;
        number("presence_penalty", self.presence_penalty, f64::is_finite, "it must be finite")?;
        count(
            "no_repeat_ngram_size",
            self.no_repeat_ngram_size,
            "it must be at least 1; leave it out to allow repeats",
        )?;
        if self.forbidden_sequences.iter().any(Vec::is_empty) {
            return Err(Error::option_value("forbid_sequence", "empty", "it must have at least one token"));
        }
        if self.allowed_tokens.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::option_value("allow_tokens", "empty", "it must have at least one token"));
        }
        if let Some((_, bias)) = self.biases.iter().find(|(_, bias)| bias.is_nan() || *bias == f64::INFINITY) {
            return Err(Error::option_value("bias_token", bias, "it must be a finite number, or −∞"));
        }
        let named = self.biases.iter().map(|(id, _)| id).chain(&self.forbidden_tokens);
        let named = named.chain(self.forbidden_sequences.iter().flatten()).chain(self.allowed_tokens.iter().flatten());
        for &id in named {
            if usize::try_from(id).ok().is_none_or(|id| id >= d_vocab) {
                return Err(Error::TokenOutOfRange { id, d_vocab });
            }
        }
        self.check_that_all_count()
    }

    /// Refuses a setting that could not change anything.
    fn check_that_all_count(&self) -> Result<()> {
        let set = |name: &'static str, value: Option<String>| value.map(|value| (name, value));
        let number = |value: Option<f64>| value.map(|value| value.to_string());
        let filters = [
            set("top_k", self.top_k.map(|k| k.to_string())),
            set("top_p", number(self.top_p)),
            set("min_p", number(self.min_p)),
            set("typical_p", number(self.typical_p)),
            set("epsilon_cutoff", number(self.epsilon_cutoff)),
            set("eta_cutoff", number(self.eta_cutoff)),
        ];
        let keep = set("min_tokens_to_keep", self.min_tokens_to_keep.map(|count| count.to_string()));
        if let (Some((name, value)), true) = (&keep, filters.iter().all(Option::is_none)) {
            return Err(Error::option_value(name, value, "it needs one of `top_k`, `top_p` and their like"));
        }
        let seed = set("seed", self.seed.map(|seed| seed.to_string()));
        let drawing = [seed, set("temperature", number(self.temperature)), keep].into_iter().chain(filters);
        match drawing.flatten().next() {
            Some((name, value)) if self.greedy => {
                Err(Error::option_value(name, value, "it must be left out where `greedy` draws nothing"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bad_value_is_one_sentence() {
        let new = SamplingOptions::new;
        let greedy =
            "temperature` is 0: it must be finite and above 0; for the most likely token use `SamplingOptions::greedy`";
        let cases = [
            (new().temperature(0.0), greedy),
            (new().temperature(-1.0), "temperature` is -1: "),
            (new().temperature(f64::NAN), "temperature` is NaN: "),
            (new().temperature(f64::INFINITY), "temperature` is inf: "),
            (new().top_k(0), "top_k` is 0: it must be at least 1; leave it out to keep every token"),
            (new().top_p(0.0), "top_p` is 0: it must lie above 0 and be at most 1"),
            (new().top_p(1.1), "top_p` is 1.1: "),
            (new().top_p(f64::NAN), "top_p` is NaN: "),
            (new().min_p(-0.1), "min_p` is -0.1: it must lie in [0, 1]"),
            (new().min_p(1.1), "min_p` is 1.1: "),
            (new().typical_p(0.0), "typical_p` is 0: "),
            (new().epsilon_cutoff(1.0), "epsilon_cutoff` is 1: it must lie between 0 and 1"),
            (new().eta_cutoff(0.0), "eta_cutoff` is 0: "),
            (new().top_k(3).min_tokens_to_keep(0), "min_tokens_to_keep` is 0: it must be at least 1"),
            (new().min_tokens_to_keep(2), "min_tokens_to_keep` is 2: it needs one of `top_k`, `top_p` and their like"),
            (new().repetition_penalty(0.0), "repetition_penalty` is 0: it must be finite and above 0"),
            (new().repetition_penalty(-2.0), "repetition_penalty` is -2: "),
            (new().frequency_penalty(f64::NAN), "frequency_penalty` is NaN: it must be finite"),
            (new().presence_penalty(f64::INFINITY), "presence_penalty` is inf: "),
            (new().no_repeat_ngram_size(0), "no_repeat_ngram_size` is 0: "),
            (new().forbid_sequence([]), "forbid_sequence` is empty: it must have at least one token"),
            (new().allow_tokens([]), "allow_tokens` is empty: "),
            (new().bias_token(1, f64::NAN), "bias_token` is NaN: "),
            (SamplingOptions::greedy().seed(1), "seed` is 1: it must be left out where `greedy` draws nothing"),
            (SamplingOptions::greedy().temperature(1.0), "temperature` is 1: it must be left out"),
            (SamplingOptions::greedy().top_k(2), "top_k` is 2: it must be left out"),
            (SamplingOptions::greedy().eta_cutoff(0.1), "eta_cutoff` is 0.1: it must be left out"),
        ];
        for (options, start) in cases {
            let error = options.check(10).unwrap_err().to_string();
            assert!(error.strip_prefix('`').is_some_and(|error| error.starts_with(start)), "{error}");
            assert!(!error.contains('\n') && !error.ends_with('.'), "{error}");
        }
        for options in [
            new().bias_token(10, 1.0),
            new().forbid_tokens([-1]),
            new().forbid_sequence([1, 10]),
            new().allow_tokens([10]),
        ] {
            assert!(matches!(options.check(10), Err(Error::TokenOutOfRange { d_vocab: 10, .. })));
            assert!(options.clone().bias_token(0, 0.0).check(0).is_err());
        }
        let all =
            new().temperature(0.5).top_k(1).top_p(1.0).min_p(0.0).typical_p(1.0).epsilon_cutoff(0.5).eta_cutoff(0.5);
        let all = all.min_tokens_to_keep(1).repetition_penalty(1.0).frequency_penalty(-2.0).presence_penalty(0.0);
        all.seed(3).no_repeat_ngram_size(1).forbid_tokens([9]).bias_token(0, f64::NEG_INFINITY).check(10).unwrap();
    }
}
