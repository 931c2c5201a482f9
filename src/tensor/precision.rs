//! Precision: sums, norms and probabilities are computed in fp32 or fp64, whatever the kind of the weights.

use tch::{Kind, Tensor};

use crate::Result;

/// The kind to compute in: fp32 for fp16 and bf16, otherwise `kind` itself.
pub(crate) fn at_least_float(kind: Kind) -> Kind {
    match kind {
        Kind::Half | Kind::BFloat16 => Kind::Float,
        other => other,
    }
}

/// The tensor in the kind [`at_least_float`] of its kind. It is not copied if it has that kind.
pub(crate) fn widened(tensor: &Tensor) -> Result<Tensor> {
    let kind = tensor.f_kind()?;
    match at_least_float(kind) {
        wide if wide == kind => Ok(tensor.shallow_clone()),
        wide => Ok(tensor.f_to_kind(wide)?),
    }
}
