//! Penalties for tokens that occurred, and lists of tokens that must or must not come.
//!
//! `histories` has one entry a row of `scores` `[batch, d_vocab]`. Ids of a history outside `d_vocab` are passed over: no score
//! is theirs. Ids that a caller names must lie within.

use tch::Tensor;

use super::history::TokenHistory;
use super::sampler::wrong_shape;
use crate::tensor::scalar::{full, Scalar};
use crate::{Error, Result};

/// Penalises every token that occurred, in the prompt or after it: positive scores are divided by `penalty`, negative ones
/// multiplied (Keskar et al. 2019). Above 1 it discourages repetition, below 1 it encourages it. Equals
/// `RepetitionPenaltyLogitsProcessor`.
///
/// ```
/// use tch_lens::generate::{self, TokenHistory};
/// let scores = tch::Tensor::from_slice2(&[[2.0f32, -1.0, 3.0]]);
/// let scores = generate::repetition_penalty(&scores, &[TokenHistory::new(&[0, 1, 1])], 2.0)?;
/// assert_eq!(scores, tch::Tensor::from_slice2(&[[1.0f32, -2.0, 3.0]]));
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Shape`] where `histories` has another number of rows than `scores`.
pub fn repetition_penalty<H: AsRef<TokenHistory>>(scores: &Tensor, histories: &[H], penalty: f64) -> Result<Tensor> {
    let places = Places::of_histories(scores, histories)?;
    places.change(scores, |found| {
        let positive = found.gt_number(0.0)?;
        Ok(found.div_number(penalty)?.f_where_self(&positive, &found.mul_number(penalty)?)?)
    })
}

/// Subtracts `penalty` from a token's score for each time that it occurred, in the prompt or after it.
///
/// TransformerLens' `freq_penalty` is applied after the temperature; it equals this one times the temperature.
///
/// # Errors
///
/// [`Error::Shape`] where `histories` has another number of rows than `scores`.
pub fn frequency_penalty<H: AsRef<TokenHistory>>(scores: &Tensor, histories: &[H], penalty: f64) -> Result<Tensor> {
    let places = Places::of_histories(scores, histories)?;
    let counts = Tensor::f_from_slice(&places.counts)?.f_to_device(scores.device())?.f_to_kind(scores.f_kind()?)?;
    places.change(scores, |found| Ok(found.f_sub(&counts.mul_number(penalty)?)?))
}

/// Subtracts `penalty` from the score of every token that occurred, in the prompt or after it.
///
/// # Errors
///
/// [`Error::Shape`] where `histories` has another number of rows than `scores`.
pub fn presence_penalty<H: AsRef<TokenHistory>>(scores: &Tensor, histories: &[H], penalty: f64) -> Result<Tensor> {
    Places::of_histories(scores, histories)?.change(scores, |found| found.add_number(-penalty))
}

/// Excludes every token that would repeat a run of `n` tokens of the prompt or continuation. Equals
/// `NoRepeatNGramLogitsProcessor`.
///
/// # Errors
///
/// [`Error::Shape`] where `histories` has another number of rows than `scores`.
pub fn no_repeat_ngrams<H: AsRef<TokenHistory>>(scores: &Tensor, histories: &[H], n: usize) -> Result<Tensor> {
    Places::new(scores, histories, |ids, excluded| {
        let Some(start) = (ids.len() + 1).checked_sub(n) else { return };
        let last = &ids[start..]; // n - 1 tokens
        excluded.extend(ids.windows(n.max(1)).filter(|run| run[..n - 1] == *last).map(|run| run[n - 1]));
    })?
    .exclude(scores)
}

/// Excludes `ids` in the rows that have fewer than `count` new tokens. Equals `MinNewTokensLengthLogitsProcessor`.
pub(super) fn forbid_early<H: AsRef<TokenHistory>>(
    scores: &Tensor,
    histories: &[H],
    count: usize,
    ids: &[i64],
) -> Result<Tensor> {
    Places::collect(scores, histories, |history| {
        let early = history.new_ids().len() < count;
        ids.iter().filter(|_| early).map(|&id| (id, 0)).collect()
    })?
    .exclude(scores)
}

/// Excludes the token that would complete one of `sequences`. Equals `NoBadWordsLogitsProcessor`, but for an EOS token
/// alone, which that one ignores.
///
/// # Errors
///
/// [`Error::Shape`] where `histories` has another number of rows than `scores`; [`Error::TokenOutOfRange`].
pub fn forbid_sequences<H: AsRef<TokenHistory>>(
    scores: &Tensor,
    histories: &[H],
    sequences: &[Vec<i64>],
) -> Result<Tensor> {
    check(sequences.iter().flatten(), scores)?;
    Places::new(scores, histories, |ids, excluded| {
        let completed = sequences.iter().filter_map(|sequence| sequence.split_last());
        excluded.extend(completed.filter(|(_, before)| ids.ends_with(before)).map(|(last, _)| *last));
    })?
    .exclude(scores)
}

/// Excludes tokens. Equals `SuppressTokensLogitsProcessor`.
///
/// # Errors
///
/// [`Error::TokenOutOfRange`].
pub fn forbid_tokens(scores: &Tensor, ids: &[i64]) -> Result<Tensor> {
    check(ids, scores)?;
    if ids.is_empty() {
        return Ok(scores.shallow_clone());
    }
    let index = Tensor::f_from_slice(ids)?.f_to_device(scores.device())?;
    let excluded = full(&[scores.size()[0], ids.len() as i64], f64::NEG_INFINITY, (scores.f_kind()?, scores.device()))?;
    Ok(scores.f_index_copy(-1, &index, &excluded)?)
}

/// Excludes all tokens but these.
///
/// # Errors
///
/// [`Error::TokenOutOfRange`].
pub fn allow_tokens(scores: &Tensor, ids: &[i64]) -> Result<Tensor> {
    check(ids, scores)?;
    let index = Tensor::f_from_slice(ids)?.f_to_device(scores.device())?;
    let nothing = full(&scores.size(), f64::NEG_INFINITY, (scores.f_kind()?, scores.device()))?;
    Ok(nothing.f_index_copy(-1, &index, &scores.f_index_select(-1, &index)?)?)
}

/// Adds a number to the scores of tokens. Equals `SequenceBiasLogitsProcessor` for sequences of one token.
///
/// # Errors
///
/// [`Error::TokenOutOfRange`].
pub fn bias_tokens(scores: &Tensor, biases: &[(i64, f64)]) -> Result<Tensor> {
    let (ids, biases): (Vec<i64>, Vec<f64>) = biases.iter().copied().unzip();
    check(&ids, scores)?;
    let index = Tensor::f_from_slice(&ids)?.f_to_device(scores.device())?;
    let biases = Tensor::f_from_slice(&biases)?.f_to_device(scores.device())?.f_to_kind(scores.f_kind()?)?;
    Ok(scores.f_index_add(-1, &index, &biases.f_expand([scores.size()[0], -1], false)?)?)
}

fn check<'a>(ids: impl IntoIterator<Item = &'a i64>, scores: &Tensor) -> Result<()> {
    let [_, d_vocab] = shape(scores)?;
    match ids.into_iter().find(|id| !(0..d_vocab).contains(*id)) {
        Some(&id) => Err(Error::TokenOutOfRange { id, d_vocab: d_vocab as usize }),
        None => Ok(()),
    }
}

fn shape(scores: &Tensor) -> Result<[i64; 2]> {
    scores.size().try_into().map_err(|_| wrong_shape(scores, "[batch, d_vocab]".into()))
}

/// Entries of `[batch, d_vocab]`, a few in each row.
struct Places {
    /// `row · d_vocab + id`, each at most once.
    index: Vec<i64>,
    /// How often the row's history has the id.
    counts: Vec<i64>,
}

impl Places {
    /// One place for each different id that `list` adds for a row's tokens.
    fn new<H: AsRef<TokenHistory>>(
        scores: &Tensor,
        histories: &[H],
        list: impl Fn(&[i64], &mut Vec<i64>),
    ) -> Result<Self> {
        let mut ids = Vec::new();
        Places::collect(scores, histories, |history| {
            ids.clear();
            list(history.ids(), &mut ids);
            ids.sort_unstable();
            ids.dedup();
            ids.iter().map(|&id| (id, 0)).collect::<Vec<_>>()
        })
    }

    /// One place for each different token of a row's history.
    fn of_histories<H: AsRef<TokenHistory>>(scores: &Tensor, histories: &[H]) -> Result<Self> {
        Places::collect(scores, histories, |history| history.counts().collect::<Vec<_>>())
    }

    fn collect<H: AsRef<TokenHistory>>(
        scores: &Tensor,
        histories: &[H],
        mut counted: impl FnMut(&TokenHistory) -> Vec<(i64, u32)>,
    ) -> Result<Self> {
        let [batch, d_vocab] = shape(scores)?;
        if histories.len() as i64 != batch {
            return Err(wrong_shape(scores, format!("[{}, d_vocab]: one row a history", histories.len())));
        }
        let mut places = Places { index: Vec::new(), counts: Vec::new() };
        for (row, history) in (0i64..).zip(histories) {
            for (id, count) in counted(history.as_ref()) {
                if (0..d_vocab).contains(&id) {
                    places.index.push(row * d_vocab + id);
                    places.counts.push(count.into());
                }
            }
        }
        Ok(places)
    }

    /// `scores` with the entries at these places changed.
    fn change(&self, scores: &Tensor, change: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        if self.index.is_empty() {
            return Ok(scores.shallow_clone());
        }
        let index = Tensor::f_from_slice(&self.index)?.f_to_device(scores.device())?;
        let flat = scores.f_reshape(-1)?;
        let changed = change(&flat.f_index_select(0, &index)?)?;
        Ok(flat.f_index_copy(0, &index, &changed)?.f_view_as(scores)?)
    }

    fn exclude(&self, scores: &Tensor) -> Result<Tensor> {
        self.change(scores, |found| full(&found.size(), f64::NEG_INFINITY, (found.f_kind()?, found.device())))
    }
}
