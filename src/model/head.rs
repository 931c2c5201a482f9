//! [`Head`]: neurons between the last norm and the unembedding.

use tch::Tensor;

use super::linear::Linear;
use super::mlp::Act;
use super::norm::Norm;
use super::parameters::module;
use super::part::Part;
use super::temporary::Temporary;
use crate::Result;

/// `norm(act(x W + b))`, which the unembedding reads in place of `x` (BERT's and ModernBERT's prediction head).
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// `d_model` to `d_model`.
    pub(crate) dense: Linear,
    pub(crate) act: Act,
    pub(crate) norm: Norm,
}

module!(Head, () => (), {
    dense: (Part::HeadW, Part::HeadB),
    act: (),
    norm: (Part::HeadLnW, Part::HeadLnB),
} plain {});

impl Head {
    /// `[…, d_model]` to `[…, d_model]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.apply(&self.act.apply(Temporary::new(self.dense.forward(x)?))?)
    }
}
