//! Rows projected onto directions, without forming the rows.
//!
//! A head writes `z W_O`, a neuron `post W_out`: projected onto `u`, these are `z (W_O u)` and `post (W_out u)`, and `W u` is as
//! small as the activation. Norms on the way are linear at their frozen scale: centring and gain are pulled back into `u`, the
//! scale divides the value ([`FrozenNorm::pull_back`]).

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::stack::SharedNorm;
use crate::{Error, Result};

/// Directions in the stream, `[batch or 1, pos or 1, d_model, k]`, as rows before the target's norm must be projected onto.
pub(crate) struct Directions {
    u: Tensor,
    /// The target's norm, whose scale divides what is projected; absent where rows are not normalised.
    scale: Option<SharedNorm>,
}

impl Directions {
    /// Onto `u` as it is: `[batch or 1, pos or 1, d_model, k]`.
    pub(crate) fn plain(u: Tensor) -> Self {
        Directions { u, scale: None }
    }

    /// Onto `u` of rows that have passed through `norm`.
    pub(crate) fn through(u: &Tensor, norm: SharedNorm) -> Result<Self> {
        let frozen = norm.as_ref().as_ref().map_err(|sentence| Error::invalid(sentence.clone()))?;
        let u = frozen.pull_back(u)?;
        Ok(Directions { u, scale: Some(norm) })
    }

    /// Rows of the stream: `[row, batch, pos, d_model]` to `[row, batch, pos, k]`.
    pub(crate) fn rows(&self, rows: &Tensor) -> Result<Tensor> {
        let size = self.u.size();
        let values = match size[..2] == [1, 1] {
            true => rows.f_matmul(&self.u.f_select(0, 0)?.f_select(0, 0)?)?,
            // [row, batch, pos, 1, d_model] by [batch, pos, d_model, k]
            false => rows.f_unsqueeze(-2)?.f_matmul(&self.u)?.f_squeeze_dim(-2)?,
        };
        self.divide_rows(values)
    }

    /// The directions as seen by what writes through `weight`, `[d_model, m]`, and then passes through `after`:
    /// `[batch or 1, pos or 1, m, k]`.
    pub(crate) fn before_writer(&self, weight: &Tensor, after: &FrozenNorm) -> Result<Tensor> {
        let u = after.pull_back(&self.u)?;
        let size = u.size(); // [batch or 1, pos or 1, d_model, k]
        let w = weight.f_tr()?.f_to_kind(u.f_kind()?)?; // [m, d_model]
        if size[3] == 1 {
            // One product over all batches and positions.
            let flat = u.f_flatten(0, 1)?.f_squeeze_dim(-1)?; // [batch pos, d_model]
            let seen = flat.f_matmul(&w.f_tr()?)?; // [batch pos, m]
            return Ok(seen.f_view([size[0], size[1], -1, 1])?);
        }
        Ok(w.f_matmul(&u)?)
    }

    /// Heads: `z` of `[batch, pos, head, d_head]` that writes through `weight` and `after`, as `[head, batch, pos, k]`.
    pub(crate) fn heads(&self, z: &Tensor, weight: &Tensor, after: &FrozenNorm) -> Result<Tensor> {
        let size = z.size();
        let seen = self.before_writer(weight, after)?; // [batch or 1, pos or 1, head d_head, k]
        let shape = seen.size();
        let seen = seen.f_view([shape[0], shape[1], size[2], size[3], shape[3]])?;
        let values = z.f_unsqueeze(-1)?.f_mul(&seen)?.f_sum_dim_intlist([3i64].as_slice(), false, None)?;
        self.finish(&values, after)
    }

    /// Neurons: `post` of `[batch, pos, neuron]` whose rows write through `weight`, `[d_model, neuron]`, and `after`, as
    /// `[neuron, batch, pos, k]`.
    pub(crate) fn neurons(&self, post: &Tensor, weight: &Tensor, after: &FrozenNorm) -> Result<Tensor> {
        let seen = self.before_writer(weight, after)?; // [batch or 1, pos or 1, neuron, k]
        self.finish(&post.f_unsqueeze(-1)?.f_mul(&seen)?, after)
    }

    /// `[batch, pos, row, k]` to `[row, batch, pos, k]`, divided by the scales on the way.
    fn finish(&self, values: &Tensor, after: &FrozenNorm) -> Result<Tensor> {
        let values = after.divide(values)?.f_permute([2, 0, 1, 3])?;
        self.divide_rows(values)
    }

    /// `[row, batch, pos, k]` divided by the target's scale.
    fn divide_rows(&self, values: Tensor) -> Result<Tensor> {
        match self.scale.as_ref().map(|norm| norm.as_ref()) {
            Some(Ok(norm)) => norm.divide_rows(&values),
            _ => Ok(values),
        }
    }
}
