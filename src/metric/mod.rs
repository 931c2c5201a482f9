//! [`Metric`]: what is measured of a run, as one number for each row of the batch.
//!
//! Patching, gradients and circuits ask how much a change of the run moves a metric.

mod function;
mod normalization;
mod resolved;

use tch::Tensor;

pub use function::MetricResult;
pub use normalization::Baseline;
pub(crate) use resolved::{MetricValues, ResolvedMetric};

use crate::analysis::Answer;
use crate::cache::ActivationCache;
use crate::hook::{HookFilter, HookPoint};
use crate::text::positions::Positions;
use crate::{Config, Result};
use function::Function;
use normalization::Normalization;

/// A number for each row of the batch, computed from the logits of a run, and where it asks for them from activations.
///
/// | metric | value of a row |
/// | --- | --- |
/// | [`logit_diff`](Metric::logit_diff) | the logit of the first answer minus the logit of the second |
/// | [`logit`](Metric::logit) | the logit of the answer; of a pair, the difference |
/// | [`prob`](Metric::prob) | the probability of the answer; of a pair, the difference |
/// | [`log_prob`](Metric::log_prob) | the log-probability of the answer, in nats; of a pair, the difference |
/// | [`kl_div`](Metric::kl_div) | `Σ p log(p / q)` over the vocabulary, in nats, from given logits (`p`) to those of the run (`q`) |
/// | [`new`](Metric::new), [`with_cache`](Metric::with_cache) | what a function returns |
///
/// The ready-made metrics are those at the last token of each row; [`pos`](Metric::pos) chooses other positions, and the value of a row
/// is the mean over them. They are computed in fp32 or better. [`normalized`](Metric::normalized) puts a metric on the scale from
/// 0, its value in the corrupted run, to 1, its value in the clean run.
///
/// ```
/// use tch_lens::{HookedTransformer, Metric, RunOptions};
/// let model = HookedTransformer::toy()?;
/// let metric = Metric::logit_diff(" Mary", " John");
/// let output = model.run("When Mary and John went to the shop, John gave a bag to", RunOptions::new())?;
/// let difference = metric.rows(output.logits()?, &output.cache)?; // [batch]
/// assert!(difference.double_value(&[0]) > 3.0);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Debug)]
pub struct Metric<'a> {
    measure: Measure<'a>,
    positions: Positions,
    normalization: Option<Normalization>,
}

/// What is measured.
#[derive(Debug)]
enum Measure<'a> {
    /// Of the answers' logits, as they are or after a softmax.
    Answer(Answer, Scale),
    /// The divergence from logits at some positions: `[batch, pos, d_vocab_out]`.
    KlDiv(Tensor),
    /// A function of the caller's.
    Function(Function<'a>),
}

/// On which scale answers are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scale {
    Logit,
    Prob,
    LogProb,
}

impl<'a> Metric<'a> {
    /// The logit of `correct` minus the logit of `incorrect`: one token for all rows, or one for each ([`Answer::per_row`]).
    pub fn logit_diff(correct: impl Into<Answer>, incorrect: impl Into<Answer>) -> Self {
        Metric::of(Measure::Answer(correct.into().versus(incorrect), Scale::Logit))
    }

    /// The logit of the answer; of a pair, the difference of both logits.
    pub fn logit(answer: impl Into<Answer>) -> Self {
        Metric::of(Measure::Answer(answer.into(), Scale::Logit))
    }

    /// The probability of the answer; of a pair, the difference of both probabilities.
    pub fn prob(answer: impl Into<Answer>) -> Self {
        Metric::of(Measure::Answer(answer.into(), Scale::Prob))
    }

    /// The log-probability of the answer, in nats; of a pair, the difference of both.
    pub fn log_prob(answer: impl Into<Answer>) -> Self {
        Metric::of(Measure::Answer(answer.into(), Scale::LogProb))
    }

