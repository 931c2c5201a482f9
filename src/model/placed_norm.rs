//! [`PlacedNorm`]: the norms of a transformer by what they stand before or after. The only place where their position is decided.

use tch::Tensor;

use super::block::Block;
use super::norm::{Norm, NormPoints};
use super::temporary::Temporary;
use super::unembed::Unembed;
use crate::config::{NormPosition, Normalization};
use crate::hook;
use crate::run::{Flow, Tap};

/// A norm, and the hook points of its scale and its quotient.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlacedNorm<'m> {
    pub(crate) norm: &'m Norm,
    pub(crate) points: NormPoints,
}

impl<'m> PlacedNorm<'m> {
    /// A norm that does something.
    pub(crate) fn new(norm: &'m Norm, points: NormPoints) -> Option<Self> {
        (norm.kind != Normalization::None).then_some(PlacedNorm { norm, points })
    }

    /// `[…, d_model]` to `[…, d_model]`, through the two hook points.
    pub(crate) fn forward(&self, x: &Tensor, tap: &mut Tap) -> Flow<Temporary> {
        self.norm.forward(x, self.points, tap)
    }
}

impl Block {
    /// The norm through which attention reads the stream.
    pub(crate) fn norm_before_attn(&self) -> Option<PlacedNorm<'_>> {
        match self.norm_position {
            NormPosition::Before | NormPosition::BeforeAndAfter => PlacedNorm::new(&self.ln1, self.ln1_points()),
            NormPosition::After | NormPosition::InStream => None,
        }
    }

    /// The norm between attention and the stream.
    pub(crate) fn norm_after_attn(&self) -> Option<PlacedNorm<'_>> {
        match self.norm_position {
            NormPosition::Before | NormPosition::InStream => None,
            NormPosition::After => PlacedNorm::new(&self.ln1, self.ln1_points()),
            NormPosition::BeforeAndAfter => {
                let points = (hook::ln1_post_scale(self.layer), hook::ln1_post_normalized(self.layer));
                PlacedNorm::new(&self.ln1_post, points)
            }
        }
    }

    /// The norm through which cross-attention reads the stream.
    pub(crate) fn norm_before_cross(&self) -> Option<PlacedNorm<'_>> {
        let cross = self.cross.as_ref()?;
        match self.norm_position {
            NormPosition::Before | NormPosition::BeforeAndAfter => PlacedNorm::new(&cross.ln, self.cross_ln_points()),
            NormPosition::After | NormPosition::InStream => None,
        }
    }

    /// The norm between cross-attention and the stream.
    pub(crate) fn norm_after_cross(&self) -> Option<PlacedNorm<'_>> {
        let cross = self.cross.as_ref()?;
        match self.norm_position {
            NormPosition::Before | NormPosition::InStream => None,
            NormPosition::After => PlacedNorm::new(&cross.ln, self.cross_ln_points()),
            NormPosition::BeforeAndAfter => {
                let layer = self.layer;
                let points = (hook::cross_ln_post_scale(layer), hook::cross_ln_post_normalized(layer));
                PlacedNorm::new(&cross.ln_post, points)
            }
        }
    }

    /// The norm of the stream after cross-attention has added to it.
    pub(crate) fn norm_of_stream_after_cross(&self) -> Option<PlacedNorm<'_>> {
        let cross = self.cross.as_ref()?;
        match self.norm_position {
            NormPosition::InStream => PlacedNorm::new(&cross.ln, self.cross_ln_points()),
            _ => None,
        }
    }

    /// The norm through which the MLP reads the stream.
    pub(crate) fn norm_before_mlp(&self) -> Option<PlacedNorm<'_>> {
        match self.norm_position {
            NormPosition::Before | NormPosition::BeforeAndAfter => PlacedNorm::new(&self.ln2, self.ln2_points()),
            NormPosition::After | NormPosition::InStream => None,
        }
    }

    /// The norm between the MLP and the stream.
    pub(crate) fn norm_after_mlp(&self) -> Option<PlacedNorm<'_>> {
        match self.norm_position {
            NormPosition::InStream => None,
            NormPosition::After => PlacedNorm::new(&self.ln2, self.ln2_points()),
            NormPosition::Before | NormPosition::BeforeAndAfter => {
                let points = (hook::ln2_post_scale(self.layer), hook::ln2_post_normalized(self.layer));
                PlacedNorm::new(&self.ln2_post, points)
            }
        }
    }

    /// The norm of the stream after attention has added to it, through which the next sublayer reads it.
    pub(crate) fn norm_of_stream_after_attn(&self) -> Option<PlacedNorm<'_>> {
        match self.norm_position {
            NormPosition::InStream => PlacedNorm::new(&self.ln1, self.ln1_points()),
            _ => None,
        }
    }

    /// The norm of the stream after the MLP has added to it.
    pub(crate) fn norm_of_stream_after_mlp(&self) -> Option<PlacedNorm<'_>> {
        match self.norm_position {
            NormPosition::InStream if self.mlp.is_some() => PlacedNorm::new(&self.ln2, self.ln2_points()),
            _ => None,
        }
    }

    /// The norm of the stream after the block has added to it.
    pub(crate) fn norm_of_stream_at_the_end(&self) -> Option<PlacedNorm<'_>> {
        match &self.mlp {
            Some(_) => self.norm_of_stream_after_mlp(),
            None => self.norm_of_stream_after_attn(),
        }
    }

    fn ln1_points(&self) -> NormPoints {
        (hook::ln1_scale(self.layer), hook::ln1_normalized(self.layer))
    }

    fn cross_ln_points(&self) -> NormPoints {
        (hook::cross_ln_scale(self.layer), hook::cross_ln_normalized(self.layer))
    }

    fn ln2_points(&self) -> NormPoints {
        (hook::ln2_scale(self.layer), hook::ln2_normalized(self.layer))
    }
}

impl Unembed {
    /// The norm through which the unembedding reads the stream.
    pub(crate) fn norm_before(&self) -> Option<PlacedNorm<'_>> {
        PlacedNorm::new(&self.ln_final, (hook::ln_final_scale(), hook::ln_final_normalized()))
    }
}
