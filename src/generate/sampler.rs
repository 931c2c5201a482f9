//! [`Sampler`]: logits to the next token of each row.

use tch::{Device, Kind, Tensor};

use super::history::TokenHistory;
use super::random::RowRandom;
use super::sampling_options::SamplingOptions;
use super::{filters, penalties};
use crate::tensor::precision::widened;
use crate::tensor::scalar::full;
use crate::{Error, Result};

/// [`SamplingOptions`], checked: it turns logits into the next token of each row.
///
/// It holds nothing that changes from step to step; that is in each row's [`SequenceState`].
///
/// ```
/// use tch_lens::{generate::{Sampler, SamplingOptions}, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let sampler = Sampler::new(&SamplingOptions::greedy().no_repeat_ngram_size(2), model.config().d_vocab_out)?;
/// let prompt: Vec<i64> = Vec::try_from(model.to_tokens("The capital of France is")?.ids.squeeze_dim(0)).unwrap();
/// let mut rows = [sampler.sequence(&prompt, 0, 0)];
/// for _ in 0..2 {
///     let logits = model.forward(rows[0].history().ids())?.select(1, -1); // [batch, d_vocab]
///     let next = sampler.sample(&logits, &mut rows)?;
///     rows[0].push(next[0]);
/// }
/// assert_eq!(model.to_string(rows[0].history().new_ids())?, " Paris.");
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sampler {
    steps: Vec<Step>,
    greedy: bool,
    seed: u64,
    d_vocab: usize,
}

/// What changes the scores of one step.
#[derive(Clone, Debug)]
enum Step {
    Bias(Vec<(i64, f64)>),
    RepetitionPenalty(f64),
    FrequencyPenalty(f64),
    PresencePenalty(f64),
    NoRepeatNgrams(usize),
    ForbidSequences(Vec<Vec<i64>>),
    /// The first so many tokens are none of these.
    MinNewTokens(usize, Vec<i64>),
    AllowTokens(Vec<i64>),
    ForbidTokens(Vec<i64>),
    Temperature(f64),
    TopK(usize, usize),
    TopP(f64, usize),
    MinP(f64, usize),
    TypicalP(f64, usize),
    EpsilonCutoff(f64, usize),
    EtaCutoff(f64, usize),
}

/// One row while it is continued: its tokens so far and its own random numbers.
///
/// Made by [`Sampler::sequence`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceState {
    history: TokenHistory,
    random: RowRandom,
}

impl SequenceState {
    /// The tokens so far.
    pub fn history(&self) -> &TokenHistory {
        &self.history
    }

    /// Adds the token that was chosen.
    pub fn push(&mut self, id: i64) {
        self.history.push(id);
    }
}

impl AsRef<TokenHistory> for SequenceState {
    fn as_ref(&self) -> &TokenHistory {
        &self.history
    }
}

impl AsMut<SequenceState> for SequenceState {
    fn as_mut(&mut self) -> &mut SequenceState {
        self
    }
}

impl Sampler {
    /// The sampler of these options, for a model with `d_vocab` output tokens (`Config::d_vocab_out`).
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a value out of its range, or for a setting that could not count;
    /// [`Error::TokenOutOfRange`] for a token that the model does not have.
    pub fn new(options: &SamplingOptions, d_vocab: usize) -> Result<Self> {
        Self::with_min_new_tokens(options, d_vocab, 0, &[])
    }

