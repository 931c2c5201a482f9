//! What a dictionary is trained for: little error, few features.

use tch::{Kind, Tensor};

use super::options::Sparsity;
use crate::tensor::scalar::Scalar;
use crate::Result;

/// The width of the kernel through which thresholds get gradients.
const BANDWIDTH: f64 = 0.05;
/// How much the error of dead features counts.
const AUXILIARY: f64 = 1.0 / 32.0;

/// The parameters in one step, as leaves.
pub(super) struct Leaves {
    pub(super) w_enc: Tensor,     // [feature, d_in]
    pub(super) b_enc: Tensor,     // [feature]
    pub(super) w_dec: Tensor,     // [feature, d_out]
    pub(super) b_dec: Tensor,     // [d_out]
    pub(super) threshold: Tensor, // [feature], its logarithm
}

/// What came of one batch.
pub(super) struct Outcome {
    pub(super) loss: Tensor,
    /// The share of the variance that is not explained.
    pub(super) unexplained: Tensor,
    pub(super) acts: Tensor, // [row, feature]
}

/// The loss of a batch: `x` is `[row, d_in]`, `y` is `[row, d_out]`; `dead` is `[feature]`, bool.
pub(super) fn objective(
    leaves: &Leaves,
    x: &Tensor,
    y: &Tensor,
    sparsity: Sparsity,
    penalty: f64,
    dead: Option<(&Tensor, usize)>,
) -> Result<Outcome> {
    let pre = x.f_linear(&leaves.w_enc, Some(&leaves.b_enc))?; // [row, feature]
    let (acts, penalised) = match sparsity {
        Sparsity::TopK(k) => (kept(&pre.f_relu()?, k, -1)?, None),
        Sparsity::BatchTopK(k) => {
            let rows = pre.size().first().copied().unwrap_or(0) as usize;
            let flat = pre.f_relu()?.f_reshape([1, -1])?;
            (kept(&flat, k * rows, -1)?.f_reshape(pre.size())?, None)
        }
        Sparsity::JumpRelu { coefficient } => {
            let (acts, count) = jump_relu(&pre, &leaves.threshold.f_exp()?)?;
            (acts, Some(count.mul_number(coefficient * penalty)?))
        }
    };
    let error = y.f_sub(&acts.f_matmul(&leaves.w_dec)?.f_add(&leaves.b_dec)?)?; // [row, d_out]
    let mean_square = |x: &Tensor| -> Result<Tensor> { Ok(x.f_square()?.f_mean(Kind::Float)?) };
    let spread = y.f_sub(&y.f_mean_dim([0i64].as_slice(), true, None)?)?;
    let unexplained = mean_square(&error)?.f_div(&mean_square(&spread)?)?;
    let mut loss = unexplained.shallow_clone();
    if let Some(penalised) = penalised {
        loss = loss.f_add(&penalised)?;
    }
    if let Some((dead, k)) = dead {
        // Dead features reconstruct what the others leave over.
        let among_dead = pre.f_relu()?.f_mul(dead)?;
        let second = kept(&among_dead, k, -1)?.f_matmul(&leaves.w_dec)?;
        let left = error.f_detach()?;
        let of_dead = mean_square(&left.f_sub(&second)?)?.f_div(&mean_square(&left)?.at_least(1e-12)?)?;
        loss = loss.f_add(&of_dead.mul_number(AUXILIARY)?)?;
    }
    Ok(Outcome { loss, unexplained: unexplained.f_detach()?, acts: acts.f_detach()? })
}

/// The `k` largest entries along a dimension, zeros elsewhere.
fn kept(acts: &Tensor, k: usize, dim: i64) -> Result<Tensor> {
    let n = acts.size().last().copied().unwrap_or(0);
    let (values, places) = acts.f_topk((k as i64).min(n), dim, true, false)?;
    Ok(acts.f_zeros_like()?.f_scatter(dim, &places, &values)?)
}

/// `z · [z > θ]` and the mean number of active features, with the straight-through gradients of Rajamanoharan et al. 2024: with the kernel
/// `K(u) = [|u| < ½]` and its width `ε`, `∂/∂θ (z · [z > θ]) = −θ/ε K((z − θ)/ε)` and `∂/∂θ [z > θ] = −1/ε K((z − θ)/ε)`.
fn jump_relu(pre: &Tensor, threshold: &Tensor) -> Result<(Tensor, Tensor)> {
    let relu = pre.f_relu()?;
    let (z, fixed) = (relu.f_detach()?, threshold.f_detach()?);
    let open = z.f_gt_tensor(&fixed)?.f_to_kind(Kind::Float)?;
    let near = z.f_sub(&fixed)?.f_abs()?.gt_number(BANDWIDTH / 2.0)?.f_logical_not()?;
    let slope = near.f_to_kind(Kind::Float)?.div_number(BANDWIDTH)?; // [row, feature]
    let zero_valued = |x: Tensor| -> Result<Tensor> { Ok(x.f_sub(&x.f_detach()?)?) };
    let acts = relu.f_mul(&open)?.f_sub(&zero_valued(slope.f_mul(&fixed)?.f_mul(threshold)?)?)?;
    let count = open.f_sub(&zero_valued(slope.f_mul(threshold)?)?)?;
    let rows = pre.size().first().copied().unwrap_or(1).max(1) as f64;
    Ok((acts, count.f_sum(Kind::Float)?.div_number(rows)?))
}
