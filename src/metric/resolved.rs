//! [`ResolvedMetric`]: a metric for one batch of tokens, ready to be computed for several runs of it at once.

use tch::Tensor;

use super::normalization::Scaling;
use super::{Measure, Metric, Scale};
use crate::cache::ActivationCache;
use crate::model::Transformer;
use crate::tensor::columns::Columns;
use crate::tensor::precision::widened;
use crate::text::input::Tokens;
use crate::text::positions::PositionAxis;
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A metric whose answers and positions are known.
#[derive(Debug)]
pub(crate) struct ResolvedMetric<'m, 'a> {
    metric: &'m Metric<'a>,
    /// The positions of the logits.
    columns: Columns,
    /// The rows of the batch.
    batch: i64,
    d_vocab: i64,
    /// The ids of the answers: each `[batch or 1, pos or 1]`.
    answers: Option<(Tensor, Option<Tensor>)>,
    /// The log-probabilities that a divergence is from: `[batch, pos, d_vocab_out]`.
    reference: Option<Tensor>,
    scaling: Option<Scaling>,
}

/// The values of a metric for several runs: `[run, batch]`, or `[run, 1]` where it has one value for all rows.
#[derive(Debug)]
pub(crate) struct MetricValues {
    values: Tensor,
    batch: i64,
}

impl<'a> Metric<'a> {
    /// The metric for a batch of tokens that come behind `past` positions.
    ///
    /// # Errors
    ///
    /// Those of answers and positions; [`Error::Metric`].
    pub(crate) fn resolve<'m>(
        &'m self,
        model: &Transformer,
        tokenizer: Option<&Tokenizer>,
        tokens: &Tokens,
        past: i64,
    ) -> Result<ResolvedMetric<'m, 'a>> {
        let [batch, pos] = tokens.ids.size()[..] else {
            return Err(Error::Internal("tokens of a run are no matrix"));
        };
        let axis = PositionAxis::new(tokens, past, (0..batch).collect())?;
        let columns = self.positions.columns(&axis)?;
        if columns.is_empty() {
            return Err(Error::metric("its positions select none of the input's"));
        }
        let (mut answers, mut reference) = (None, None);
        match &self.measure {
            Measure::Answer(answer, _) => {
                let (correct, incorrect) = answer.both_ids(model, tokenizer, batch, columns.len() as i64)?;
                answers = Some((correct, incorrect));
            }
            Measure::KlDiv(logits) => {
                let found = logits_at(logits, &axis.all(), &columns, (batch, pos), model.config().d_vocab_out as i64)?;
                let wide = widened(&found)?.f_to_device(model.device())?;
                reference = Some(wide.f_log_softmax(-1, wide.f_kind()?)?);
            }
            Measure::Function(_) => {}
        }
        let scaling = self.normalization.as_ref().map(|scale| scale.resolve(batch, model.device())).transpose()?;
        let d_vocab = model.config().d_vocab_out as i64;
        Ok(ResolvedMetric { metric: self, columns, batch, d_vocab, answers, reference, scaling })
    }
}

/// The given logits of a divergence at the metric's positions.
fn logits_at(
    logits: &Tensor,
    all: &Columns,
    columns: &Columns,
    (batch, pos): (i64, i64),
    d_vocab: i64,
) -> Result<Tensor> {
    let found = if logits.defined() { logits.size() } else { Vec::new() };
    let n = columns.len() as i64;
    match found[..] {
        [rows, len, vocab] if rows == batch && vocab == d_vocab && len == pos => select(logits, all, columns),
        [rows, len, vocab] if rows == batch && vocab == d_vocab && len == n => Ok(logits.shallow_clone()),
        _ => Err(Error::metric(format!(
            "the logits of its divergence have shape {found:?}, but this batch needs [{batch}, {pos}, {d_vocab}], or [{batch}, {n}, {d_vocab}] at its positions"
        ))),
    }
}

/// The logits at some of the columns that they hold.
fn select(logits: &Tensor, held: &Columns, columns: &Columns) -> Result<Tensor> {
    if held == columns {
        return Ok(logits.shallow_clone());
    }
    match held.places(columns) {
        Ok(places) => places.select(logits, 1),
        Err(absent) => Err(Error::metric(format!(
            "it needs the logits at position {}, and the run formed them at {held}: leave out `logits_at`, or select that position",
            absent.column
        ))),
    }
}

