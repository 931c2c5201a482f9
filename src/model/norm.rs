//! [`Norm`]: layer norm and root-mean-square norm, with TransformerLens' two hook points within.

use tch::Tensor;

use super::parameters::module;
use super::part::Part;

use super::temporary::Temporary;
use crate::config::Normalization;
use crate::hook::HookPoint;
use crate::run::{Flow, Tap};
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::unchecked::threads::SharedTensor;
use crate::{Config, Error, Result};

/// A norm over the last axis: `normalized = (x − mean) / scale`, then `normalized · w + b`.
///
/// The scale is `√(variance + eps)`, or `√(mean square + eps)` where nothing is centred. Gain and bias are absent where they
/// are folded into the weights that read the norm. Always in fp32 or better.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) kind: Normalization,
    pub(crate) w: Option<SharedTensor>, // [d], or [head, d] where each head has its own
    pub(crate) b: Option<SharedTensor>, // [d]
    pub(crate) eps: f64,
}

module!(Norm, (gain, bias) => (Part, Part), { w: gain, b: bias } plain { kind, eps });

/// The hook points of a norm: its scale and its quotient.
pub(crate) type NormPoints = (HookPoint, HookPoint);

impl Norm {
    /// Does nothing.
    pub(crate) fn none() -> Self {
        Norm { kind: Normalization::None, w: None, b: None, eps: 0.0 }
    }

    /// Of the blocks' kind, without gain and bias.
    pub(crate) fn new(config: &Config) -> Self {
        Norm { kind: config.normalization_type(), w: None, b: None, eps: config.eps() }
    }

    /// `[…, d]` to `[…, d]`, through the two hook points.
    pub(crate) fn forward(&self, x: &Tensor, points: NormPoints, tap: &mut Tap) -> Flow<Temporary> {
        if self.kind == Normalization::None {
            return Ok(Temporary::shared(x.shallow_clone()));
        }
        let frozen = tap.plan.rules().frozen_norms;
        if !(tap.live(points.0) || tap.live(points.1)) {
            return Ok(Temporary::new(self.apply_by(x, frozen)?));
        }
        let wide = widened(x)?;
        let normalized = if self.kind.centers() && !frozen && !tap.carries(points.0, &wide) {
            // The fused kernel's quotient, with the scale beside it.
            let d = x.size().last().copied().unwrap_or(0);
            let none = None::<&Tensor>;
            let (normalized, _, rstd) = wide.f_native_layer_norm(d, none, none, self.eps)?;
            let _shown = tap.at(points.0, rstd.f_reciprocal()?)?; // […, 1]
            normalized
        } else {
            let centered = if self.kind.centers() { wide.f_sub(&mean(&wide)?)? } else { wide };
            let scale = tap.at(points.0, constant_if(frozen, rms(&centered, self.eps)?)?)?; // […, 1]
            centered.f_div(&scale)?
        };
        let normalized = Temporary::new(normalized.f_to_kind(x.f_kind()?)?).at(points.1, tap)?; // […, d]
        Ok(self.affine(normalized)?)
    }

    /// [`Norm::forward`] without hook points: libtorch's fused kernel where there is one.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        match self.kind {
            Normalization::None => Ok(x.shallow_clone()),
            Normalization::LN | Normalization::LNPre if self.w.as_ref().is_none_or(|w| w.dim() == 1) => {
                let d = x.size().last().copied().unwrap_or(0);
                Ok(x.f_layer_norm(d, self.w.as_deref(), self.b.as_deref(), self.eps, false)?)
            }
            Normalization::LN | Normalization::LNPre => {
                let d = x.size().last().copied().unwrap_or(0);
                let none = None::<&Tensor>;
                let normalized = Temporary::new(x.f_layer_norm(d, none, none, self.eps, false)?);
                Ok(self.affine(normalized)?.into_tensor())
            }
            Normalization::RMS | Normalization::RMSPre => {
                let wide = widened(x)?;
                let normalized = Temporary::new(wide.f_div(&rms(&wide, self.eps)?)?.f_to_kind(x.f_kind()?)?);
                Ok(self.affine(normalized)?.into_tensor())
            }
        }
    }

    /// [`Norm::apply`] of an input in fp32 or better, whatever the kind of the weights.
    pub(crate) fn apply_wide(&self, x: &Tensor) -> Result<Tensor> {
        let wide = |x: &Option<SharedTensor>| x.as_ref().map(|x| Ok::<_, Error>(widened(x)?.into())).transpose();
        Norm { w: wide(&self.w)?, b: wide(&self.b)?, ..self.clone() }.apply(&widened(x)?)
    }

    /// [`Norm::apply`], at a scale that is a constant for gradients if it is `frozen`.
    pub(crate) fn apply_by(&self, x: &Tensor, frozen: bool) -> Result<Tensor> {
        if !frozen || !x.requires_grad() || self.kind == Normalization::None {
            return self.apply(x);
        }
        let wide = widened(x)?;
        let centered = if self.kind.centers() { wide.f_sub(&mean(&wide)?)? } else { wide };
        let scale = rms(&centered, self.eps)?.f_detach()?;
        let normalized = Temporary::new(centered.f_div(&scale)?.f_to_kind(x.f_kind()?)?);
        // The gradient is that of the division; the value is what `apply` gives, to the last bit.
        let linear = self.affine(normalized)?.into_tensor();
        valued(&self.apply(&x.f_detach()?)?, &linear)
    }

    /// What the norm divides `x` by, in fp32 or better: `[…, 1]`.
    pub(crate) fn scale(&self, x: &Tensor) -> Result<Tensor> {
        let wide = widened(x)?;
        match self.kind.centers() {
            true => rms(&wide.f_sub(&wide.f_mean_dim([-1i64].as_slice(), true, None)?)?, self.eps),
            false => rms(&wide, self.eps),
        }
    }

    /// `normalized · w + b`.
    fn affine(&self, normalized: Temporary) -> Result<Temporary> {
        Ok(match (self.w.as_deref(), self.b.as_deref()) {
            (Some(w), Some(b)) => Temporary::new(b.f_addcmul(&normalized, w)?),
            (Some(w), None) => Temporary::new(normalized.f_mul(w)?),
            (None, Some(b)) => Temporary::new(normalized.f_add(b)?),
            (None, None) => normalized,
        })
    }
}

/// The tensor, as a constant for gradients if that is asked for.
pub(super) fn constant_if(frozen: bool, x: Tensor) -> Result<Tensor> {
    Ok(if frozen { x.f_detach()? } else { x })
}

/// A tensor with the value of `value` and the gradient of `of`.
pub(super) fn valued(value: &Tensor, of: &Tensor) -> Result<Tensor> {
    Ok(value.f_detach()?.f_add(&of.f_sub(&of.f_detach()?)?)?)
}

/// The mean over the last axis, kept.
fn mean(x: &Tensor) -> Result<Tensor> {
    Ok(x.f_mean_dim([-1i64].as_slice(), true, None)?)
}

/// `√(mean of x² + eps)` over the last axis, kept: one pass, no copy of `x`.
fn rms(x: &Tensor, eps: f64) -> Result<Tensor> {
    let d = x.size().last().copied().unwrap_or(1) as f64;
    let norm = x.norm_over(&[-1i64], true)?; // […, 1]
    Ok(norm.f_square()?.div_number(d)?.add_number(eps)?.f_sqrt()?)
}
