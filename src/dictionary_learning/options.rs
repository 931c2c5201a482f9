//! [`TrainerOptions`]: what a dictionary is trained to do, and how.

use crate::{Error, Result};

/// What makes a dictionary sparse.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Sparsity {
    /// The `k` largest pre-activations of each position (Gao et al. 2024).
    TopK(usize),
    /// `k` pre-activations of each position on average over a batch (Bussmann et al. 2024). The trained dictionary is a JumpReLU one, with
    /// the smallest activation that was kept, on average, as the threshold of all features.
    BatchTopK(usize),
    /// A threshold of each feature that is learned, with a penalty of `coefficient` for each active feature (Rajamanoharan et al. 2024).
    JumpRelu {
        /// The weight of the number of active features, once the warm-up is over.
        coefficient: f64,
    },
}

/// What a dictionary is trained to do, and how.
#[derive(Clone, Debug)]
pub struct TrainerOptions {
    pub(super) d_sae: usize,
    pub(super) sparsity: Sparsity,
    pub(super) steps: usize,
    pub(super) rate: f64,
    pub(super) warm_up: usize,
    pub(super) seed: u64,
    pub(super) dead_after: usize,
    pub(super) auxiliary: usize,
}

impl TrainerOptions {
    /// A dictionary of so many features. 1,000 steps at a learning rate of 1e-3, 50 of them to warm up.
    pub fn new(d_sae: usize, sparsity: Sparsity) -> Self {
        TrainerOptions {
            d_sae,
            sparsity,
            steps: 1000,
            rate: 1e-3,
            warm_up: 50,
            seed: 0,
            dead_after: 200,
            auxiliary: (d_sae / 8).max(1),
        }
    }

    /// How many steps there will be. The learning rate falls to zero in the last fifth of them.
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// The highest learning rate.
    pub fn rate(mut self, rate: f64) -> Self {
        self.rate = rate;
        self
    }

    /// The steps in which the learning rate, and a JumpReLU dictionary's penalty, rise from zero.
    pub fn warm_up(mut self, steps: usize) -> Self {
        self.warm_up = steps;
        self
    }

    /// The seed of the fresh weights. Equal seeds and batches give equal dictionaries on the same machine.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// A feature that was not active for so many steps counts as dead.
    pub fn dead_after(mut self, steps: usize) -> Self {
        self.dead_after = steps;
        self
    }

    /// How many dead features reconstruct the error of the others, so that they learn again (Gao et al. 2024, AuxK); 0 for none. It is
    /// an eighth of the features by default, and has no effect on a JumpReLU dictionary, whose thresholds have gradients.
    pub fn auxiliary(mut self, k: usize) -> Self {
        self.auxiliary = k;
        self
    }

    /// That the numbers can be used.
    pub(super) fn check(&self) -> Result<()> {
        let refuse = |name, value: String, rule: &str| Err(Error::option_value(name, value, rule));
        if self.d_sae < 1 {
            return refuse("d_sae", self.d_sae.to_string(), "a dictionary needs at least one feature");
        }
        if self.steps < 1 {
            return refuse("steps", self.steps.to_string(), "there must be at least one step");
        }
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return refuse("rate", self.rate.to_string(), "it must be a positive number");
        }
        match self.sparsity {
            Sparsity::TopK(k) | Sparsity::BatchTopK(k) if k < 1 || k > self.d_sae => {
                refuse("k", k.to_string(), "it must be at least 1 and at most the number of features")
            }
            Sparsity::JumpRelu { coefficient } if !(coefficient >= 0.0 && coefficient.is_finite()) => {
                refuse("coefficient", coefficient.to_string(), "it must be 0 or a positive number")
            }
            _ => Ok(()),
        }
    }

    /// The learning rate of a step: up in a line, down in a line in the last fifth.
    pub(super) fn rate_at(&self, step: usize) -> f64 {
        let (step, steps) = (step as f64, self.steps as f64);
        let up = if self.warm_up == 0 { 1.0 } else { (step + 1.0) / self.warm_up as f64 };
        let down = (steps - step) / (0.2 * steps);
        self.rate * up.min(1.0) * down.clamp(0.0, 1.0)
    }

    /// How much of a penalty counts at a step.
    pub(super) fn penalty_at(&self, step: usize) -> f64 {
        if self.warm_up == 0 {
            1.0
        } else {
            ((step + 1) as f64 / self.warm_up as f64).min(1.0)
        }
    }
}
