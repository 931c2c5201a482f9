//! [`CrossHeads`]: what the heads of a decoder's cross-attention read, of the stream and of the encoder's output.

use tch::Tensor;

use super::linear_norm::LinearNorm;
use super::node::HeadInput;
use super::part::PartNodes;
use super::reaching::in_stream;
use super::task::CircuitTask;
use crate::component::Target;
use crate::hook::{self, HookPoint};
use crate::model::placed_norm::PlacedNorm;
use crate::tensor::precision::widened;
use crate::{Error, Result};

/// The heads of a layer's cross-attention.
#[derive(Clone, Copy)]
pub(super) struct CrossHeads<'t, 'm, 'a> {
    task: &'t CircuitTask<'m, 'a>,
    layer: usize,
    n_heads: i64,
}

impl<'t, 'm, 'a> CrossHeads<'t, 'm, 'a> {
    pub(super) fn new(task: &'t CircuitTask<'m, 'a>, part: &PartNodes) -> Self {
        CrossHeads { task, layer: part.layer, n_heads: part.n as i64 }
    }

    /// The norm through which queries alone read the stream.
    fn norm(&self) -> Result<Option<PlacedNorm<'t>>> {
        let model = self.task.model.transformer();
        match in_stream(model) {
            true => Ok(None),
            false => model.norm_before(Target::CrossAttn(self.layer as i64)),
        }
    }

    /// The weights that make queries, keys or values, `[head, d_head, d_model or d_encoder]`, and their bias, `[head, d_head]`.
    fn weights(&self, input: HeadInput) -> Result<(Tensor, Option<Tensor>)> {
        let linear = self.task.model.transformer().cross_reader(self.layer, input as usize)?;
        let weight = widened(&linear.weight)?;
        let width = weight.size()[0] / self.n_heads;
        let by_head = |x: Tensor| x.f_unflatten(0, [self.n_heads, width]);
        let bias = linear.bias.as_deref().map(widened).transpose()?;
        Ok((by_head(weight)?, bias.map(by_head).transpose()?))
    }

    /// The queries of heads that read streams of their own: `[head, batch, pos, d_model]` to `[batch, pos, head, d_head]`.
    pub(super) fn queries(&self, streams: &Tensor) -> Result<Tensor> {
        let read = match self.norm()? {
            Some(norm) => norm.norm.apply_wide(streams)?,
            None => streams.shallow_clone(),
        };
        let (weight, bias) = self.weights(HeadInput::Q)?;
        let queries = Tensor::f_einsum("hbpm,hem->bphe", &[&read, &weight], None::<&[i64]>)?;
        Ok(match bias {
            Some(bias) => queries.f_add(&bias)?,
            None => queries,
        })
    }

    /// By how much keys or values differ where what they read of the encoder is ablated: `[batch, encoder_pos, head, d_head]`.
    pub(super) fn differences(&self, input: HeadInput) -> Result<Tensor> {
        let (clean, ablated) = (&self.task.clean.encoder, &self.task.ablated.encoder);
        let (Some(clean), Some(ablated)) = (clean, ablated) else {
            return Err(Error::Internal("cross-attention reads no encoder"));
        };
        let (weight, _) = self.weights(input)?;
        Ok(Tensor::f_einsum("bpm,hem->bphe", &[&ablated.f_sub(clean)?, &weight], None::<&[i64]>)?)
    }

    /// Keys or values, `[batch, encoder_pos, head, d_head]`, of which some heads' are ablated: those with a factor of one.
    pub(super) fn ablated(&self, input: HeadInput, x: &Tensor, heads: &[f64]) -> Result<Tensor> {
        let wide = widened(x)?;
        let factors = Tensor::f_from_slice(heads)?.f_to_device(x.device())?.f_to_kind(wide.f_kind()?)?;
        let changes = self.differences(input)?.f_mul(&factors.f_unsqueeze(-1)?)?;
        Ok(wide.f_add(&changes)?.f_to_kind(x.f_kind()?)?)
    }

    /// The gradients at what each head's query reads of the stream, of those at queries, `[batch, pos, head, d_head]`:
    /// `[head, batch, pos, d_model]`. `stream` is what cross-attention reads, before its norm.
    pub(super) fn at_query_inputs(&self, gradients: &Tensor, stream: &Tensor) -> Result<Tensor> {
        let (weight, _) = self.weights(HeadInput::Q)?;
        let read = Tensor::f_einsum("bphe,hem->hbpm", &[gradients, &weight], None::<&[i64]>)?;
        match LinearNorm::at(self.norm()?, stream, self.task.rules.frozen_norms)? {
            Some(norm) => norm.pull(&read),
            None => Ok(read),
        }
    }

    /// What each head's keys, or values, read of the encoder matters by this much: `[head]`, of gradients at them.
    pub(super) fn scores_of_encoder(&self, input: HeadInput, gradients: &Tensor) -> Result<Tensor> {
        let product = self.differences(input)?.f_mul(gradients)?; // [batch, encoder_pos, head, d_head]
        Ok(product.f_sum_dim_intlist([0i64, 1, 3].as_slice(), false, None)?)
    }

    /// The point at which queries read the stream.
    pub(super) fn stream(&self) -> HookPoint {
        hook::resid_mid(self.layer)
    }
}
