//! `logit_lens`: what the model would say if it ended after each layer.

use std::fmt;

use tch::{Kind, Tensor};

use super::answer::Answer;
use super::labelled::{LabelledTensor, Quantity};
use super::options::{AccumulateOptions, LensOptions};
use super::recipe::RowValues;
use super::table::quoted;
use crate::cache::ActivationCache;
use crate::component::Component;
use crate::tensor::columns::Columns;
use crate::tensor::precision::{at_least_float, widened};
use crate::{Error, Result};

/// What the model would say if it ended after each layer (nostalgebraist 2020): logits `[component, batch, pos, d_vocab_out]`.
///
/// Prints as a table of the likeliest token by row and position.
///
/// ```
/// use tch_lens::{analysis::LensOptions, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// let lens = cache.logit_lens(LensOptions::new())?;
/// println!("{lens}"); // the likeliest token after each layer, at each position
/// let ranks = lens.pos(-1)?.rank_of(" Mary")?;
/// assert_eq!(ranks.rows.last().unwrap().1, 0); // the answer, in the end
/// println!("{ranks}");
/// # Ok::<(), tch_lens::Error>(())
/// ```
pub type LogitLens = LabelledTensor<Logits>;

/// What the values of a [`LogitLens`] are: logits, and the lens that read them.
#[derive(Clone, Copy, Debug)]
pub struct Logits {
    lens: &'static str,
}

impl Logits {
    pub(crate) const LOGIT_LENS: Logits = Logits { lens: "Logit lens" };
}

impl Quantity for Logits {
    fn narrowed(&self, _axis: usize, _places: &Columns) -> Result<Self> {
        Ok(*self)
    }

    fn averaged(&self, _axis: usize) -> Result<Self> {
        Ok(*self)
    }

    fn of_rows(&self, _all: bool) -> Result<Self> {
        Ok(*self)
    }

    /// The likeliest token.
    fn cells(lens: &LogitLens) -> Result<Vec<String>> {
        let ids = Vec::<i64>::try_from(lens.values().f_argmax(-1, false)?.f_reshape(-1)?)?;
        Ok(ids.into_iter().map(|id| quoted(&lens.token_text(id))).collect())
    }
}

impl ActivationCache {
    /// Reads the stream before each block, and at the end, as the unembedding would: each row through the last norm at its own
    /// scale, bias included, then `W_U`, `b_U` and the cap. The last row is the model's own logits, unless a hook changed what the last
    /// norm or the unembedding gave.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`] and [`Error::NoPosition`] naming what the run did not keep; [`Error::LayerOutOfRange`] of the target; those
    /// of the slices.
    pub fn logit_lens(&self, options: LensOptions) -> Result<LogitLens> {
        let LensOptions { target, window, incl_mid } = options;
        let accumulate = AccumulateOptions { target, window, incl_mid, ..AccumulateOptions::default() };
        let stack = self.accumulated_resid(accumulate)?;
        let logits = self.model().read_logits(&stack.values().f_to_kind(self.model().kind())?)?;
        Ok(LabelledTensor::new(
            stack.row_values(logits),
            self.clone(),
            stack.window().clone(),
            true,
            Logits::LOGIT_LENS,
        ))
    }

    /// The streams before each block, and at the end, each read by `read` from `[batch, pos, d_model]` to logits, `[batch, pos,
    /// d_vocab_out]`. A stream for which it returns `None` has no row.
    ///
    /// # Errors
    ///
    /// Those of [`logit_lens`](ActivationCache::logit_lens) and of `read`; [`Error::Setting`] with `incl_mid`; [`Error::WrongInput`] where no
    /// stream is read.
    pub(crate) fn read_streams(
        &self,
        options: LensOptions,
        lens: &'static str,
        read: impl Fn(&Component, &Tensor) -> Result<Option<Tensor>>,
    ) -> Result<LogitLens> {
        let LensOptions { target, window, incl_mid } = options;
        if incl_mid {
            let why = "`incl_mid` cannot be used: this lens reads the streams between blocks only";
            return Err(Error::setting("incl_mid", why));
        }
        let stack = self.accumulated_resid(AccumulateOptions { target, window, ..AccumulateOptions::default() })?;
        let (mut components, mut values) = (Vec::new(), Vec::new());
        for (row, component) in stack.rows().iter().enumerate() {
            let stream = stack.values().f_select(0, row as i64)?; // [batch, pos, d_model]
            if let Some(logits) = read(component, &stream)? {
                components.push(component.clone());
                values.push(logits);
            }
        }
        if values.is_empty() {
            let streams = stack.labels().join(", ");
            return Err(Error::wrong_input(format!("the lens reads none of the streams that there are: {streams}")));
        }
        let rows = RowValues { components, values: Tensor::f_stack(&values, 0)? };
        Ok(LabelledTensor::new(rows, self.clone(), stack.window().clone(), true, Logits { lens }))
    }
}

impl LogitLens {
    /// Logits: `[component, batch, pos, d_vocab_out]`, without the axes that were sliced off.
    pub fn logits(&self) -> Tensor {
        self.tensor()
    }

