//! [`Block`]: attention and MLP around the residual stream.

use tch::Tensor;

use super::attention::{Attention, AttentionParts};
use super::context::Context;
use super::cross::Cross;
use super::layer_embedding::LayerEmbedding;
use super::linear::Linear;
use super::mlp::Mlp;
use super::moe::MixtureOfExperts;
use super::norm::Norm;
use super::parameters::module;
use super::part::Part;
use super::temporary::Temporary;
use crate::config::{NormPosition, StreamFactors};
use crate::hook;
use crate::run::{Flow, Tap};
use crate::tensor::scalar::Scalar;
use crate::unchecked::threads::SharedTensor;

/// One block: each sublayer reads the stream and adds to it.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) ln1: Norm,
    pub(crate) attn: Attention,
    pub(crate) ln1_post: Norm,
    pub(crate) cross: Option<Cross>,
    pub(crate) ln2: Norm,
    pub(crate) mlp: Option<MlpOrExperts>,
    pub(crate) ln2_post: Norm,
    /// The embedding that the layer adds.
    pub(crate) ple: Option<LayerEmbedding>,
    /// What the stream is multiplied by once the layer has added to it: `[1]`.
    pub(crate) scalar: Option<SharedTensor>,
    /// What each of its entries is multiplied by before attention and before the MLP add to it: `[d_model]`.
    pub(crate) stream_gains: [Option<SharedTensor>; 2],
    /// What it is multiplied by before each sublayer adds to it.
    pub(crate) factors: Option<StreamFactors>,
    pub(crate) norm_position: NormPosition,
    pub(crate) parallel: bool,
    pub(crate) layer: usize,
}

module!(Block, () => (), {
    ln1: (Part::Ln1W, Part::Ln1B),
    attn: AttentionParts::OWN,
    ln1_post: (Part::Ln1PostW, Part::Ln1PostB),
    cross: (),
    ln2: (Part::Ln2W, Part::Ln2B),
    mlp: (),
    ln2_post: (Part::Ln2PostW, Part::Ln2PostB),
    ple: (),
    scalar: Part::LayerScalar,
    stream_gains: [Part::AttnStreamW, Part::MlpStreamW],
} plain { norm_position, parallel, layer, factors });

/// A block's neurons: its own, or shared out among experts.
#[derive(Clone, Debug)]
pub(crate) enum MlpOrExperts {
    Mlp(Mlp),
    Experts(Box<MixtureOfExperts>),
}

impl MlpOrExperts {
    /// The linear maps that read the stream, through the norm before them.
    pub(crate) fn readers_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            MlpOrExperts::Mlp(mlp) => std::iter::once(&mut mlp.w_in).chain(&mut mlp.gate).collect(),
            MlpOrExperts::Experts(mixture) => {
                let experts = mixture.experts.iter_mut().flat_map(|expert| [&mut expert.gate, &mut expert.w_in]);
                let shared = mixture.shared.iter_mut().flat_map(|shared| {
                    std::iter::once(&mut shared.mlp.w_in).chain(&mut shared.mlp.gate).chain(&mut shared.weight)
                });
                std::iter::once(&mut mixture.router).chain(shared).chain(experts).collect()
            }
        }
    }

    /// The linear maps that write to the stream: one, or one for each expert.
    pub(crate) fn writers(&self) -> Vec<&Linear> {
        match self {
            MlpOrExperts::Mlp(mlp) => vec![&mlp.w_out],
            MlpOrExperts::Experts(mixture) => {
                let shared = mixture.shared.iter().map(|shared| &shared.mlp.w_out);
                shared.chain(mixture.experts.iter().map(|expert| &expert.w_out)).collect()
            }
        }
    }
}

impl Block {
    /// The same weights in another layer.
    pub(crate) fn of_layer(&self, layer: usize) -> Self {
        let mut block = self.clone();
        (block.layer, block.attn.layer) = (layer, layer);
        match &mut block.mlp {
            Some(MlpOrExperts::Mlp(mlp)) => mlp.layer = layer,
            Some(MlpOrExperts::Experts(experts)) => experts.layer = layer,
            None => {}
        }
        block
    }

