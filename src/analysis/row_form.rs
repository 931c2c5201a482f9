//! [`RowForm`]: rows of a decomposition as they are, or projected onto directions without being formed.
//!
//! A head writes `z W_O`, a neuron `post W_out`: projected onto `u`, these are `z (W_O u)` and `post (W_out u)`, and `W u` is as
//! small as the activation. Norms on the way are linear at their frozen scale: centring and gain are pulled back into `u`, the
//! scale divides the value ([`FrozenNorm::pull_back`]).

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use crate::{Error, Result, Transformer};

/// How rows come out of a decomposition.
pub(crate) enum RowForm<'d> {
    /// As they are: the last axis is `d_model`.
    Whole,
    /// Projected: the last axis is that of the directions.
    Projected(&'d Directions),
}

/// Directions in the stream, `[batch or 1, pos or 1, d_model, k]`, as rows before the target's norm must be projected onto.
pub(crate) struct Directions {
    u: Tensor,
    /// The norms on the way, whose scales divide what is projected: the target's where rows are normalised, and those of the stream.
    norms: Vec<FrozenNorm>,
}

impl Directions {
    /// A user's directions, `[d_model]` or `[d_model, k]`, as `[1, 1, d_model, k]`.
    pub(crate) fn checked(directions: &Tensor, model: &Transformer) -> Result<Tensor> {
        let d_model = model.config().d_model as i64;
        match directions.size().as_slice() {
            [d] if *d == d_model => Ok(directions.f_view([1, 1, d_model, 1])?),
            [d, _] if *d == d_model => Ok(directions.f_unsqueeze(0)?.f_unsqueeze(0)?),
            found => Err(Error::Shape {
                what: "the directions to project onto".into(),
                found: found.to_vec(),
                expected: format!("[{d_model}] or [{d_model}, k]"),
            }),
        }
    }

    /// Directions `[batch or 1, pos or 1, d_model, k]` of rows as they are.
    pub(crate) fn plain(u: &Tensor) -> Self {
        Directions { u: u.shallow_clone(), norms: Vec::new() }
    }

    /// Directions of rows that have passed through `norm`.
    pub(crate) fn through(u: &Tensor, norm: FrozenNorm) -> Result<Self> {
        Ok(Directions { u: norm.pull_back(u)?, norms: vec![norm] })
    }

    /// The directions of rows that pass through a norm of the stream before they come to these.
    pub(crate) fn before(&self, norm: &FrozenNorm) -> Result<Self> {
        let mut norms: Vec<FrozenNorm> = self.norms.iter().map(FrozenNorm::handle).collect();
        norms.push(norm.handle());
        Ok(Directions { u: norm.pull_back(&self.u)?, norms })
    }

    /// The directions of rows that are multiplied by a number, `[1]`, or one for each entry, `[d_model]`, before they come to these.
    pub(crate) fn times(&self, factor: &Tensor) -> Result<Self> {
        Ok(Directions { u: self.u.f_mul(&factor.f_unsqueeze(-1)?)?, ..self.handle() })
    }

    /// The same directions.
    pub(crate) fn handle(&self) -> Self {
        Directions { u: self.u.shallow_clone(), norms: self.norms.iter().map(FrozenNorm::handle).collect() }
    }

    /// Rows of the stream: `[row, batch, pos, d_model]` to `[row, batch, pos, k]`.
    pub(crate) fn project(&self, rows: &Tensor) -> Result<Tensor> {
        let size = self.u.size();
        let values = match size[..2] == [1, 1] {
            true => rows.f_matmul(&self.u.f_select(0, 0)?.f_select(0, 0)?)?,
            // [row, batch, pos, 1, d_model] by [batch, pos, d_model, k]
            false => rows.f_unsqueeze(-2)?.f_matmul(&self.u)?.f_squeeze_dim(-2)?,
        };
        self.divide_rows(values)
    }

