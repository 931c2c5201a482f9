//! [`Differential`]: attention in which the values of one pattern are taken from those of another.

use tch::Tensor;

use super::norm::Norm;
use super::parameters::module;
use super::part::Part;
use crate::config::Normalization;
use crate::tensor::scalar::Scalar;
use crate::unchecked::threads::SharedTensor;
use crate::{Config, Result};

/// What becomes of the values that heads have mixed (Ye et al. 2024, "Differential Transformer"): `(1 − s) norm(z₁ − λ z₂)`, where a
/// head of the first half has mixed `z₁` and its partner of the second half `z₂`, each of twice a head's width.
///
/// `λ = exp(λ_q1 · λ_k1) − exp(λ_q2 · λ_k2) + s`, and `s = 0.8 − 0.6 exp(−0.3 layer)`.
#[derive(Clone, Debug)]
pub(crate) struct Differential {
    /// `λ_q1`, `λ_k1`, `λ_q2` and `λ_k2`: `[d_head]` each.
    pub(crate) lambdas: [SharedTensor; 4],
    start: f64,
    eps: f64,
}

module!(Differential, () => (), {
    lambdas: [Part::LambdaQ1, Part::LambdaK1, Part::LambdaQ2, Part::LambdaK2],
} plain { start, eps });

impl Differential {
    pub(crate) fn new(config: &Config, layer: usize, lambdas: [SharedTensor; 4]) -> Self {
        Differential { lambdas, start: 0.8 - 0.6 * (-0.3 * layer as f64).exp(), eps: config.eps() }
    }

    /// The values that heads mix: those of a head of the first half beside those of its partner. `[batch, kv_head, key, d_head]` to
    /// `[batch, kv_head, key, 2 d_head]`.
    pub(crate) fn values(&self, v: &Tensor) -> Result<Tensor> {
        let half = v.size()[1] / 2;
        let both = |start| v.f_narrow(1, start, half)?.f_repeat([1, 2, 1, 1]);
        Ok(Tensor::f_cat(&[both(0)?, both(half)?], -1)?)
    }

    /// What `W_O` reads: `[batch, pos, head, 2 d_head]` to `[batch, pos, head, d_head]`. The heads of a pair are its two halves.
    pub(crate) fn difference(&self, z: &Tensor) -> Result<Tensor> {
        let size = z.size();
        let half = size[2] / 2;
        let (first, second) = (z.f_narrow(2, 0, half)?, z.f_narrow(2, half, half)?); // each [batch, pos, pair, 2 d_head]
        let difference = first.f_sub(&second.f_mul(&self.lambda()?)?)?;
        let norm = Norm { kind: Normalization::RMSPre, w: None, b: None, eps: self.eps };
        let normalized = norm.apply(&difference)?.mul_number(1.0 - self.start)?;
        Ok(normalized.f_reshape([size[0], size[1], size[2], size[3] / 2])?)
    }

    /// One pattern for each pair of heads, at the scale that the norm has for these mixed values, so that `W_O` reads
    /// `pattern · v` of either head of the pair: from the pattern of all heads, `[head, query, key]`, and the values that they mix,
    /// `[head, key, 2 d_head]`, to `[head / 2, query, key]`.
    pub(crate) fn joint_pattern(&self, pattern: &Tensor, values: &Tensor) -> Result<Tensor> {
        let half = pattern.size()[0] / 2;
        let second = pattern.f_narrow(0, half, half)?.f_mul(&self.lambda()?)?;
        let joint = pattern.f_narrow(0, 0, half)?.f_sub(&second)?; // [pair, query, key]
        let mixed = joint.f_matmul(&values.f_narrow(0, 0, half)?)?; // [pair, query, 2 d_head]
        let norm = Norm { kind: Normalization::RMSPre, w: None, b: None, eps: self.eps };
        joint.f_div(&norm.scale(&mixed)?)?.mul_number(1.0 - self.start)
    }

    /// What the second pattern counts: a tensor of one entry.
    fn lambda(&self) -> Result<Tensor> {
        let [q1, k1, q2, k2] = &self.lambdas;
        let exp = |q: &Tensor, k: &Tensor| -> Result<Tensor> { Ok(q.f_mul(k)?.f_sum(q.f_kind()?)?.f_exp()?) };
        exp(q1, k1)?.f_sub(&exp(q2, k2)?)?.add_number(self.start)
    }
}
