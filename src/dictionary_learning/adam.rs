//! [`Adam`] (Kingma & Ba 2015): tch's optimisers keep their moments to themselves, so that a training with them cannot be resumed.

use tch::Tensor;

use crate::tensor::scalar::Scalar;
use crate::Result;

/// Decay of the mean of gradients, and of their squares.
const BETAS: (f64, f64) = (0.9, 0.999);
const EPS: f64 = 1e-8;

/// A parameter, with the moments of its gradients.
#[derive(Debug)]
pub(super) struct Parameter {
    pub(super) value: Tensor,
    pub(super) mean: Tensor,
    pub(super) square: Tensor,
}

impl Parameter {
    pub(super) fn new(value: Tensor) -> Result<Self> {
        Ok(Parameter { mean: value.f_zeros_like()?, square: value.f_zeros_like()?, value })
    }

    /// The parameter as a leaf whose gradient is recorded.
    pub(super) fn leaf(&self) -> Result<Tensor> {
        Ok(self.value.f_detach()?.f_set_requires_grad(true)?)
    }

    /// Follows a gradient at this learning rate; `step` counts from 0.
    pub(super) fn follow(&mut self, gradient: &Tensor, rate: f64, step: usize) -> Result<()> {
        let seen = |beta: f64| 1.0 - beta.powf(step as f64 + 1.0);
        self.mean = self.mean.mul_number(BETAS.0)?.f_add(&gradient.mul_number(1.0 - BETAS.0)?)?;
        self.square = self.square.mul_number(BETAS.1)?.f_add(&gradient.f_square()?.mul_number(1.0 - BETAS.1)?)?;
        let spread = self.square.div_number(seen(BETAS.1))?.f_sqrt()?.add_number(EPS)?;
        let change = self.mean.mul_number(rate / seen(BETAS.0))?.f_div(&spread)?;
        self.value = self.value.f_sub(&change)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Parameter;
    use tch::Tensor;

    /// The moments are corrected for the steps that they have not seen, so the first step is the rate, whatever the gradient's size.
    #[test]
    fn the_first_step_is_the_rate() {
        let mut parameter = Parameter::new(Tensor::from_slice(&[1.0f64, 1.0])).unwrap();
        parameter.follow(&Tensor::from_slice(&[1e-3f64, -20.0]), 0.1, 0).unwrap();
        let expected = Tensor::from_slice(&[0.9f64, 1.1]);
        assert!((&parameter.value - expected).abs().max().double_value(&[]) < 1e-5);
        parameter.follow(&Tensor::from_slice(&[1e-3f64, -20.0]), 0.1, 1).unwrap();
        let expected = Tensor::from_slice(&[0.8f64, 1.2]);
        assert!((&parameter.value - expected).abs().max().double_value(&[]) < 1e-5);
    }
}