    /// The Kullback-Leibler divergence from the distribution of `logits` to that of the run: `Σ p log(p / q)` over the vocabulary, in
    /// nats, with `p` the softmax of `logits`.
    ///
    /// `logits` are `[batch, pos, d_vocab_out]` at all positions of the input, as `forward` returns them, or at the metric's positions.
    ///
    /// ```
    /// use tch_lens::{hook, HookedTransformer, Hooks, Metric, Patch, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let prompt = "When Mary and John went to the shop, John gave a bag to";
    /// let metric = Metric::kl_div(&model.forward(prompt)?);
    /// let hooks = Hooks::new().patch(hook::attn_out(1), Patch::zero());
    /// let output = model.run(prompt, RunOptions::new().hooks(hooks))?;
    /// assert!(metric.scalar(output.logits()?, &output.cache)?.double_value(&[]) > 0.1);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn kl_div(logits: &Tensor) -> Self {
        Metric::of(Measure::KlDiv(logits.shallow_clone()))
    }

    /// A function of the logits, `[batch, pos, d_vocab_out]`: it returns a value for each row, `[batch]`, or one for all of them, without
    /// dimensions; or a `Result` of a tensor.
    ///
    /// The function sees all positions of the input, unless [`pos`](Metric::pos) chooses some.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, Metric, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let entropy = Metric::new(|logits| {
    ///     let log_probs = logits.select(1, -1).log_softmax(-1, tch::Kind::Float); // [batch, d_vocab_out]
    ///     -(log_probs.exp() * log_probs).sum_dim_intlist([-1i64].as_slice(), false, None) // [batch]
    /// });
    /// let output = model.run("When Mary and John went to the shop", RunOptions::new())?;
    /// assert!(entropy.scalar(output.logits()?, &output.cache)?.double_value(&[]) > 0.0);
    /// # use tch_lens::tch;
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn new<R: MetricResult>(f: impl Fn(&Tensor) -> R + 'a) -> Self {
        let function = Function::new(None, move |logits, _| f(logits).into_tensor());
        Metric { positions: Positions::default(), ..Metric::of(Measure::Function(function)) }
    }

    /// A function of the logits and of the activations that `needs` selects. It returns what [`new`](Metric::new)'s function returns.
    ///
    /// ```
    /// use tch_lens::{hook, HookedTransformer, Metric, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// // How much the last position of head 1 of layer 2 looks at position 2.
    /// let metric = Metric::with_cache("pattern", |_, cache| cache[hook::pattern(2)].select(1, 1).select(1, -1).select(1, 2));
    /// let output = model.run("When Mary and John went to the shop", RunOptions::new().cache("pattern"))?;
    /// assert_eq!(metric.rows(output.logits()?, &output.cache)?.size(), [1]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn with_cache<R: MetricResult>(
        needs: impl Into<HookFilter<'a>>,
        f: impl Fn(&Tensor, &ActivationCache) -> R + 'a,
    ) -> Self {
        let function = Function::new(Some(needs.into()), move |logits, cache| f(logits, cache).into_tensor());
        Metric { positions: Positions::default(), ..Metric::of(Measure::Function(function)) }
    }

    fn of(measure: Measure<'a>) -> Self {
        Metric { measure, positions: Positions::LastToken, normalization: None }
    }

    /// The positions at which the metric reads logits. The value of a row is the mean over them; a function gets the logits of these
    /// positions only.
    pub fn pos(mut self, positions: impl Into<Positions>) -> Self {
        self.positions = positions.into();
        self
    }

    /// The metric on the scale from its value in the corrupted run (0) to its value in the clean run (1):
    /// `(value − corrupted) / (clean − corrupted)`. Each is a number, or a tensor with a number for each row, `[batch]`.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, Metric, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let clean = model.run("When Mary and John went to the shop, John gave a bag to", RunOptions::new())?;
    /// let corrupted = model.run("When Mary and John went to the shop, Mary gave a bag to", RunOptions::new())?;
    /// let difference = Metric::logit_diff(" Mary", " John");
    /// let [low, high] = [&corrupted, &clean].map(|run| difference.rows(run.logits().unwrap(), &run.cache).unwrap());
    /// let metric = difference.normalized(&high, &low);
    /// assert_eq!(metric.scalar(clean.logits()?, &clean.cache)?.double_value(&[]), 1.0);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// Where both values of a row are equal, the metric is an [`Error::Metric`](crate::Error::Metric) when it is used.
    pub fn normalized(mut self, clean: impl Into<Baseline>, corrupted: impl Into<Baseline>) -> Self {
        self.normalization = Some(Normalization { clean: clean.into(), corrupted: corrupted.into() });
        self
    }

    /// The mean over the rows of the batch, without dimensions, of the logits `[batch, pos, d_vocab_out]` and the cache of one run. It
    /// is differentiable, and no value of the run is copied from its device.
    ///
    /// # Errors
    ///
    /// [`Error::Metric`](crate::Error::Metric), [`Error::MetricFailed`](crate::Error::MetricFailed), those of [`Answer`]s and of [`Positions`].
    pub fn scalar(&self, logits: &Tensor, cache: &ActivationCache) -> Result<Tensor> {
        Ok(self.values(logits, cache)?.mean()?.f_select(0, 0)?)
    }

    /// The value of each row, `[batch]`, of the logits `[batch, pos, d_vocab_out]` and the cache of one run. It is differentiable, and no
    /// value of the run is copied from its device.
    ///
    /// # Errors
    ///
    /// Those of [`Metric::scalar`]; [`Error::Metric`](crate::Error::Metric) where a function returns one value for several rows.
    pub fn rows(&self, logits: &Tensor, cache: &ActivationCache) -> Result<Tensor> {
        Ok(self.values(logits, cache)?.rows()?.f_select(0, 0)?)
    }

    fn values(&self, logits: &Tensor, cache: &ActivationCache) -> Result<MetricValues> {
        let resolved = self.resolve(cache.model(), cache.tokenizer().ok(), cache.tokens(), cache.past())?;
        let logits = resolved.at_positions(logits, cache.logit_positions())?;
        resolved.values(&logits, 1, Some(cache))
    }

    /// The positions at which it reads logits: what a run that only measures has as its [`logits_at`](crate::RunOptions::logits_at).
    pub fn positions(&self) -> &Positions {
        &self.positions
    }

    /// The activations that it needs besides logits: none, or those that [`with_cache`](Metric::with_cache) names. A run that measures
    /// keeps them in its cache.
    ///
    /// # Errors
    ///
    /// Those of [`HookFilter::resolve`].
    pub fn needs(&self, config: &Config) -> Result<Vec<HookPoint>> {
        match &self.measure {
            Measure::Function(function) => function.needs(config),
            Measure::Answer(..) | Measure::KlDiv(_) => Ok(Vec::new()),
        }
    }
}
