//! [`DisentangledHeads`]: what scores owe to the distance of query and key in DeBERTa.

use tch::{Kind, Tensor};

use super::attention::Attention;
use super::context::Context;
use super::linear::Linear;
use super::parameters::module;
use super::part::Part;
use crate::config::Disentangled;
use crate::tensor::scalar::Scalar;
use crate::Result;

/// Disentangled attention of a layer (He et al. 2021, "DeBERTa"): what makes keys and queries of the embeddings of distances. Absent where the
/// weights that make those of tokens do.
#[derive(Clone, Debug)]
pub(crate) struct DisentangledHeads {
    pub(crate) config: Disentangled,
    pub(crate) key: Option<Linear>,
    pub(crate) query: Option<Linear>,
}

module!(DisentangledHeads, () => (), {
    key: (Part::DistanceK, Part::DistanceKB),
    query: (Part::DistanceQ, Part::DistanceQB),
} plain { config });

impl DisentangledHeads {
    /// The products of queries with keys of distances, and of keys with queries of distances, divided as scores are:
    /// `[batch, head, query, key]`, of `[batch, head, query, d_head]` and `[batch, head, key, d_head]`. `distances` are those of each key
    /// before its query: `[batch or 1, query, key]`.
    pub(crate) fn scores(
        &self,
        attention: &Attention,
        [q, k]: [&Tensor; 2],
        distances: &Tensor,
        context: &Context,
    ) -> Result<Tensor> {
        let (size, keys) = (q.size(), k.size()[2]);
        let shape = [size[0], size[1], size[2], keys];
        let rows = self.rows(distances)?.f_unsqueeze(1)?.f_expand(shape, false)?; // [batch, head, query, key]
        let mut scores = Tensor::f_zeros(shape, (q.f_kind()?, q.device()))?;
        if self.config.content_to_position {
            let own = attention.qkv.narrow(attention.n_heads * attention.d_head, attention.n_heads * attention.d_head);
            let of_keys = self.of_heads(attention, self.key.as_ref().map_or(own, |key| Ok(key.clone()))?, context)?;
            let products = q.f_matmul(&of_keys.f_transpose(1, 2)?)?; // [batch, head, query, row]
            scores = scores.f_add(&products.f_gather(-1, &rows, false)?)?;
        }
        if self.config.position_to_content {
            let own = attention.qkv.narrow(0, attention.n_heads * attention.d_head);
            let of_queries =
                self.of_heads(attention, self.query.as_ref().map_or(own, |query| Ok(query.clone()))?, context)?;
            let products = k.f_matmul(&of_queries.f_transpose(1, 2)?)?; // [batch, head, key, row]
            let of_keys = products.f_gather(-1, &rows.f_transpose(2, 3)?, false)?; // [batch, head, key, query]
            scores = scores.f_add(&of_keys.f_transpose(2, 3)?)?;
        }
        scores.div_number(attention.scale)
    }

    /// Keys or queries of all rows of the table of distances: `[head, row, d_head]`.
    fn of_heads(&self, attention: &Attention, linear: Linear, context: &Context) -> Result<Tensor> {
        let made = linear.forward(context.distance_embeddings()?)?; // [row, head · d_head]
        let rows = made.size()[0];
        Ok(made.f_view([rows, attention.n_heads, attention.d_head])?.f_transpose(0, 1)?)
    }

    /// The row of the table that each distance has: `[batch or 1, query, key]`, int64.
    fn rows(&self, distances: &Tensor) -> Result<Tensor> {
        let span = self.config.span as f64;
        let counted = match self.config.bucketed_up_to {
            Some(furthest) => bucketed(distances, self.config.span, furthest)?,
            None => distances.shallow_clone(),
        };
        Ok(counted.add_number(span)?.between(0.0, 2.0 * span - 1.0)?.f_to_kind(Kind::Int64)?)
    }
}

/// Distances of at most half of the span as they are, and others as `half + ⌈ln(d / half) / ln((furthest − 1) / half) · (half − 1)⌉` with their
/// sign. In fp32, as the bounds of buckets are a matter of rounding.
fn bucketed(distances: &Tensor, span: usize, furthest: usize) -> Result<Tensor> {
    let half = (span / 2) as f64;
    let far = distances.f_abs()?.at_least(half)?;
    let widest = Tensor::f_from_slice(&[((furthest - 1) as f64 / half) as f32])?.f_log()?.f_to_device(far.device())?;
    let steps = far.div_number(half)?.f_log()?.f_div(&widest)?.mul_number(half - 1.0)?.f_ceil()?;
    let bucket = steps.add_number(half)?.f_mul(&distances.f_sign()?)?;
    let is_far = distances.f_abs()?.gt_number(half)?;
    Ok(bucket.f_where_self(&is_far, distances)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand, with a span of 8 up to a distance of 16: 4 + ⌈3 ln(6/4) / ln(15/4)⌉ = 5, 4 + ⌈3 ln(10/4) / ln(15/4)⌉ = 7.
    #[test]
    fn far_distances_share_buckets() {
        let distances =
            Tensor::from_slice(&[-15f32, -10.0, -6.0, -4.0, -1.0, 0.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0]);
        let found: Vec<f32> = bucketed(&distances, 8, 16).unwrap().try_into().unwrap();
        assert_eq!(found, [-7.0, -7.0, -5.0, -4.0, -1.0, 0.0, 3.0, 4.0, 5.0, 5.0, 6.0, 7.0, 7.0]);
    }
}
