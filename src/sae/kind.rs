//! [`FeatureActivation`]: how features follow from their pre-activations.

use std::fmt;

/// How the activations of a dictionary's features follow from their pre-activations.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum FeatureActivation {
    /// `max(pre, 0)`.
    Relu,
    /// `tanh(max(pre, 0))`.
    TanhRelu,
    /// `max(pre, 0)` where `pre > threshold`, else 0 (Rajamanoharan et al. 2024, "Jumping Ahead"). BatchTopK and Matryoshka dictionaries
    /// are of this kind once they are trained.
    JumpRelu,
    /// The `k` largest pre-activations of each position, as far as they are positive (Gao et al. 2024, "Scaling and evaluating sparse
    /// autoencoders").
    TopK(usize),
    /// The `k` pre-activations of each position whose absolute values are largest, with their signs.
    AbsTopK(usize),
    /// The `k · n` largest pre-activations of all `n` positions together, as far as they are positive (Bussmann et al. 2024, "BatchTopK").
    BatchTopK(f64),
    /// The largest of each of `k` groups of neighbouring pre-activations, as far as it is positive (EleutherAI's sparsify).
    GroupMax(usize),
    /// `max(pre, 0)` where a second pre-activation, the gate, is positive (Rajamanoharan et al. 2024, "Gated SAEs"). Gate and magnitude
    /// share the encoder: `pre = exp(r_mag) ⊙ (x W_encᵀ) + b_mag`, `gate = x W_encᵀ + b_gate`.
    Gated,
}

impl FeatureActivation {
    /// How many features of a position are active at most, where the kind says so.
    pub(crate) fn most_active(self) -> Option<usize> {
        match self {
            FeatureActivation::TopK(k) | FeatureActivation::AbsTopK(k) | FeatureActivation::GroupMax(k) => Some(k),
            _ => None,
        }
    }
}

impl fmt::Display for FeatureActivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FeatureActivation::Relu => f.write_str("ReLU"),
            FeatureActivation::TanhRelu => f.write_str("tanh-ReLU"),
            FeatureActivation::JumpRelu => f.write_str("JumpReLU"),
            FeatureActivation::TopK(k) => write!(f, "TopK {k}"),
            FeatureActivation::AbsTopK(k) => write!(f, "AbsTopK {k}"),
            FeatureActivation::BatchTopK(k) => write!(f, "BatchTopK {k}"),
            FeatureActivation::GroupMax(k) => write!(f, "GroupMax {k}"),
            FeatureActivation::Gated => f.write_str("gated"),
        }
    }
}
