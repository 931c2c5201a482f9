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
    /// Each `[batch, pos, d_model]`, or `[batch, pos, head, d_model]`.
    Split { q: Tensor, k: Tensor, v: Tensor },
}

/// The streams before the norm: each `[batch, pos, d_model]`, or `[batch, pos, head, d_model]` where heads may read different
/// ones.
struct Streams {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Block {
    /// What queries, keys and values read, after the norm.
    ///
    /// The points `attn_in`, `q_input`, `k_input` and `v_input` show the stream once for each head. Where one of them may be
    /// changed, or records a gradient, heads read what it shows, each through the norm by itself. The norm's own hook points see
    /// the stream that the values read.
    pub(crate) fn attention_input(&self, resid_pre: &Tensor, context: &Context, tap: &mut Tap) -> Flow<AttentionInput> {
        let pos_embed = context.shortformer_pos_embed();
        let norm = self.norm_before_attn();
        let Some(Streams { q, k, v }) = self.streams(resid_pre, pos_embed.is_some(), tap)? else {
            return Ok(AttentionInput::Shared(match norm {
                Some(norm) => norm.forward(resid_pre, tap)?.into_tensor(),
                None => resid_pre.shallow_clone(),
            }));
        };
        let v = match norm {
            Some(norm) => norm.forward(&v, tap)?.into_tensor(),
            None => v,
        };
        let branch = |x: Tensor| -> Result<Tensor> {
            let x = match norm {
                Some(norm) => norm.norm.apply(&x)?,
                None => x,
            };
            Ok(match pos_embed {
                Some(pos) if x.dim() == 4 => x.f_add(&pos.f_unsqueeze(2)?)?,
                Some(pos) => x.f_add(pos)?,
                None => x,
            })
        };
        Ok(AttentionInput::Split { q: branch(q)?, k: branch(k)?, v })
    }

    /// The streams of queries, keys and values through their hook points; absent where all three are `resid_pre`, unless they are
    /// wanted apart.
    fn streams(&self, resid_pre: &Tensor, apart: bool, tap: &mut Tap) -> Flow<Option<Streams>> {
        let layer = self.layer;
        let points = [hook::attn_in(layer), hook::q_input(layer), hook::k_input(layer), hook::v_input(layer)];
        if !apart && !points.iter().any(|point| tap.live(*point)) {
            return Ok(None);
        }
        let (n_heads, n_kv_heads) = (self.attn.n_heads, self.attn.n_kv_heads);
        let heads_read = carried(hook::attn_in(layer), resid_pre, n_heads, tap)?; // [batch, pos, head, d_model]
        let q = heads_read.as_ref().unwrap_or(resid_pre).shallow_clone();
        let kv = match heads_read {
            Some(x) => mean_of_groups(x, n_kv_heads)?, // [batch, pos, kv_head, d_model]
            None => resid_pre.shallow_clone(),
        };
        let q_input = carried(hook::q_input(layer), &q, n_heads, tap)?;
        let k_input = carried(hook::k_input(layer), &kv, n_kv_heads, tap)?;
        let v_input = carried(hook::v_input(layer), &kv, n_kv_heads, tap)?;
        let split = apart || q.dim() == 4 || [&q_input, &k_input, &v_input].iter().any(|input| input.is_some());
        let streams = Streams {
            q: q_input.unwrap_or(q),
            k: k_input.unwrap_or_else(|| kv.shallow_clone()),
            v: v_input.unwrap_or(kv),
        };
        Ok(split.then_some(streams))
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
fn mean_of_groups(x: Tensor, n_kv_heads: i64) -> Result<Tensor> {
    let size = x.size();
    if size[2] == n_kv_heads {
        return Ok(x);
    }
    let groups = x.f_view([size[0], size[1], n_kv_heads, -1, size[3]])?; // [batch, pos, kv_head, head of the group, d_model]
    Ok(groups.f_mean_dim([3i64].as_slice(), false, None)?)
}
