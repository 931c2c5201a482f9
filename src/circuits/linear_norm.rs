//! [`LinearNorm`]: a norm's derivative at a point, from both sides.

use tch::Tensor;

use crate::model::norm::Norm;
use crate::model::placed_norm::PlacedNorm;
use crate::tensor::precision::widened;
use crate::Result;

/// The derivative of a norm at an input `x`: with `n = (x − mean) / scale`, it is
/// `dx ↦ w · (c(dx) − n · mean(n · c(dx))) / scale`, where `c` centres, or does nothing in a root-mean-square norm. At a constant scale, the
/// second term is zero.
pub(super) struct LinearNorm {
    centers: bool,
    /// `[batch, pos, 1]`
    scale: Tensor,
    /// The quotient, `[batch, pos, d]`; absent where the scale is a constant.
    quotient: Option<Tensor>,
    w: Option<Tensor>,
}

impl LinearNorm {
    /// The derivative at `x`, `[batch, pos, d]`; `None` without a norm.
    pub(super) fn at(norm: Option<PlacedNorm<'_>>, x: &Tensor, frozen: bool) -> Result<Option<Self>> {
        let Some(PlacedNorm { norm, .. }) = norm else { return Ok(None) };
        let Norm { kind, w, .. } = norm;
        let scale = norm.scale(x)?;
        let quotient = match frozen {
            true => None,
            false => Some(centered(&widened(x)?, kind.centers())?.f_div(&scale)?),
        };
        Ok(Some(LinearNorm { centers: kind.centers(), scale, quotient, w: w.as_deref().map(widened).transpose()? }))
    }

    /// What comes out of changes of the input: `[…, batch, pos, d]`.
    pub(super) fn push(&self, changes: &Tensor) -> Result<Tensor> {
        let changes = self.without_radial(&centered(changes, self.centers)?)?.f_div(&self.scale)?;
        self.gain(&changes)
    }

    /// The gradients at the input of gradients at the output: `[…, batch, pos, d]`.
    pub(super) fn pull(&self, gradients: &Tensor) -> Result<Tensor> {
        let gradients = self.without_radial(&self.gain(gradients)?)?.f_div(&self.scale)?;
        centered(&gradients, self.centers)
    }

    fn gain(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match &self.w {
            Some(w) => x.f_mul(w)?,
            None => x.shallow_clone(),
        })
    }

    /// Without what is along the quotient: a change of length alone changes nothing.
    fn without_radial(&self, x: &Tensor) -> Result<Tensor> {
        let Some(n) = &self.quotient else { return Ok(x.shallow_clone()) };
        let along = x.f_mul(n)?.f_mean_dim([-1i64].as_slice(), true, None)?;
        Ok(x.f_sub(&n.f_mul(&along)?)?)
    }
}

fn centered(x: &Tensor, centers: bool) -> Result<Tensor> {
    Ok(match centers {
        true => x.f_sub(&x.f_mean_dim([-1i64].as_slice(), true, None)?)?,
        false => x.shallow_clone(),
    })
}
