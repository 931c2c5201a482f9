//! [`InputNormalization`]: what happens to an activation before its features are computed, and is undone after the reconstruction.

use tch::Tensor;

use crate::tensor::scalar::Scalar;
use crate::Result;

/// What happens to an activation before it is encoded, and is undone after it is reconstructed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InputNormalization {
    /// Nothing. SAELens' `expected_average_only_in` is this one, because its factor is folded into the weights.
    #[default]
    None,
    /// The mean is subtracted, and the rest divided by its standard deviation + 1e-5. The deviation is the unbiased one, as in SAELens'
    /// `layer_norm`.
    LayerNorm,
    /// Each activation is scaled to the norm `√d`: SAELens' `constant_norm_rescale`.
    ConstantNorm,
}

/// Keeps a division from one by zero: SAELens' `eps`.
const EPS: f64 = 1e-5;

/// What was done to an activation, to be undone.
pub(crate) enum Undo {
    Nothing,
    /// `x · scale + shift`, each `[…, 1]`.
    Affine {
        scale: Tensor,
        shift: Tensor,
    },
    /// `x / factor`, `[…, 1]`.
    Divide(Tensor),
}

impl InputNormalization {
    /// The normalised activation, `[…, d_in]`, and how to undo that.
    pub(crate) fn apply(self, x: &Tensor) -> Result<(Tensor, Undo)> {
        let last = [-1i64].as_slice();
        match self {
            InputNormalization::None => Ok((x.shallow_clone(), Undo::Nothing)),
            InputNormalization::LayerNorm => {
                let mean = x.f_mean_dim(last, true, None)?;
                let centered = x.f_sub(&mean)?;
                let deviation = centered.f_std_dim(last, true, true)?;
                Ok((centered.f_div(&deviation.add_number(EPS)?)?, Undo::Affine { scale: deviation, shift: mean }))
            }
            InputNormalization::ConstantNorm => {
                let d = x.size().last().copied().unwrap_or(1) as f64;
                let factor = x.norm_over(last, true)?.f_reciprocal()?.mul_number(d.sqrt())?;
                Ok((x.f_mul(&factor)?, Undo::Divide(factor)))
            }
        }
    }
}

impl Undo {
    /// A part of the reconstruction in the activation's own scale: `[…, d]`.
    pub(crate) fn scale(&self, part: Tensor) -> Result<Tensor> {
        match self {
            Undo::Nothing => Ok(part),
            Undo::Affine { scale, .. } => Ok(part.f_mul(scale)?),
            Undo::Divide(factor) => Ok(part.f_div(factor)?),
        }
    }

    /// The reconstruction in the activation's own scale.
    pub(crate) fn apply(&self, recons: Tensor) -> Result<Tensor> {
        match self {
            Undo::Nothing => Ok(recons),
            Undo::Affine { scale, shift } => Ok(recons.f_mul(scale)?.f_add(shift)?),
            Undo::Divide(factor) => Ok(recons.f_div(factor)?),
        }
    }
}
