//! [`EncoderContext`]: what the cross-attention of all layers of a run shares.

use std::cell::OnceCell;
use std::ops::Range;

use tch::{Kind, Tensor};

use super::context::{get_or_make, Context, FusedMask, AT_ONCE};
use super::encoder_output::EncoderOutput;
use crate::tensor::scalar::Scalar;
use crate::Result;

/// An encoder's output, and what queries see of it: all but padding.
pub(super) struct EncoderContext<'r> {
    pub(super) output: &'r EncoderOutput,
    fused: OnceCell<FusedMask>,
    /// Zero, and −∞ at padding: `[batch, 1, 1, encoder_pos]`.
    scores: OnceCell<Tensor>,
}

impl<'r> EncoderContext<'r> {
    pub(super) fn new(output: &'r EncoderOutput) -> Self {
        EncoderContext { output, fused: OnceCell::new(), scores: OnceCell::new() }
    }

    fn keys(&self) -> Range<i64> {
        0..self.output.positions()
    }

    /// What is added to scores where these are formed: `[batch, 1, 1, encoder_pos]`.
    pub(super) fn scores_mask(&self, kind: Kind) -> Result<Option<&Tensor>> {
        let Some(real) = self.output.mask() else { return Ok(None) };
        let make = || -> Result<Tensor> {
            let hidden = real.f_logical_not()?.f_unsqueeze(1)?.f_unsqueeze(1)?;
            Tensor::f_zeros(hidden.size(), (kind, hidden.device()))?.fill_where(&hidden, f64::NEG_INFINITY)
        };
        get_or_make(&self.scores, make).map(Some)
    }

    /// How libtorch's kernel learns what each query sees.
    pub(super) fn fused_mask(&self, context: &Context) -> Result<&FusedMask> {
        get_or_make(&self.fused, || {
            let Some(mask) = self.scores_mask(context.options.0)? else { return Ok(FusedMask::All(self.keys())) };
            let queries = 0..context.layout.span.new as i64;
            if context.layout.batch * queries.end * self.output.positions() > AT_ONCE {
                return Ok(FusedMask::InBlocks);
            }
            Ok(FusedMask::Additive(self.keys(), self.for_queries(mask, context, &queries)?))
        })
    }

    /// All keys, and what is added to the scores of some queries.
    pub(super) fn block(&self, context: &Context, queries: &Range<i64>) -> Result<(Range<i64>, Tensor)> {
        let added = match self.scores_mask(context.options.0)? {
            Some(mask) => self.for_queries(mask, context, queries)?,
            None => Tensor::f_zeros([1, 1, 1, self.output.positions()], context.options)?,
        };
        Ok((self.keys(), added))
    }

    /// The mask with rows of zeros for queries that are padding: `[batch, 1, query or 1, encoder_pos]`.
    fn for_queries(&self, mask: &Tensor, context: &Context, queries: &Range<i64>) -> Result<Tensor> {
        if context.padding.is_none() {
            return Ok(mask.shallow_clone());
        }
        let mut size = mask.size();
        size[2] = queries.end - queries.start;
        context.opened(mask.f_expand(size, false)?.f_contiguous()?, queries)
    }
}
