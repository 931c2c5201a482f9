//! [`Head`]: neurons between the last norm and the unembedding.

use tch::Tensor;

use super::linear::Linear;
use super::mlp::Act;
use super::norm::{Norm, NormPoints};
use super::parameters::module;
use super::part::Part;
use super::placed_norm::PlacedNorm;
use super::temporary::Temporary;
use crate::hook;
use crate::run::{Flow, Tap};
use crate::Result;

/// `norm(act(x W + b))`, which the unembedding reads in place of `x` (BERT's and ModernBERT's prediction head).
#[derive(Clone, Debug)]
pub(crate) struct Head {
    /// `d_model` to `d_unembed`.
    pub(crate) dense: Linear,
    pub(crate) act: Act,
    /// Does nothing in the head of a classifier.
    pub(crate) norm: Norm,
}

module!(Head, () => (), {
    dense: (Part::HeadW, Part::HeadB),
    act: (),
    norm: (Part::HeadLnW, Part::HeadLnB),
} plain {});

impl Head {
    /// `[…, d_model]` to `[…, d_unembed]`, through the hook points of the norm.
    pub(crate) fn forward(&self, x: &Tensor, tap: &mut Tap) -> Flow<Tensor> {
        let post = self.act.apply_by(Temporary::new(self.dense.forward(x)?), tap.plan.rules())?;
        Ok(self.norm.forward(&post, HEAD_LN_POINTS, tap)?.into_tensor())
    }

    /// [`Head::forward`] without hook points.
    pub(crate) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.apply(&self.act.apply(Temporary::new(self.dense.forward(x)?))?)
    }

    /// The norm between the neurons and the unembedding.
    pub(crate) fn norm_before_unembed(&self) -> Option<PlacedNorm<'_>> {
        PlacedNorm::new(&self.norm, HEAD_LN_POINTS)
    }
}

const HEAD_LN_POINTS: NormPoints = (hook::head_ln_scale(), hook::head_ln_normalized());