    /// A sampler whose first `min_new_tokens` tokens are none of `stop_tokens`. Those lie within `d_vocab`.
    pub(super) fn with_min_new_tokens(
        options: &SamplingOptions,
        d_vocab: usize,
        min_new_tokens: usize,
        stop_tokens: &[i64],
    ) -> Result<Self> {
        options.check(d_vocab)?;
        let keep = options.min_tokens_to_keep.unwrap_or(1);
        let listed = |ids: &Vec<i64>| (!ids.is_empty()).then(|| ids.clone());
        let steps = [
            (!options.biases.is_empty()).then(|| Step::Bias(options.biases.clone())),
            options.repetition_penalty.map(Step::RepetitionPenalty),
            options.frequency_penalty.map(Step::FrequencyPenalty),
            options.presence_penalty.map(Step::PresencePenalty),
            options.no_repeat_ngram_size.map(Step::NoRepeatNgrams),
            (!options.forbidden_sequences.is_empty())
                .then(|| Step::ForbidSequences(options.forbidden_sequences.clone())),
            (min_new_tokens > 0).then(|| Step::MinNewTokens(min_new_tokens, stop_tokens.to_vec())),
            options.allowed_tokens.clone().map(Step::AllowTokens),
            listed(&options.forbidden_tokens).map(Step::ForbidTokens),
            options.temperature.map(Step::Temperature),
            options.top_k.map(|k| Step::TopK(k, keep)),
            // transformers leaves these two out at 1, where rounding could still remove a token.
            options.top_p.filter(|&p| p < 1.0).map(|p| Step::TopP(p, keep)),
            options.min_p.map(|p| Step::MinP(p, keep)),
            options.typical_p.filter(|&p| p < 1.0).map(|p| Step::TypicalP(p, keep)),
            options.epsilon_cutoff.map(|epsilon| Step::EpsilonCutoff(epsilon, keep)),
            options.eta_cutoff.map(|epsilon| Step::EtaCutoff(epsilon, keep)),
        ];
        let steps = steps.into_iter().flatten().collect();
        Ok(Sampler { steps, greedy: options.greedy, seed: options.seed.unwrap_or(0), d_vocab })
    }

    /// A row that begins with `prompt` (its real tokens, without padding). Its random numbers follow from the seed, `row` and
    /// `sample` alone: the same three give the same tokens in any batch.
    pub fn sequence(&self, prompt: &[i64], row: usize, sample: usize) -> SequenceState {
        let random = RowRandom::new(self.seed, row as u64, sample as u64);
        SequenceState { history: TokenHistory::new(prompt), random }
    }

    /// The next token of each row. The caller adds it to the row: [`SequenceState::push`].
    ///
    /// `logits`: `[batch, d_vocab]`, one row a sequence, on any device.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for logits of other sizes; [`Error::NoCandidate`] for a row whose every token is excluded, or
    /// whose logits are not numbers.
    pub fn sample<S>(&self, logits: &Tensor, sequences: &mut [S]) -> Result<Vec<i64>>
    where
        S: AsRef<TokenHistory> + AsMut<SequenceState>,
    {
        self.pick(&self.scores(logits, sequences)?, sequences)
    }

    /// The scores that the next token is chosen by, in fp32 or better: `[batch, d_vocab]`, −∞ for excluded tokens.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for logits of other sizes.
    pub fn scores<H: AsRef<TokenHistory>>(&self, logits: &Tensor, histories: &[H]) -> Result<Tensor> {
        self.check_shape(logits, histories.len())?;
        let mut scores = widened(logits)?;
        for step in &self.steps {
            scores = step.apply(&scores, histories)?;
        }
        Ok(scores)
    }

    /// The next token of each row by its scores: the highest, or one drawn with the row's random numbers.
    ///
    /// # Errors
    ///
    /// Those of [`Sampler::sample`].
    pub fn pick<S: AsMut<SequenceState>>(&self, scores: &Tensor, sequences: &mut [S]) -> Result<Vec<i64>> {
        self.check_shape(scores, sequences.len())?;
        let (ids, usable) = if self.greedy {
            highest(scores)?
        } else {
            let numbers: Vec<f64> = sequences.iter_mut().map(|sequence| sequence.as_mut().random.uniform()).collect();
            drawn(scores, &numbers)?
        };
        // One transfer from the device: a row that cannot be used is −1.
        let unusable = full(&ids.size(), -1.0, (Kind::Int64, ids.device()))?;
        let ids = ids.f_where_self(&usable, &unusable)?;
        let ids = Vec::<i64>::try_from(ids.f_view(-1)?.f_to_device(Device::Cpu)?)?;
        match ids.iter().position(|&id| id < 0) {
            Some(row) => Err(Error::NoCandidate { row }),
            None => Ok(ids),
        }
    }

