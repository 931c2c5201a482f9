//! [`Unembed`]: from the residual stream to logits.

use tch::Tensor;

use super::head::Head;
use super::linear::Linear;
use super::norm::Norm;
use super::parameters::module;
use super::part::Part;
use crate::hook;
use crate::run::{Flow, Tap};
use crate::tensor::scalar::Scalar;
use crate::{Error, Result};

/// The last norm, the neurons of a prediction head where there are any, and the product with `W_U`.
#[derive(Clone, Debug)]
pub(crate) struct Unembed {
    pub(crate) ln_final: Norm,
    pub(crate) head: Option<Head>,
    /// `d_unembed` to `d_vocab_out`; absent in an encoder, whose output is what it would read.
    pub(crate) u: Option<Linear>,
    pub(crate) soft_cap: Option<f64>,
}

module!(Unembed, () => (), {
    ln_final: (Part::LnFinalW, Part::LnFinalB),
    head: (),
    u: (Part::U, Part::UB),
} plain { soft_cap });

impl Unembed {
    /// `[batch, pos, d_model]` to `[batch, pos, d_vocab_out]`; in an encoder to its output, `[batch, pos, d_model]`.
    pub(crate) fn forward(&self, resid: &Tensor, tap: &mut Tap) -> Flow<Tensor> {
        let points = (hook::ln_final_scale(), hook::ln_final_normalized());
        let normalized = self.ln_final.forward(resid, points, tap)?.into_tensor();
        let read = match &self.head {
            Some(head) => head.forward(&normalized, tap)?,
            None => normalized,
        };
        let read = tap.at(hook::unembed_in(), read)?; // [batch, pos, d_unembed]
        let Some(u) = &self.u else { return Ok(read) };
        let logits = u.forward(&read)?;
        let logits = tap.at(hook::unembed_out(), logits)?; // [batch, pos, d_vocab_out]
        Ok(self.cap(logits)?)
    }

    /// The product with `W_U`.
    ///
    /// # Errors
    ///
    /// [`Error::ModelHasNo`] of an encoder.
    pub(crate) fn matrix(&self) -> Result<&Linear> {
        self.u
            .as_ref()
            .ok_or_else(|| Error::model_has_no("unembedding", "it is an encoder, which ends with its stream"))
    }

    /// Logits of a stream that no hook point shows, as if the model ended there: `[…, d_model]` to `[…, d_vocab_out]`.
    pub(crate) fn read(&self, resid: &Tensor) -> Result<Tensor> {
        self.cap(self.matrix()?.forward(&self.through_head(self.ln_final.apply(resid)?)?)?)
    }

    /// What `W_U` reads of what the last norm gives: `[…, d_unembed]`.
    pub(crate) fn through_head(&self, normalized: Tensor) -> Result<Tensor> {
        match &self.head {
            Some(head) => head.apply(&normalized),
            None => Ok(normalized),
        }
    }

    /// Logits squashed to the cap, where the model has one (Gemma 2).
    pub(crate) fn cap(&self, logits: Tensor) -> Result<Tensor> {
        Ok(match self.soft_cap {
            Some(cap) => logits.div_number(cap)?.f_tanh()?.mul_number(cap)?,
            None => logits,
        })
    }
}
