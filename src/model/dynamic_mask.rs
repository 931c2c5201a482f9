//! [`DynamicMask`]: which keys a query sees, and what is added to their scores, as the values say.

use tch::{Kind, Tensor};

use super::linear::Linear;
use super::parameters::module;
use super::part::Part;
use crate::tensor::scalar::Scalar;
use crate::unchecked::threads::SharedTensor;
use crate::Result;

/// Adds `exp(A · softplus(W v + b))` to the scores of a key, and hides all but the keys for which this is largest.
#[derive(Clone, Debug)]
pub(crate) struct DynamicMask {
    /// `[kv_head]`
    pub(crate) a: SharedTensor,
    /// From the values of all heads, `kv_head · d_value`, to `kv_head`.
    pub(crate) dt: Linear,
    pub(crate) keep: i64,
}

module!(DynamicMask, () => (), { a: Part::DynamicA, dt: (Part::DynamicDt, Part::DynamicDtB) } plain { keep });

impl DynamicMask {
    /// What is added to scores, of the values of all keys, `[batch, kv_head, key, d_value]`, for `queries` of them that see what `mask`
    /// leaves, `[batch or 1, 1, query, key]`: `[batch, kv_head, query, key]`.
    pub(crate) fn added(&self, v: &Tensor, queries: i64, mask: Option<&Tensor>) -> Result<Tensor> {
        let size = v.size();
        let all = v.f_transpose(1, 2)?.f_reshape([size[0], size[2], -1])?; // [batch, key, kv_head · d_value]
        let bias = self.dt.forward(&all)?.f_softplus()?.f_mul(&self.a)?.f_exp()?; // [batch, key, kv_head]
        let bias = bias.f_transpose(1, 2)?.f_unsqueeze(2)?; // [batch, kv_head, 1, key]
        let bias = match mask {
            Some(mask) => bias.f_add(mask)?,
            None => bias.f_expand([size[0], size[1], queries, size[2]], false)?,
        };
        if size[2] <= self.keep {
            return Ok(bias);
        }
        // Equal tokens have equal values in the first layer: of keys that are alike, the earlier ones are seen, whatever rounding says.
        let rank = bias.f_detach()?.f_to_kind(Kind::Float)?;
        let (_, order) = rank.f_sort_stable(true, -1, true)?;
        let kept = order.f_narrow(-1, 0, self.keep)?;
        let hidden = Tensor::f_ones(bias.size(), (Kind::Bool, bias.device()))?;
        let shown = Tensor::f_zeros(kept.size(), (Kind::Bool, bias.device()))?;
        bias.fill_where(&hidden.f_scatter(-1, &kept, &shown)?, f64::NEG_INFINITY)
    }
}
