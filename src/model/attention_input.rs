//! [`AttentionInput`]: what queries, keys and values read.

use tch::Tensor;

use super::block::Block;
use super::context::Context;
use crate::hook::{self, HookPoint};
use crate::run::{Flow, Tap};
use crate::Result;

/// What attention reads: one stream, or one each for queries, keys and values.
pub(crate) enum AttentionInput {
    /// `[batch, pos, d_model]`
    Shared(Tensor),
    /// Each `[batch, pos, d_model]`, or `[batch, pos, head, d_model]`. `itself` is what they read of the stream where nothing changes it,
    /// for an indexer.
    Split { q: Tensor, k: Tensor, v: Tensor, itself: Option<Tensor> },
}

impl AttentionInput {
    /// What no hook at the inputs of heads has changed: `[batch, pos, d_model]`.
    pub(crate) fn itself(&self) -> Option<&Tensor> {
        match self {
            AttentionInput::Shared(x) => Some(x),
            AttentionInput::Split { itself, .. } => itself.as_ref(),
        }
    }
}

impl Block {
    /// What queries, keys and values read, after the norm.
    ///
    /// The points `attn_in`, `q_input`, `k_input` and `v_input` show the stream once for each head. Where one of them may be
    /// changed, or records a gradient, heads read what it shows, through the norm by themselves. The norm's own hook points see the
    /// stream that the values read, and stand for all that read the same.
    pub(crate) fn attention_input(&self, resid_pre: &Tensor, context: &Context, tap: &mut Tap) -> Flow<AttentionInput> {
        let [q, k, v] = self.streams(resid_pre, tap)?;
        let norm = self.norm_before_attn();
        if self.attn.shares.is_some() {
            // Only queries read the stream here, so the norm's points are theirs.
            let stream = q.as_ref().unwrap_or(resid_pre);
            return match norm {
                Some(norm) => Ok(AttentionInput::Shared(norm.forward(stream, tap)?.into_tensor())),
                None => Ok(AttentionInput::Shared(stream.shallow_clone())),
            };
        }
        let value_stream = v.as_ref().unwrap_or(resid_pre);
        let normalized = match norm {
            Some(norm) => norm.forward(value_stream, tap)?.into_tensor(),
            None => value_stream.shallow_clone(),
        };
        let pos_embed = context.shortformer_pos_embed();
        let frozen = tap.plan.rules().frozen_norms;
        if pos_embed.is_none() && q.is_none() && k.is_none() && v.is_none() {
            return Ok(AttentionInput::Shared(normalized));
        }
        let branch = |x: Option<Tensor>| -> Result<Tensor> {
            let x = match (x, norm) {
                (None, _) if v.is_none() => normalized.shallow_clone(),
                (x, Some(norm)) => norm.norm.apply_by(x.as_ref().unwrap_or(resid_pre), frozen)?,
                (x, None) => x.unwrap_or_else(|| resid_pre.shallow_clone()),
            };
            Ok(match pos_embed {
                Some(pos) if x.dim() == 4 => x.f_add(&pos.f_unsqueeze(2)?)?,
                Some(pos) => x.f_add(pos)?,
                None => x,
            })
        };
        let itself = match &self.attn.indexer {
            Some(_) if v.is_none() => Some(normalized.shallow_clone()),
            Some(_) => Some(branch(Some(resid_pre.shallow_clone()))?),
            None => None,
        };
        let (q, k) = (branch(q)?, branch(k)?);
        Ok(AttentionInput::Split { q, k, v: normalized, itself })
    }

    /// What queries, keys and values read before the norm, each `[batch, pos, head, d_model]`; absent where it is `resid_pre`.
    fn streams(&self, resid_pre: &Tensor, tap: &mut Tap) -> Flow<[Option<Tensor>; 3]> {
        let layer = self.layer;
        let (n_heads, n_kv_heads) = (self.attn.n_heads, self.attn.n_kv_heads);
        let attn_in = carried(hook::attn_in(layer), resid_pre, n_heads, tap)?; // [batch, pos, head, d_model]
        let of_groups = attn_in.as_ref().map(|x| mean_of_groups(x, n_kv_heads)).transpose()?; // [batch, pos, kv_head, d_model]
        let mut input = |point, from: &Option<Tensor>, heads| -> Flow<Option<Tensor>> {
            let carried = carried(point, from.as_ref().unwrap_or(resid_pre), heads, tap)?;
            Ok(carried.or_else(|| from.as_ref().map(Tensor::shallow_clone)))
        };
        let q = input(hook::q_input(layer), &attn_in, n_heads)?;
        if self.attn.shares.is_some() {
            return Ok([q, None, None]);
        }
        let k = input(hook::k_input(layer), &of_groups, n_kv_heads)?;
        let v = input(hook::v_input(layer), &of_groups, n_kv_heads)?;
        Ok([q, k, v])
    }
}

/// Shows a stream once for each head, and returns what the point carries: `[batch, pos, head, d_model]`.
fn carried(point: HookPoint, x: &Tensor, heads: i64, tap: &mut Tap) -> Flow<Option<Tensor>> {
    if !tap.live(point) {
        return Ok(None);
    }
    // Not the stream itself, which others read as well.
    let per_head = if x.dim() == 4 { x.f_alias()? } else { for_each_head(x, heads)? };
    let carries = tap.carries(point, x);
    let shown = tap.at(point, per_head)?;
    Ok(carries.then_some(shown))
}

/// The stream as each head sees it: `[batch, pos, head, d_model]`, a view that takes no memory.
fn for_each_head(x: &Tensor, heads: i64) -> Result<Tensor> {
    let size = x.size();
    Ok(x.f_unsqueeze(2)?.f_expand([size[0], size[1], heads, size[2]], false)?)
}

/// What each group of heads reads, `[batch, pos, head, d_model]` to `[batch, pos, kv_head, d_model]`: the mean of its heads, which
/// all read the same. So the gradient of what they share is spread evenly over them.
fn mean_of_groups(x: &Tensor, n_kv_heads: i64) -> Result<Tensor> {
    let size = x.size();
    if size[2] == n_kv_heads {
        return Ok(x.shallow_clone());
    }
    let groups = x.f_view([size[0], size[1], n_kv_heads, -1, size[3]])?; // [batch, pos, kv_head, head of the group, d_model]
    Ok(groups.f_mean_dim([3i64].as_slice(), false, None)?)
}
