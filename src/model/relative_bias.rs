//! [`RelativeBias`]: what is added to scores for the distance between query and key.

use tch::{Kind, Tensor};

use crate::config::{AttentionDir, RelativeBias};
use crate::tensor::scalar::Scalar;
use crate::Result;

impl RelativeBias {
    /// The bias of these distances, by a table `[bucket, head]`. `distances` are from the query to the key, negative before it:
    /// `[batch or 1, query, key]` to `[batch or 1, head, query, key]`.
    pub(super) fn of_distances(self, table: &Tensor, distances: &Tensor, direction: AttentionDir) -> Result<Tensor> {
        let buckets = self.buckets_of(distances, direction)?;
        let bias = Tensor::f_embedding(table, &buckets, -1, false, false)?; // [batch or 1, query, key, head]
        Ok(bias.f_permute([0, 3, 1, 2])?)
    }

    /// The bucket of each distance: whole numbers.
    ///
    /// Logarithms are taken in fp32 and in transformers' order, since a rounding moves a distance to another bucket.
    fn buckets_of(self, distances: &Tensor, direction: AttentionDir) -> Result<Tensor> {
        let (buckets, exact) = self.of_direction(direction);
        let distances = distances.f_to_kind(Kind::Float)?;
        let size = match direction {
            AttentionDir::Causal => distances.f_neg()?.at_least(0.0)?,
            AttentionDir::Bidirectional => distances.f_abs()?,
        };
        let growth = (self.max_distance as f64 / exact as f64).ln();
        let octaves = size.div_number(exact as f64)?.f_log()?.div_number(growth)?;
        let far = octaves.mul_number((buckets - exact) as f64)?.f_trunc()?.add_number(exact as f64)?;
        let far = far.at_most(buckets as f64 - 1.0)?;
        let is_far = size.gt_number(exact as f64 - 1.0)?;
        let bucket = far.f_where_self(&is_far, &size)?;
        let bucket = match direction {
            AttentionDir::Causal => bucket,
            AttentionDir::Bidirectional => {
                let after = distances.gt_number(0.0)?.f_to_kind(Kind::Float)?;
                bucket.f_add(&after.mul_number(buckets as f64)?)?
            }
        };
        Ok(bucket.f_to_kind(Kind::Int64)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// transformers' `_relative_position_bucket` of 8 buckets and a distance of 12 at most.
    #[test]
    fn buckets_are_those_of_t5() {
        let bias = RelativeBias { buckets: 8, max_distance: 12, per_layer: false };
        let distances: Vec<f32> = vec![-20., -12., -11., -8., -6., -4., -3., -2., -1., 0., 1., 2., 3., 5., 6., 20.];
        let buckets = |direction| {
            let buckets = bias.buckets_of(&Tensor::from_slice(&distances), direction).unwrap();
            Vec::<i64>::try_from(buckets).unwrap()
        };
        assert_eq!(buckets(AttentionDir::Causal), [7, 7, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(buckets(AttentionDir::Bidirectional), [3, 3, 3, 3, 3, 2, 2, 2, 1, 0, 5, 6, 6, 7, 7, 7]);
    }
}
