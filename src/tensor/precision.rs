//! Kinds of numbers: sums, norms and probabilities are computed in fp32 or better, whatever the weights are.

use tch::{Kind, Tensor};

use crate::Result;

/// `kind`, or fp32 where that is narrower: fp16 and bf16 become fp32, the others stay.
pub(crate) fn at_least_float(kind: Kind) -> Kind {
    match kind {
        Kind::Half | Kind::BFloat16 => Kind::Float,
        other => other,
    }
}

/// The tensor in [`at_least_float`] of its kind: itself, where it is that already.
pub(crate) fn widened(tensor: &Tensor) -> Result<Tensor> {
    let kind = tensor.f_kind()?;
    match at_least_float(kind) {
        wide if wide == kind => Ok(tensor.shallow_clone()),
        wide => Ok(tensor.f_to_kind(wide)?),
    }
}
