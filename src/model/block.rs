//! [`Block`]: attention and MLP around the residual stream.

use tch::Tensor;

use super::attention::{Attention, AttentionInput};
use super::context::Context;
use super::mlp::Mlp;
use super::moe::MixtureOfExperts;
use super::norm::Norm;
use super::parameters::module;
use super::part::Part;
use crate::config::NormPosition;
use crate::hook;
use crate::run::{Flow, Tap};
use crate::Result;

/// One block: each sublayer reads the stream and adds to it.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) ln1: Norm,
    pub(crate) attn: Attention,
    pub(crate) ln1_post: Norm,
    pub(crate) ln2: Norm,
    pub(crate) mlp: Option<MlpOrExperts>,
    pub(crate) ln2_post: Norm,
    pub(crate) norm_position: NormPosition,
    pub(crate) parallel: bool,
    pub(crate) layer: usize,
}

module!(Block, () => (), {
    ln1: (Part::Ln1W, Part::Ln1B),
    attn: (),
    ln1_post: (Part::Ln1PostW, Part::Ln1PostB),
    ln2: (Part::Ln2W, Part::Ln2B),
    mlp: (),
    ln2_post: (Part::Ln2PostW, Part::Ln2PostB),
} plain { norm_position, parallel, layer });

/// A block's neurons: its own, or shared out among experts.
#[derive(Clone, Debug)]
pub(crate) enum MlpOrExperts {
    Mlp(Mlp),
    Experts(MixtureOfExperts),
}

impl Block {
    /// The stream after the block: `[batch, pos, d_model]`.
    pub(crate) fn forward(&self, resid_pre: Tensor, context: &Context, tap: &mut Tap) -> Flow<Tensor> {
        let layer = self.layer;
        let resid_pre = tap.at(hook::resid_pre(layer), resid_pre)?;
        let attn_out = self.attention(&resid_pre, context, tap)?;
        let attn_out = tap.at(hook::attn_out(layer), attn_out)?;
        // A sublayer's output is the product that it ends with, and may be added to in place, where nothing looks at it. The output of
        // a norm may be the very tensor that the cache keeps of that norm.
        let attn_out_is_ours = self.norm_after_attn().is_none() && !tap.live(hook::attn_out(layer));
        let mlp_out_is_ours = self.norm_after_mlp().is_none() && !tap.live(hook::mlp_out(layer));
        let Some(mlp) = &self.mlp else {
            let resid_post = sum(&resid_pre, attn_out, attn_out_is_ours)?;
            return tap.at(hook::resid_post(layer), resid_post);
        };
        if self.parallel {
            let mlp_out = self.mlp(mlp, &resid_pre, tap)?;
            let mlp_out = tap.at(hook::mlp_out(layer), mlp_out)?;
            let resid_post = sum(&mlp_out, sum(&resid_pre, attn_out, attn_out_is_ours)?, true)?;
            return tap.at(hook::resid_post(layer), resid_post);
        }
        let resid_mid = sum(&resid_pre, attn_out, attn_out_is_ours)?;
        drop(resid_pre);
        let resid_mid = tap.at(hook::resid_mid(layer), resid_mid)?;
        let mlp_out = self.mlp(mlp, &resid_mid, tap)?;
        let mlp_out = tap.at(hook::mlp_out(layer), mlp_out)?;
        let resid_post = sum(&resid_mid, mlp_out, mlp_out_is_ours)?;
        tap.at(hook::resid_post(layer), resid_post)
    }

    /// What attention adds, through its norms: `[batch, pos, d_model]`.
    fn attention(&self, resid_pre: &Tensor, context: &Context, tap: &mut Tap) -> Flow<Tensor> {
        let input = self.attention_input(resid_pre, context, tap)?;
        let out = self.attn.forward(input, context, tap)?;
        match self.norm_after_attn() {
            Some(norm) => norm.forward(&out, tap),
            None => Ok(out),
        }
    }

