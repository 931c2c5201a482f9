//! [`Scalar`]: operations of a tensor with a number.
//!
//! The crate uses only these: tch's own functions panic when such an operation fails (see `unchecked::scalar`).

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::unchecked::scalar;
use crate::Result;

/// Operations of a tensor with a number, which is converted to the tensor's kind, like a Python number.
pub(crate) trait Scalar {
    /// `self + number`
    fn add_number(&self, number: f64) -> Result<Tensor>;
    /// `self · number`
    fn mul_number(&self, number: f64) -> Result<Tensor>;
    /// `self / number`
    fn div_number(&self, number: f64) -> Result<Tensor>;
    /// `max(self, low)`
    fn at_least(&self, low: f64) -> Result<Tensor>;
    /// `min(self, high)`
    fn at_most(&self, high: f64) -> Result<Tensor>;
    /// `min(max(self, low), high)`
    fn between(&self, low: f64, high: f64) -> Result<Tensor>;
    /// `self == number` for integers, as bools.
    fn eq_int(&self, number: i64) -> Result<Tensor>;
    /// `self + number` for integers.
    fn add_int(&self, number: i64) -> Result<Tensor>;
    /// `self · number` for integers.
    fn mul_int(&self, number: i64) -> Result<Tensor>;
    /// `max(self, low)` for integers.
    fn at_least_int(&self, low: i64) -> Result<Tensor>;
    /// `self > number`, as bools.
    fn gt_number(&self, number: f64) -> Result<Tensor>;
    /// `self` with `number` in the entries where `mask` is true.
    fn fill_where(&self, mask: &Tensor, number: f64) -> Result<Tensor>;
    /// `beta self + alpha (left right)` for batches of matrices: `[batch, n, k]` by `[batch, k, m]`.
    fn add_product(&self, left: &Tensor, right: &Tensor, beta: f64, alpha: f64) -> Result<Tensor>;
    /// The Euclidean norm over the dimensions `dims`.
    fn norm_over(&self, dims: &[i64], keep: bool) -> Result<Tensor>;
    /// The norm of order `p` over the dimensions `dims`.
    fn p_norm_over(&self, p: f64, dims: &[i64], keep: bool) -> Result<Tensor>;
}

impl Scalar for Tensor {
    fn add_number(&self, number: f64) -> Result<Tensor> {
        Ok(scalar::add(self, number)?)
    }

    fn mul_number(&self, number: f64) -> Result<Tensor> {
        Ok(scalar::mul(self, number)?)
    }

    fn div_number(&self, number: f64) -> Result<Tensor> {
        Ok(scalar::div(self, number)?)
    }

    fn at_least(&self, low: f64) -> Result<Tensor> {
        Ok(scalar::clamp_min(self, low)?)
    }

    fn at_most(&self, high: f64) -> Result<Tensor> {
        Ok(scalar::clamp_max(self, high)?)
    }

    fn between(&self, low: f64, high: f64) -> Result<Tensor> {
        Ok(scalar::clamp(self, low, high)?)
    }

    fn eq_int(&self, number: i64) -> Result<Tensor> {
        Ok(scalar::eq_int(self, number)?)
    }

    fn add_int(&self, number: i64) -> Result<Tensor> {
        Ok(scalar::add_int(self, number)?)
    }

    fn mul_int(&self, number: i64) -> Result<Tensor> {
        Ok(scalar::mul_int(self, number)?)
    }

    fn at_least_int(&self, low: i64) -> Result<Tensor> {
        Ok(scalar::clamp_min_int(self, low)?)
    }

    fn gt_number(&self, number: f64) -> Result<Tensor> {
        Ok(scalar::gt(self, number)?)
    }

    fn fill_where(&self, mask: &Tensor, number: f64) -> Result<Tensor> {
        Ok(scalar::masked_fill(self, mask, number)?)
    }

    fn add_product(&self, left: &Tensor, right: &Tensor, beta: f64, alpha: f64) -> Result<Tensor> {
        Ok(scalar::baddbmm(self, left, right, beta, alpha)?)
    }

    fn norm_over(&self, dims: &[i64], keep: bool) -> Result<Tensor> {
        self.p_norm_over(2.0, dims, keep)
    }

    fn p_norm_over(&self, p: f64, dims: &[i64], keep: bool) -> Result<Tensor> {
        Ok(scalar::norm(self, p, dims, keep)?)
    }
}

/// A tensor of the given shape with all entries equal to `number`.
pub(crate) fn full(shape: &[i64], number: f64, options: (Kind, Device)) -> Result<Tensor> {
    let empty = Tensor::f_empty(shape, options)?;
    Ok(scalar::fill(&empty, number)?)
}

/// The integers of `range`, as int64: `[range.len()]`.
pub(crate) fn arange(range: Range<i64>, device: Device) -> Result<Tensor> {
    let numbers: Vec<i64> = range.collect();
    Ok(Tensor::f_from_slice(&numbers)?.f_to_device(device)?)
}