    /// Log-probabilities, in fp32 or better: `[component, batch, pos, d_vocab_out]`.
    ///
    /// # Errors
    ///
    /// Those of libtorch.
    pub fn log_probs(&self) -> Result<Tensor> {
        let logits = self.without_dropped_axes(self.values())?;
        Ok(logits.f_log_softmax(-1, at_least_float(logits.f_kind()?))?)
    }

    /// The divergence of the model's own distribution from that of each row, in nats: `KL(final ‖ row)`, `[component, batch, pos]`, in fp32
    /// or better. It is how much a reader of the row alone does not know of what the model will say.
    ///
    /// ```
    /// use tch_lens::{analysis::LensOptions, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
    /// let divergences = cache.logit_lens(LensOptions::new().pos(-1))?.kl_to_final()?; // [component, batch]
    /// assert!(divergences.double_value(&[0, 0]) > 1.0 && divergences.double_value(&[4, 0]) == 0.0);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoRow`] where the lens has no row for the last stream, `final_post`.
    pub fn kl_to_final(&self) -> Result<Tensor> {
        let last = self.row(&Component::FinalPost)?; // [batch, pos, d_vocab_out]
        let last = last.f_log_softmax(-1, at_least_float(last.f_kind()?))?;
        let gaps = last.f_sub(&self.log_probs()?)?; // [component, batch, pos, d_vocab_out]
                                                    // A token of probability zero adds nothing, whatever the row says.
        let terms = last.f_exp()?.f_mul(&gaps)?.f_nan_to_num(Some(0.0), None::<f64>, None::<f64>)?;
        Ok(terms.f_sum_dim_intlist([-1i64].as_slice(), false, None)?)
    }

    /// The lens that read the logits: `Logit lens`, `Tuned lens`, `Jacobian lens` or `Patchscope`.
    pub fn lens(&self) -> &'static str {
        self.quantity().lens
    }

    /// The `k` likeliest tokens of each row, as text, with their probabilities; of one position and batch row.
    ///
    /// # Errors
    ///
    /// [`Error::SeveralPositions`] where several positions or batch rows are left; [`Error::Tokenizer`].
    pub fn top(&self, k: usize) -> Result<Vec<LikelyTokens>> {
        self.cache().tokenizer()?;
        let probs = widened(&self.of_one_position("a list of likely tokens")?)?; // [component, d_vocab_out]
        let probs = probs.f_softmax(-1, probs.f_kind()?)?;
        let k = i64::try_from(k).unwrap_or(i64::MAX).min(probs.size()[1]);
        let (values, ids) = probs.f_topk(k, -1, true, true)?;
        let row = |(i, row): (usize, &Component)| {
            let tokens = (0..k).map(|j| {
                let id = ids.f_int64_value(&[i as i64, j])?;
                Ok((self.token_text(id), values.f_double_value(&[i as i64, j])?))
            });
            Ok(LikelyTokens { row: row.clone(), tokens: tokens.collect::<Result<_>>()? })
        };
        self.rows().iter().enumerate().map(row).collect()
    }

    /// Where a token stands in each row, 0 being the likeliest, and its probability; of one position and batch row.
    ///
    /// # Errors
    ///
    /// [`Error::SeveralPositions`] where several positions or batch rows are left; [`Error::Tokenizer`] and
    /// [`Error::TokenOutOfRange`] for the answer; [`Error::WrongInput`] for a difference of two.
    pub fn rank_of(&self, answer: impl Into<Answer>) -> Result<Ranks> {
        let id = answer.into().ids(self.model(), self.cache().tokenizer().ok(), 1, 1)?.f_int64_value(&[0, 0])?;
        let logits = widened(&self.of_one_position("a rank")?)?; // [component, d_vocab_out]
        let of_answer = logits.f_narrow(1, id, 1)?;
        let ranks = logits.f_gt_tensor(&of_answer)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)?;
        let probs = logits.f_softmax(-1, logits.f_kind()?)?.f_select(1, id)?;
        let rows = self.rows().iter().enumerate();
        let rows = rows
            .map(|(i, row)| Ok((row.clone(), ranks.f_int64_value(&[i as i64])?, probs.f_double_value(&[i as i64])?)));
        Ok(Ranks { rows: rows.collect::<Result<_>>()? })
    }

    /// A token as text; without a tokenizer, and for ids that it does not know, as `<id 7>`.
    fn token_text(&self, id: i64) -> String {
        self.cache().tokenizer().map_or_else(|_| format!("<id {id}>"), |tokenizer| tokenizer.text_or_number(id))
    }
}

/// The likeliest tokens of a row, as text, with their probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct LikelyTokens {
    /// The row.
    pub row: Component,
    /// Tokens in descending order of probability.
    pub tokens: Vec<(String, f64)>,
}

/// Where a token stands in each row; prints as a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranks {
    /// The row, the rank (0 is the likeliest) and the probability.
    pub rows: Vec<(Component, i64, f64)>,
}

impl fmt::Display for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (row, rank, prob)) in self.rows.iter().enumerate() {
            let end = if i + 1 < self.rows.len() { "\n" } else { "" };
            write!(f, "{row:<10}  rank {rank:>5}  {:>5.1} %{end}", 100.0 * prob)?;
        }
        Ok(())
    }
}