    /// The directions for what writes through `weight`, `[d_model, m]`, and then passes through `after`:
    /// `[batch or 1, pos or 1, m, k]`.
    fn before_writer(&self, weight: &Tensor, after: &FrozenNorm) -> Result<Tensor> {
        let u = after.pull_back(&self.u)?;
        let size = u.size(); // [batch or 1, pos or 1, d_model, k]
        let w = weight.f_tr()?.f_to_kind(u.f_kind()?)?; // [m, d_model]
        if size[3] == 1 {
            // One product over all batches and positions.
            let flat = u.f_flatten(0, 1)?.f_squeeze_dim(-1)?; // [batch pos, d_model]
            return Ok(flat.f_matmul(&w.f_tr()?)?.f_view([size[0], size[1], w.size()[0], 1])?);
        }
        Ok(w.f_matmul(&u)?)
    }

    /// `[batch, pos, row, k]` to `[row, batch, pos, k]`, divided by the scales on the way.
    fn finish(&self, values: &Tensor, after: &FrozenNorm) -> Result<Tensor> {
        self.divide_rows(after.divide(values)?.f_permute([2, 0, 1, 3])?)
    }

    /// `[row, batch, pos, k]` divided by the target's scale.
    fn divide_rows(&self, values: Tensor) -> Result<Tensor> {
        self.norms.iter().try_fold(values, |values, norm| norm.divide_rows(&values))
    }
}

impl RowForm<'_> {
    /// Rows of the stream: `[row, batch, pos, d_model]` to `[row, batch, pos, last]`.
    pub(crate) fn rows(&self, rows: &Tensor) -> Result<Tensor> {
        match self {
            RowForm::Whole => Ok(rows.shallow_clone()),
            RowForm::Projected(onto) => onto.project(rows),
        }
    }

    /// Heads: `z` of `[batch, pos, head, d_head]` that writes through `weight`, `[d_model, head · d_head]`, and `after`: `[head, batch, pos, last]`.
    pub(crate) fn heads(&self, z: &Tensor, weight: &Tensor, after: &FrozenNorm) -> Result<Tensor> {
        let size = z.size();
        match self {
            RowForm::Whole => {
                let w_o = weight.f_tr()?.f_reshape([size[2], size[3], -1])?.f_to_kind(z.f_kind()?)?; // [head, d_head, d_model]
                let rows = z.f_permute([2, 0, 1, 3])?.f_matmul(&w_o.f_unsqueeze(1)?)?; // [head, batch, pos, d_model]
                after.apply(&rows)
            }
            RowForm::Projected(onto) => {
                let u = onto.before_writer(weight, after)?; // [batch or 1, pos or 1, head d_head, k]
                let shape = u.size();
                let u = u.f_view([shape[0], shape[1], size[2], size[3], shape[3]])?;
                let values = z.f_unsqueeze(-1)?.f_mul(&u)?.f_sum_dim_intlist([3i64].as_slice(), false, None)?;
                onto.finish(&values, after)
            }
        }
    }

    /// Neurons: `post` of `[batch, pos, neuron]` whose rows write through `weight`, `[d_model, neuron]`, and `after`:
    /// `[neuron, batch, pos, last]`.
    pub(crate) fn neurons(&self, post: &Tensor, weight: &Tensor, after: &FrozenNorm) -> Result<Tensor> {
        match self {
            RowForm::Whole => {
                let post = post.f_permute([2, 0, 1])?.f_unsqueeze(-1)?; // [neuron, batch, pos, 1]
                let w = weight.f_tr()?.f_to_kind(post.f_kind()?)?; // [neuron, d_model]
                after.apply(&post.f_mul(&w.f_unsqueeze(1)?.f_unsqueeze(1)?)?)
            }
            RowForm::Projected(onto) => {
                let u = onto.before_writer(weight, after)?; // [batch or 1, pos or 1, neuron, k]
                onto.finish(&post.f_unsqueeze(-1)?.f_mul(&u)?, after)
            }
        }
    }
}