impl ResolvedMetric<'_, '_> {
    /// The logits of one run at the metric's positions; `held` are those of the run's logits.
    pub(crate) fn at_positions(&self, logits: &Tensor, held: &Columns) -> Result<Tensor> {
        let size = if logits.defined() { logits.size() } else { Vec::new() };
        let (batch, pos, d_vocab) = (self.batch, held.len() as i64, self.d_vocab);
        if size != [batch, pos, d_vocab] {
            let expected = format!("[{batch}, {pos}, {d_vocab}], as the run of this cache has them");
            return Err(Error::Shape { what: "the metric's tensor of logits".into(), found: size, expected });
        }
        select(logits, held, &self.columns)
    }

    /// The values of `runs` runs of the batch, from their logits at the metric's positions, `[run · batch, pos, d_vocab_out]`, and a
    /// cache of these rows, where the metric needs one.
    pub(crate) fn values(&self, logits: &Tensor, runs: i64, cache: Option<&ActivationCache>) -> Result<MetricValues> {
        let batch = self.batch;
        let pos = self.columns.len() as i64;
        let values = match (&self.metric.measure, &self.answers, &self.reference) {
            (Measure::Function(function), ..) => {
                let cache = cache.ok_or(Error::Internal("a metric of a function has no cache"))?;
                let mut values = Vec::with_capacity(runs as usize);
                for run in 0..runs {
                    let own;
                    let (logits, cache) = match runs {
                        1 => (logits.shallow_clone(), cache),
                        _ => {
                            own = cache.clone().apply_slice_to_batch_dim(run * batch..(run + 1) * batch)?;
                            (logits.f_narrow(0, run * batch, batch)?, &own)
                        }
                    };
                    values.push(widened(&function.call(&logits, cache, batch)?)?);
                }
                Tensor::f_stack(&values, 0)? // [run, batch or 1]
            }
            (Measure::Answer(_, scale), Some((correct, incorrect)), _) => {
                let logits = widened(logits)?;
                let scores = match scale {
                    Scale::Logit => logits.shallow_clone(),
                    Scale::Prob => logits.f_softmax(-1, logits.f_kind()?)?,
                    Scale::LogProb => logits.f_log_softmax(-1, logits.f_kind()?)?,
                };
                let scores = scores.f_view([runs, batch, pos, self.d_vocab])?;
                let of = |ids: &Tensor| -> Result<Tensor> {
                    let ids = ids.f_unsqueeze(0)?.f_unsqueeze(-1)?.f_expand([runs, batch, pos, 1], false)?;
                    Ok(scores.f_gather(-1, &ids, false)?.f_squeeze_dim(-1)?) // [run, batch, pos]
                };
                let value = match incorrect {
                    Some(incorrect) => of(correct)?.f_sub(&of(incorrect)?)?,
                    None => of(correct)?,
                };
                value.f_mean_dim([-1i64].as_slice(), false, None)?
            }
            (Measure::KlDiv(_), _, Some(reference)) => {
                let logits = widened(logits)?;
                let log_probs = logits.f_log_softmax(-1, logits.f_kind()?)?.f_view([runs, batch, pos, self.d_vocab])?;
                let difference = reference.f_sub(&log_probs)?; // [run, batch, pos, d_vocab_out]
                let divergence =
                    reference.f_exp()?.f_mul(&difference)?.f_sum_dim_intlist([-1i64].as_slice(), false, None)?;
                divergence.f_mean_dim([-1i64].as_slice(), false, None)?
            }
            _ => return Err(Error::Internal("a metric was not resolved")),
        };
        let values = match &self.scaling {
            Some(scaling) => scaling.apply(&values)?,
            None => values,
        };
        Ok(MetricValues { values, batch })
    }
}

impl MetricValues {
    /// `[run, batch]`, or `[run, 1]` where there is one value for all rows.
    pub(crate) fn by_run(&self) -> &Tensor {
        &self.values
    }

    /// The mean over the rows of each run: `[run]`.
    pub(crate) fn mean(&self) -> Result<Tensor> {
        Ok(self.values.f_mean_dim([1i64].as_slice(), false, None)?)
    }

    /// The value of each row of each run: `[run, batch]`.
    ///
    /// # Errors
    ///
    /// [`Error::Metric`] where there is one value for several rows.
    pub(crate) fn rows(&self) -> Result<Tensor> {
        match self.values.size()[1] == self.batch {
            true => Ok(self.values.shallow_clone()),
            false => Err(Error::metric(format!(
                "its function returns one value for all {} rows: let it return one for each row, [{}]",
                self.batch, self.batch
            ))),
        }
    }
}
