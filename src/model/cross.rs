//! [`Cross`]: a decoder layer's attention to the output of an encoder, between self-attention and MLP.

use tch::Tensor;

use super::attention::{Attention, AttentionParts};
use super::attention_input::AttentionInput;
use super::block::Block;
use super::context::Context;
use super::norm::Norm;
use super::parameters::module;
use super::part::Part;
use crate::hook;
use crate::run::{Flow, Tap};

/// Cross-attention, with its norms.
#[derive(Clone, Debug)]
pub(crate) struct Cross {
    pub(crate) ln: Norm,
    pub(crate) attn: Attention,
    pub(crate) ln_post: Norm,
}

module!(Cross, () => (), {
    ln: (Part::CrossLnW, Part::CrossLnB),
    attn: AttentionParts::CROSS,
    ln_post: (Part::CrossLnPostW, Part::CrossLnPostB),
} plain {});

impl Block {
    /// The stream after cross-attention, before any norm of the stream itself: `[batch, pos, d_model]`.
    pub(super) fn across(&self, cross: &Cross, resid_mid: Tensor, context: &Context, tap: &mut Tap) -> Flow<Tensor> {
        let layer = self.layer;
        let point = hook::cross_attn_in(layer);
        let input = match tap.carries(point, &resid_mid) {
            true => tap.at(point, resid_mid.f_alias()?)?, // not the stream itself, which goes past cross-attention as well
            false => tap.at(point, resid_mid.shallow_clone())?,
        };
        // Through a norm of the stream itself, what cross-attention reads goes past it as well.
        let (normalized, stream) = match (self.norm_before_cross(), self.norm_of_stream_after_attn()) {
            (Some(norm), _) => (norm.forward(&input, tap)?.into_tensor(), resid_mid),
            (None, Some(norm)) => {
                let normalized = norm.forward(&input, tap)?.into_tensor();
                (normalized.shallow_clone(), normalized)
            }
            (None, None) => (input, resid_mid),
        };
        let out = cross.attn.forward(AttentionInput::Shared(normalized), context, tap)?;
        let out = match self.norm_after_cross() {
            Some(norm) => norm.forward(&out, tap)?,
            None => super::temporary::Temporary::new(out),
        };
        let out = out.at(hook::cross_attn_out(layer), tap)?;
        tap.at(hook::resid_mid_cross(layer), out.add(&stream)?.into_tensor())
    }
}
