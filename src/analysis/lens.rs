//! `logit_lens`: what the model would say if it ended after each layer.

use std::fmt;

use tch::{Kind, Tensor};

use super::answer::Answer;
use super::options::Accumulate;
use crate::cache::ActivationCache;
use crate::component::Component;
use crate::model::Transformer;
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result};

/// What the model would say if it ended after each layer (nostalgebraist 2020): `[component, batch, pos, d_vocab_out]`.
///
/// ```
/// use tch_lens::{analysis::Accumulate, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// let lens = cache.logit_lens(Accumulate::new().pos(-1))?;
/// let ranks = lens.rank_of(" Mary")?;
/// assert_eq!(ranks.rows.last().unwrap().1, 0); // the answer, in the end
/// println!("{ranks}");
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Debug)]
pub struct LogitLens {
    /// `[component, batch, pos, d_vocab_out]`
    full: Tensor,
    rows: Vec<Component>,
    axes: (bool, bool),
    model: Transformer,
    tokenizer: Option<Tokenizer>,
}

impl ActivationCache {
    /// Reads the stream before each block, and at the end, as the unembedding would: each row through the last norm at its own
    /// scale, bias included, then `W_U`, `b_U` and the cap. The last row is the model's own logits.
    ///
    /// # Errors
    ///
    /// Those of [`accumulated_resid`](ActivationCache::accumulated_resid).
    pub fn logit_lens(&self, options: Accumulate) -> Result<LogitLens> {
        // Whatever the rows lead up to, it is the unembedding that reads them.
        let stack = self.accumulated_resid(Accumulate { apply_ln: false, ..options })?;
        let unembed = &self.model().weights().unembed;
        let kind = self.model().kind();
        let read = |rows: &Tensor| -> Result<Tensor> {
            let normalized = unembed.ln_final.apply(&rows.f_to_kind(kind)?)?;
            unembed.cap(unembed.u.forward(&normalized)?)
        };
        let full = read(stack.full())?;
        Ok(LogitLens {
            full,
            rows: stack.rows().to_vec(),
            axes: stack.window().axes(),
            model: self.model().clone(),
            tokenizer: self.tokenizer().ok().cloned(),
        })
    }
}

impl LogitLens {
    /// Logits: `[component, batch, pos, d_vocab_out]`, without the axes that were sliced off.
    pub fn logits(&self) -> Tensor {
        self.seen(&self.full)
    }

    /// Log-probabilities, in fp32 or better: `[component, batch, pos, d_vocab_out]`.
    pub fn log_probs(&self) -> Tensor {
        self.seen(&self.full).log_softmax(-1, wide(&self.full))
    }

    /// What each row is.
    pub fn rows(&self) -> &[Component] {
        &self.rows
    }

    /// The rows' labels.
    pub fn labels(&self) -> Vec<String> {
        self.rows.iter().map(ToString::to_string).collect()
    }

    /// The `k` likeliest tokens of each row, as text, with their probabilities; of one position and batch row.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where several positions or batch rows are left; [`Error::NoTokenizer`].
    pub fn top(&self, k: usize) -> Result<Vec<LikelyTokens>> {
        let probs = self.single()?.f_softmax(-1, wide(&self.full))?; // [component, d_vocab_out]
        let k = (k as i64).min(probs.size()[1]);
        let (values, ids) = probs.f_topk(k, -1, true, true)?;
        let tokenizer = self.tokenizer.as_ref().ok_or(Error::NoTokenizer)?;
        let row = |(i, row): (usize, &Component)| {
            let tokens = (0..k).map(|j| {
                let id = ids.f_int64_value(&[i as i64, j])?;
                // A vocabulary padded to a round number has ids that the tokenizer does not know.
                let text = tokenizer.single_str_token(id).or_else(|error| match error {
                    Error::TokenOutOfRange { .. } => Ok(format!("<{id}>")),
                    other => Err(other),
                })?;
                Ok((text, values.f_double_value(&[i as i64, j])?))
            });
            Ok(LikelyTokens { row: row.clone(), tokens: tokens.collect::<Result<_>>()? })
        };
        self.rows.iter().enumerate().map(row).collect()
    }

    /// Where a token stands in each row, 0 being the likeliest, and its probability; of one position and batch row.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] where several positions or batch rows are left; those of the answer.
    pub fn rank_of(&self, answer: impl Into<Answer>) -> Result<Ranks> {
        let id = answer.into().ids(&self.model, self.tokenizer.as_ref(), 1, 1)?.f_int64_value(&[0, 0])?;
        let logits = self.single()?.f_to_kind(wide(&self.full))?; // [component, d_vocab_out]
        let own = logits.f_narrow(1, id, 1)?;
        let ranks = logits.f_gt_tensor(&own)?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)?;
        let probs = logits.f_softmax(-1, wide(&self.full))?.f_select(1, id)?;
        let rows =
            self.rows.iter().enumerate().map(|(i, row)| {
                Ok((row.clone(), ranks.f_int64_value(&[i as i64])?, probs.f_double_value(&[i as i64])?))
            });
        Ok(Ranks { rows: rows.collect::<Result<_>>()? })
    }

    /// `[component, d_vocab_out]`, where one position and batch row is left.
    fn single(&self) -> Result<Tensor> {
        let size = self.full.size();
        if size[1] * size[2] != 1 {
            return Err(Error::invalid(format!(
                "this is of one position and batch row, but there are {} and {}: choose with Accumulate's pos(…) and batch(…)",
                size[2], size[1]
            )));
        }
        Ok(self.full.f_view([size[0], size[3]])?)
    }

    fn seen(&self, full: &Tensor) -> Tensor {
        let seen = if self.axes.1 { full.shallow_clone() } else { full.squeeze_dim(2) };
        if self.axes.0 {
            seen
        } else {
            seen.squeeze_dim(1)
        }
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

/// At least fp32.
fn wide(tensor: &Tensor) -> Kind {
    if tensor.kind() == Kind::Double {
        Kind::Double
    } else {
        Kind::Float
    }
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
