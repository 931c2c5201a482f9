//! [`Readout`]: what reads an answer's logit, from the stream or from the logits of the run.

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::window::View;
use crate::component::Target;
use crate::model::Transformer;
use crate::tensor::columns::Columns;
use crate::tensor::precision::widened;
use crate::{hook, Error, Result};

/// The columns of `W_U` and the entries of `b_U` that make an answer's logit, or a difference of two, in fp32 or better.
#[derive(Debug)]
pub(crate) struct Readout {
    /// `[batch or 1, pos or 1]`
    correct: Tensor,
    /// Of a difference, what is taken away: `[batch or 1, pos or 1]`.
    wrong: Option<Tensor>,
    /// `[batch or 1, pos or 1, d_model, 1]`
    u: Tensor,
    /// `[batch or 1, pos or 1]`
    b_u: Tensor,
}

impl Readout {
    pub(crate) fn new(model: &Transformer, correct: Tensor, wrong: Option<Tensor>) -> Result<Self> {
        let (mut u, mut b_u) = columns(model, &correct)?;
        if let Some(wrong) = &wrong {
            let (u_wrong, b_wrong) = columns(model, wrong)?;
            (u, b_u) = (u.f_sub(&u_wrong)?, b_u.f_sub(&b_wrong)?);
        }
        Ok(Readout { correct, wrong, u, b_u })
    }

    /// The direction whose product with the normalised stream is the logit less `b_U`: `[batch or 1, pos or 1, d_model, 1]`.
    pub(crate) fn direction(&self) -> &Tensor {
        &self.u
    }

    /// `b_U`: `[batch or 1, pos or 1]`.
    pub(crate) fn bias(&self) -> &Tensor {
        &self.b_u
    }

    /// Of what the unembedding reads, `[batch, pos, d_model]`, the logit less `b_U`: `[batch, pos]`.
    pub(crate) fn of_reading(&self, reading: &Tensor) -> Result<Tensor> {
        let u = self.u.f_squeeze_dim(-1)?; // [batch or 1, pos or 1, d_model]
        Ok(reading.f_mul(&u)?.f_sum_dim_intlist([-1i64].as_slice(), false, None)?)
    }

    /// Of logits, `[batch, pos, d_vocab_out]`, the answer's: `[batch, pos]`.
    fn of_logits(&self, logits: &Tensor) -> Result<Tensor> {
        let size = logits.size();
        let gather = |ids: &Tensor| -> Result<Tensor> {
            let ids = ids.f_to_device(logits.device())?.f_expand([size[0], size[1]], false)?;
            Ok(logits.f_gather(-1, &ids.f_unsqueeze(-1)?, false)?.f_squeeze_dim(-1)?)
        };
        match &self.wrong {
            None => gather(&self.correct),
            Some(wrong) => Ok(gather(&self.correct)?.f_sub(&gather(wrong)?)?),
        }
    }

    /// The answer's logit before any cap, of the run itself: `[batch, pos]`.
    ///
    /// From the logits where the cache has them, else from what the unembedding read, else from the last stream through the last norm at
    /// the stream's own scale. Never from the scale that an attribution divides by.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`] and [`Error::NoPosition`] where the cache has none of them, [`Error::ChangedOnTheWay`] where a hook changed
    /// something between what it has and the logits.
    pub(crate) fn of_run(&self, view: &View) -> Result<Tensor> {
        let (out, read) = (hook::unembed_out(), hook::unembed_in());
        if view.holds(out) {
            return self.of_logits(&view.get(out)?);
        }
        let changed_after = |points: &[crate::HookPoint]| -> Result<()> {
            match points.iter().find(|point| view.cache.is_changed(**point)) {
                None => Ok(()),
                Some(changed) => Err(Error::ChangedOnTheWay { changed: changed.to_string(), needed: out.to_string() }),
            }
        };
        let reading = if view.holds(read) {
            changed_after(&[out])?;
            view.get(read)?
        } else {
            let head = [hook::head_ln_scale(), hook::head_ln_normalized()];
            changed_after(&[&[hook::ln_final_scale(), hook::ln_final_normalized()], &head[..], &[read, out]].concat())?;
            let stream = view.get(Target::Unembed.reach(view.model().config())?.stream(view.model().config()))?;
            let norm = FrozenNorm::of_stream(view.model().norm_before(Target::Unembed)?, &stream)?;
            let normalized = norm.apply(&stream)?;
            let normalized = match &norm.b {
                Some(bias) => normalized.f_add(bias)?,
                None => normalized,
            };
            match view.model().head() {
                Some(_) => widened(&view.model().through_head(normalized.f_to_kind(view.model().kind())?)?)?,
                None => normalized,
            }
        };
        Ok(self.of_reading(&reading)?.f_add(&self.b_u)?)
    }

    /// What hooks have added to the logit after the unembedding: `[batch, pos]`, of the logit that it gave.
    pub(crate) fn changed_logit(&self, view: &View, given: &Tensor) -> Result<Option<Tensor>> {
        let out = hook::unembed_out();
        match view.cache.is_changed(out) {
            true => Ok(Some(self.of_logits(&view.get(out)?)?.f_sub(given)?)),
            false => Ok(None),
        }
    }

    /// The same at some places of an axis: 0 for the batch, 1 for positions.
    pub(crate) fn narrowed(&self, axis: usize, places: &Columns) -> Result<Self> {
        let narrow = |tensor: &Tensor| -> Result<Tensor> {
            let size = tensor.size();
            if size[axis] == 1 {
                return Ok(tensor.shallow_clone()); // one for all
            }
            let tensor = match places.row_count() {
                Some(rows) if size[0] == 1 => {
                    let mut size = size.clone();
                    size[0] = rows as i64;
                    tensor.f_expand(&size, false)?
                }
                _ => tensor.shallow_clone(),
            };
            places.select(&tensor, axis as i64)
        };
        Ok(Readout {
            correct: narrow(&self.correct)?,
            wrong: self.wrong.as_ref().map(narrow).transpose()?,
            u: narrow(&self.u)?,
            b_u: narrow(&self.b_u)?,
        })
    }

    pub(crate) fn handle(&self) -> Self {
        Readout {
            correct: self.correct.shallow_clone(),
            wrong: self.wrong.as_ref().map(Tensor::shallow_clone),
            u: self.u.shallow_clone(),
            b_u: self.b_u.shallow_clone(),
        }
    }
}

/// `W_U` and `b_U` at ids of `[batch or 1, pos or 1]`: `[batch or 1, pos or 1, d_model, 1]` and `[batch or 1, pos or 1]`.
fn columns(model: &Transformer, ids: &Tensor) -> Result<(Tensor, Tensor)> {
    let (size, flat) = (ids.size(), ids.f_flatten(0, 1)?);
    let unembedding = model.unembedding()?;
    let u = widened(&unembedding.weight.f_index_select(0, &flat)?)?.f_view([size[0], size[1], -1, 1])?;
    let b_u = match &unembedding.bias {
        Some(bias) => widened(&bias.f_index_select(0, &flat)?)?.f_view(size.as_slice())?,
        None => Tensor::f_zeros(size.as_slice(), (u.f_kind()?, u.device()))?,
    };
    Ok((u, b_u))
}
