//! Multinomial logistic regression, by Newton's method with conjugate gradients.

use tch::{Kind, Tensor};

use crate::tensor::scalar::Scalar;
use crate::{Error, Result};

/// Steps of Newton's method, of conjugate gradients in each, and halvings of a step.
const STEPS: usize = 100;
const INNER_STEPS: usize = 500;
const HALVINGS: usize = 40;
/// The largest entry of the gradient at the end.
const TOLERANCE: f64 = 1e-9;

/// The weights that minimise `mean cross entropy + l2/2 · ‖W‖²`, where the last column, the bias, is not counted in the norm.
///
/// `x` is `[example, d + 1]`, its last column one, and `y` is `[example, class]`, one where the label is; both in fp64. The result is
/// `[class, d + 1]`. The problem is convex, so the result depends on nothing else.
pub(super) fn minimum(x: &Tensor, y: &Tensor, l2: f64) -> Result<Tensor> {
    let problem = Problem::new(x, y, l2)?;
    let mut weights = Tensor::f_zeros([y.size()[1], x.size()[1]], (Kind::Double, x.device()))?;
    let mut loss = problem.loss(&weights)?;
    for _ in 0..STEPS {
        let probs = problem.probs(&weights)?;
        let gradient = problem.gradient(&weights, &probs)?;
        if gradient.f_abs()?.f_max()?.f_double_value(&[])? < TOLERANCE {
            return Ok(weights);
        }
        let step = problem.newton_step(&probs, &gradient)?;
        let slope = product(&step, &gradient)?;
        let mut share = 1.0;
        let mut halvings = 0;
        loop {
            let next = weights.f_add(&step.mul_number(share)?)?;
            let next_loss = problem.loss(&next)?;
            // Rounding hides what is gained at the very end.
            if next_loss <= loss + 1e-4 * share * slope + 1e-15 * loss.abs() {
                (weights, loss) = (next, next_loss);
                break;
            }
            halvings += 1;
            if halvings > HALVINGS {
                return Err(not_found());
            }
            share /= 2.0;
        }
    }
    Err(not_found())
}

fn not_found() -> Error {
    Error::wrong_input("the logistic probe has no minimum within reach: raise `l2`, or standardize the activations")
}

fn product(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(a.f_mul(b)?.f_sum(Kind::Double)?.f_double_value(&[])?)
}

struct Problem<'a> {
    x: &'a Tensor,
    y: &'a Tensor,
    l2: f64,
    /// `1/n` of the examples.
    share: f64,
    /// `[d + 1]`: one but for the bias.
    penalized: Tensor,
}

impl<'a> Problem<'a> {
    fn new(x: &'a Tensor, y: &'a Tensor, l2: f64) -> Result<Self> {
        let mut penalized = vec![1.0; x.size()[1] as usize];
        if let Some(bias) = penalized.last_mut() {
            *bias = 0.0;
        }
        let share = 1.0 / x.size()[0].max(1) as f64;
        Ok(Problem { x, y, l2, share, penalized: Tensor::f_from_slice(&penalized)?.f_to_device(x.device())? })
    }

    fn penalty(&self, weights: &Tensor) -> Result<Tensor> {
        weights.f_mul(&self.penalized)?.mul_number(self.l2)
    }

    fn loss(&self, weights: &Tensor) -> Result<f64> {
        let log_probs = self.x.f_matmul(&weights.f_tr()?)?.f_log_softmax(-1, Kind::Double)?; // [example, class]
        let (fit, penalty) = (product(&log_probs, self.y)?, product(weights, &self.penalty(weights)?)?);
        Ok(0.5 * penalty - self.share * fit)
    }

    fn probs(&self, weights: &Tensor) -> Result<Tensor> {
        Ok(self.x.f_matmul(&weights.f_tr()?)?.f_softmax(-1, Kind::Double)?) // [example, class]
    }

    fn gradient(&self, weights: &Tensor, probs: &Tensor) -> Result<Tensor> {
        let of_loss = probs.f_sub(self.y)?.f_tr()?.f_matmul(self.x)?.mul_number(self.share)?; // [class, d + 1]
        Ok(of_loss.f_add(&self.penalty(weights)?)?)
    }

    /// The product of the second derivative and a direction of weights.
    fn curvature(&self, probs: &Tensor, direction: &Tensor) -> Result<Tensor> {
        let moved = probs.f_mul(&self.x.f_matmul(&direction.f_tr()?)?)?; // [example, class]
        let all = moved.f_sum_dim_intlist([-1i64].as_slice(), true, None)?;
        let change = moved.f_sub(&probs.f_mul(&all)?)?;
        Ok(change.f_tr()?.f_matmul(self.x)?.mul_number(self.share)?.f_add(&self.penalty(direction)?)?)
    }

    /// The step to the minimum of the quadratic model, by conjugate gradients.
    fn newton_step(&self, probs: &Tensor, gradient: &Tensor) -> Result<Tensor> {
        let mut step = gradient.f_zeros_like()?;
        let mut residual = gradient.f_neg()?;
        let mut direction = residual.shallow_clone();
        let mut squared = product(&residual, &residual)?;
        // The closer to the minimum, the more exact the step: Newton's convergence stays faster than linear.
        let enough = squared * squared.sqrt().min(0.25);
        for _ in 0..INNER_STEPS {
            if squared <= enough {
                break;
            }
            let curved = self.curvature(probs, &direction)?;
            let curvature = product(&direction, &curved)?;
            if curvature <= 0.0 {
                break;
            }
            let along = squared / curvature;
            step = step.f_add(&direction.mul_number(along)?)?;
            residual = residual.f_sub(&curved.mul_number(along)?)?;
            let next = product(&residual, &residual)?;
            direction = residual.f_add(&direction.mul_number(next / squared)?)?;
            squared = next;
        }
        Ok(step)
    }
}