    /// The stream after the block: `[batch, pos, d_model]`.
    pub(crate) fn forward(&self, resid_pre: Tensor, context: &Context, tap: &mut Tap) -> Flow<Tensor> {
        let layer = self.layer;
        let resid_pre = tap.at(hook::resid_pre(layer), resid_pre)?;
        let attn_out = self.attention(&resid_pre, context, tap)?.at(hook::attn_out(layer), tap)?;
        let resid_post = match &self.mlp {
            None => attn_out.add(&resid_pre)?,
            Some(mlp) if self.parallel => {
                let mlp_out = self.mlp(mlp, &resid_pre, tap)?.at(hook::mlp_out(layer), tap)?;
                attn_out.add(&resid_pre)?.add(&mlp_out)?
            }
            Some(mlp) => {
                let resid_mid = match (self.factors, &self.stream_gains[0]) {
                    (Some(factors), _) => attn_out.add(&resid_pre.mul_number(factors.attn)?)?,
                    (None, Some(gain)) => attn_out.add(&resid_pre.f_mul(gain)?)?,
                    (None, None) => attn_out.add(&resid_pre)?,
                };
                drop(resid_pre);
                let mut stream = tap.at(hook::resid_mid(layer), resid_mid.into_tensor())?;
                let mut norm = self.norm_of_stream_after_attn();
                if let Some(cross) = &self.cross {
                    stream = self.across(cross, stream, context, tap)?;
                    norm = self.norm_of_stream_after_cross();
                }
                if let Some(norm) = norm {
                    // What the MLP reads goes past it as well.
                    let normalized = norm.forward(&self.mlp_in(&stream, tap)?, tap)?.into_tensor();
                    let mlp_out = self.neurons(mlp, &normalized, tap)?.at(hook::mlp_out(layer), tap)?;
                    mlp_out.add(&normalized)?
                } else {
                    let mlp_out = self.mlp(mlp, &stream, tap)?.at(hook::mlp_out(layer), tap)?;
                    match (self.factors, &self.stream_gains[1]) {
                        (Some(factors), _) => mlp_out.add(&stream.mul_number(factors.mlp)?)?,
                        (None, Some(gain)) => mlp_out.add(&stream.f_mul(gain)?)?,
                        (None, None) => mlp_out.add(&stream)?,
                    }
                }
            }
        };
        let resid_post = match &self.ple {
            Some(ple) => ple.forward(&resid_post, context.layer_inputs()?, tap)?.add(&resid_post)?,
            None => resid_post,
        };
        let resid_post = match &self.scalar {
            Some(scalar) => Temporary::new(resid_post.f_mul(scalar)?),
            None => resid_post,
        };
        let resid_post = tap.at(hook::resid_post(layer), resid_post.into_tensor())?;
        match self.norm_of_stream_at_the_end() {
            Some(norm) => {
                let normalized = norm.forward(&resid_post, tap)?.into_tensor();
                tap.at(hook::normalized_resid_post(layer), normalized)
            }
            None => Ok(resid_post),
        }
    }

    /// What attention adds, through its norms: `[batch, pos, d_model]`.
    fn attention(&self, resid_pre: &Tensor, context: &Context, tap: &mut Tap) -> Flow<Temporary> {
        let input = self.attention_input(resid_pre, context, tap)?;
        let out = self.attn.forward(input, context, tap)?;
        match self.norm_after_attn() {
            Some(norm) => norm.forward(&out, tap),
            None => Ok(Temporary::new(out)),
        }
    }

    /// What the MLP adds, through its norms: `[batch, pos, d_model]`.
    fn mlp(&self, mlp: &MlpOrExperts, resid: &Tensor, tap: &mut Tap) -> Flow<Temporary> {
        let input = self.mlp_in(resid, tap)?;
        let normalized = match self.norm_before_mlp() {
            Some(norm) => norm.forward(&input, tap)?.into_tensor(),
            None => input,
        };
        self.neurons(mlp, &normalized, tap)
    }

    /// The stream as the MLP reads it: `[batch, pos, d_model]`.
    fn mlp_in(&self, resid: &Tensor, tap: &mut Tap) -> Flow<Tensor> {
        let point = hook::mlp_in(self.layer);
        match tap.carries(point, resid) {
            true => tap.at(point, resid.f_alias()?), // not the stream itself, which goes past the MLP as well
            false => tap.at(point, resid.shallow_clone()),
        }
    }

    /// What the MLP adds of what it reads, through the norm after it: `[batch, pos, d_model]`.
    fn neurons(&self, mlp: &MlpOrExperts, normalized: &Tensor, tap: &mut Tap) -> Flow<Temporary> {
        let reads = hook::mlp_hook_in(self.layer);
        let normalized = match self.norm_before_mlp().is_none() && tap.carries(reads, normalized) {
            true => tap.at(reads, normalized.f_alias()?)?, // not what goes past the MLP as well
            false => tap.at(reads, normalized.shallow_clone())?,
        };
        let out = match mlp {
            // A dictionary puts something else in place of what they write, of which the shape alone is needed.
            _ if tap.plan.skips_neurons(self.layer) => {
                normalized.f_new_zeros([1], (normalized.f_kind()?, normalized.device()))?.f_expand_as(&normalized)?
            }
            MlpOrExperts::Mlp(mlp) => mlp.forward(&normalized, tap)?,
            MlpOrExperts::Experts(experts) => experts.forward(&normalized, tap)?,
        };
        let out = tap.at(hook::mlp_hook_out(self.layer), out)?;
        match self.norm_after_mlp() {
            Some(norm) => norm.forward(&out, tap),
            None if tap.live(hook::mlp_hook_out(self.layer)) => Ok(Temporary::shared(out)),
            None => Ok(Temporary::new(out)),
        }
    }
}