    fn check_shape(&self, scores: &Tensor, rows: usize) -> Result<()> {
        if scores.size() != [rows as i64, self.d_vocab as i64] || rows == 0 {
            return Err(wrong_shape(scores, format!("[{rows}, {}]: one row a sequence", self.d_vocab)));
        }
        Ok(())
    }
}

/// The highest score's id of each row, and whether that score is a number: `[batch, 1]` both.
fn highest(scores: &Tensor) -> Result<(Tensor, Tensor)> {
    let ids = scores.f_argmax(-1, true)?;
    let usable = scores.f_gather(-1, &ids, false)?.f_isfinite()?;
    Ok((ids, usable))
}

/// An id of each row, by inverting the cumulative distribution at the row's number of `[0, 1)`, and whether the row has a
/// distribution: `[batch, 1]` both.
fn drawn(scores: &Tensor, numbers: &[f64]) -> Result<(Tensor, Tensor)> {
    // Apple's GPUs have no fp64.
    let kind = if scores.device() == Device::Mps { Kind::Float } else { Kind::Double };
    let cumulative = scores.f_softmax(-1, None::<Kind>)?.f_cumsum(-1, kind)?; // [batch, d_vocab]
    let total = cumulative.f_narrow(-1, cumulative.size()[1] - 1, 1)?; // [batch, 1]
    let numbers = Tensor::f_from_slice(numbers)?.f_to_kind(kind)?.f_to_device(scores.device())?.f_view([-1, 1])?;
    // The first token whose cumulative probability is above the number: one of probability 0 is never it.
    let ids =
        numbers.f_mul(&total)?.f_searchsorted(&cumulative.f_contiguous()?, false, true, "right", None::<&Tensor>)?;
    Ok((ids, total.f_isfinite()?))
}

impl Step {
    fn apply<H: AsRef<TokenHistory>>(&self, scores: &Tensor, histories: &[H]) -> Result<Tensor> {
        match self {
            Step::Bias(biases) => penalties::bias_tokens(scores, biases),
            Step::RepetitionPenalty(penalty) => penalties::repetition_penalty(scores, histories, *penalty),
            Step::FrequencyPenalty(penalty) => penalties::frequency_penalty(scores, histories, *penalty),
            Step::PresencePenalty(penalty) => penalties::presence_penalty(scores, histories, *penalty),
            Step::NoRepeatNgrams(n) => penalties::no_repeat_ngrams(scores, histories, *n),
            Step::ForbidSequences(sequences) => penalties::forbid_sequences(scores, histories, sequences),
            Step::MinNewTokens(count, stop) => penalties::forbid_early(scores, histories, *count, stop),
            Step::AllowTokens(ids) => penalties::allow_tokens(scores, ids),
            Step::ForbidTokens(ids) => penalties::forbid_tokens(scores, ids),
            Step::Temperature(temperature) => filters::temperature(scores, *temperature),
            Step::TopK(k, keep) => filters::top_k(scores, *k, *keep),
            Step::TopP(p, keep) => filters::top_p(scores, *p, *keep),
            Step::MinP(p, keep) => filters::min_p(scores, *p, *keep),
            Step::TypicalP(mass, keep) => filters::typical_p(scores, *mass, *keep),
            Step::EpsilonCutoff(epsilon, keep) => filters::epsilon_cutoff(scores, *epsilon, *keep),
            Step::EtaCutoff(epsilon, keep) => filters::eta_cutoff(scores, *epsilon, *keep),
        }
    }
}

/// An [`Error::Shape`] of scores.
pub(super) fn wrong_shape(scores: &Tensor, expected: String) -> Error {
    Error::Shape { what: "the scores' tensor".into(), found: scores.size(), expected }
}