    /// What the MLP adds, through its norms: `[batch, pos, d_model]`.
    fn mlp(&self, mlp: &MlpOrExperts, resid: &Tensor, tap: &mut Tap) -> Flow<Tensor> {
        let input = tap.at(hook::mlp_in(self.layer), resid.shallow_clone())?;
        let normalized = match self.norm_before_mlp() {
            Some(norm) => norm.forward(&input, tap)?,
            None => input,
        };
        let out = match mlp {
            MlpOrExperts::Mlp(mlp) => mlp.forward(&normalized, tap)?,
            MlpOrExperts::Experts(experts) => experts.forward(&normalized, tap)?,
        };
        match self.norm_after_mlp() {
            Some(norm) => norm.forward(&out, tap),
            None => Ok(out),
        }
    }

    /// What queries, keys and values read, after the norm.
    ///
    /// The points `attn_in`, `q_input`, `k_input` and `v_input` show the stream once for each head. Where a hook stands at one
    /// of them, heads may read different streams from there on, each through the norm by itself; the
    /// norm's own hook points see the stream that the values read.
    fn attention_input(&self, resid_pre: &Tensor, context: &Context, tap: &mut Tap) -> Flow<AttentionInput> {
        let layer = self.layer;
        let (n_heads, n_kv_heads) = (self.attn.n_heads, self.attn.n_kv_heads);
        let mut attn_in = resid_pre.shallow_clone();
        if tap.live(hook::attn_in(layer)) {
            let seen = tap.at(hook::attn_in(layer), for_each_head(resid_pre, n_heads)?)?;
            if tap.hooked(hook::attn_in(layer)) {
                attn_in = seen; // [batch, pos, head, d_model]
            }
        }
        let mut split = context.shortformer_pos_embed().is_some() || attn_in.dim() == 4;
        let mut input = |point, x: Tensor, heads| -> Flow<Tensor> {
            if !tap.live(point) {
                return Ok(x);
            }
            let per_head = if x.dim() == 4 { x.shallow_clone() } else { for_each_head(&x, heads)? };
            let seen = tap.at(point, per_head)?;
            if tap.hooked(point) {
                split = true;
                return Ok(seen);
            }
            Ok(x)
        };
        let q = input(hook::q_input(layer), attn_in.shallow_clone(), n_heads)?;
        let k = input(hook::k_input(layer), attn_in.shallow_clone(), n_kv_heads)?;
        let v = input(hook::v_input(layer), attn_in, n_kv_heads)?;

        let norm = self.norm_before_attn();
        let normalized_v = match norm {
            Some(norm) => norm.forward(&v, tap)?,
            None => v.shallow_clone(),
        };
        if !split {
            return Ok(AttentionInput::Shared(normalized_v));
        }
        let branch = |x: &Tensor| -> Result<Tensor> {
            let x = match norm {
                Some(norm) => norm.norm.apply(x)?,
                None => x.shallow_clone(),
            };
            Ok(match context.shortformer_pos_embed() {
                Some(pos) if x.dim() == 4 => x.f_add(&pos.f_unsqueeze(2)?)?,
                Some(pos) => x.f_add(pos)?,
                None => x,
            })
        };
        Ok(AttentionInput::Split { q: branch(&q)?, k: branch(&k)?, v: normalized_v })
    }
}

/// The stream with what is added to it, in the latter's memory where that is `ours` alone.
pub(crate) fn sum(stream: &Tensor, mut out: Tensor, ours: bool) -> Result<Tensor> {
    if ours && !out.requires_grad() && !stream.requires_grad() {
        return Ok(out.f_add_(stream)?);
    }
    Ok(stream.f_add(&out)?)
}

/// The stream as each head sees it: `[batch, pos, head, d_model]`, a view that takes no memory.
fn for_each_head(x: &Tensor, heads: i64) -> Result<Tensor> {
    let size = x.size();
    Ok(x.f_unsqueeze(2)?.f_expand([size[0], size[1], heads, size[2]], false)?)
}
