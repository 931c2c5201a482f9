//! AdamW (Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization") over bare tensors.

use tch::{Kind, Tensor};

/// Decay of the mean of gradients, and of their squares.
const BETAS: (f64, f64) = (0.9, 0.99);
const EPS: f64 = 1e-8;
const WEIGHT_DECAY: f64 = 0.1;
/// Gradients longer than this, all parameters together, are shortened to it.
const MAX_NORM: f64 = 1.0;

struct Parameter {
    tensor: Tensor,
    mean: Tensor,   // of its gradients
    square: Tensor, // of their squares
}

pub struct AdamW {
    parameters: Vec<Parameter>,
    steps: i32,
}

impl AdamW {
    /// Makes the tensors require gradients.
    pub fn new(tensors: impl IntoIterator<Item = Tensor>) -> Self {
        let state = |tensor: Tensor| Parameter {
            mean: tensor.zeros_like(),
            square: tensor.zeros_like(),
            tensor: tensor.set_requires_grad(true),
        };
        AdamW { parameters: tensors.into_iter().map(state).collect(), steps: 0 }
    }

    /// Follows the gradient of the loss at this learning rate.
    pub fn step(&mut self, loss: &Tensor, rate: f64) {
        let tensors: Vec<_> = self.parameters.iter().map(|parameter| &parameter.tensor).collect();
        let gradients = Tensor::run_backward(&[loss], &tensors, false, false);
        tch::no_grad(|| self.follow(&gradients, rate));
    }

    fn follow(&mut self, gradients: &[Tensor], rate: f64) {
        self.steps += 1;
        let squares: Vec<_> = gradients.iter().map(|gradient| gradient.square().sum(Kind::Float)).collect();
        let norm = Tensor::stack(&squares, 0).sum(Kind::Float).double_value(&[]).sqrt();
        let shorten = (MAX_NORM / norm).min(1.0);
        let seen = |beta: f64| 1.0 - beta.powi(self.steps);
        for (parameter, gradient) in self.parameters.iter_mut().zip(gradients) {
            let gradient = gradient * shorten;
            let _ = parameter.mean.lerp_(&gradient, 1.0 - BETAS.0);
            let _ = parameter.square.lerp_(&gradient.square(), 1.0 - BETAS.1);
            let spread = (&parameter.square / seen(BETAS.1)).sqrt() + EPS;
            let decay = if parameter.tensor.dim() == 2 { WEIGHT_DECAY } else { 0.0 }; // matrices alone
            let _ = parameter.tensor.g_mul_scalar_(1.0 - rate * decay);
            let _ = parameter.tensor.g_sub_(&(&parameter.mean / spread * (rate / seen(BETAS.0))));
        }
    }
}
