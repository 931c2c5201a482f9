//! [`Wave`]: gradients of several targets on their way back through the layers, and the edges that have been found.

use std::collections::BTreeMap;

use tch::{Kind as Numbers, Tensor};

use super::columns::{Columns, Kind, Place};
use super::replacement::Target;
use super::rows::Row;
use super::units::{numbers, Units};
use crate::analysis::frozen_norm::FrozenNorm;
use crate::tensor::scalar::arange;
use crate::Result;

/// A target with its place and its position.
pub(super) type Placed = (Target, (Place, usize));

/// The rows that are on their way through the layers, and what has been found of them.
pub(super) struct Wave<'c> {
    /// Gradients at the stream, `[row, pos, d_model]`, of the rows that have begun.
    pub(super) gradients: Option<Tensor>,
    pub(super) rows: Vec<(Row, Vec<f32>)>,
    /// Gradients at what values of an earlier layer read, of rows that have passed a layer which looks at these.
    deferred: BTreeMap<usize, Tensor>,
    /// How many positions the gradients have.
    pub(super) pos: i64,
    columns: &'c Columns,
}

impl<'c> Wave<'c> {
    /// No rows yet, with gradients at so many positions.
    pub(super) fn new(columns: &'c Columns, pos: usize, n: usize) -> Self {
        let rows = Vec::with_capacity(n);
        Wave { gradients: None, rows, deferred: BTreeMap::new(), pos: pos as i64, columns }
    }

    /// Vectors, `[row, d_model]`, at the positions of targets: `[row, pos, d_model]`.
    pub(super) fn at_positions(&self, targets: &[Placed], vectors: &Tensor) -> Result<Tensor> {
        let size = vectors.size();
        let positions: Vec<usize> = targets.iter().map(|(_, (_, position))| *position).collect();
        let zeros = Tensor::f_zeros([size[0], self.pos, size[1]], (vectors.f_kind()?, vectors.device()))?;
        let rows = arange(0..size[0], vectors.device())?;
        Ok(zeros.f_index_put(&[Some(&rows), Some(&index(&positions, vectors)?)], vectors, false)?)
    }

    /// Rows begin: their values and constants, and their gradients at the stream.
    pub(super) fn begin(&mut self, targets: &[Placed], facts: &[(f64, f64)], gradients: Tensor) -> Result<()> {
        for ((_, (place, position)), (value, constant)) in targets.iter().zip(facts) {
            let row = Row { place: *place, position: *position, left_out: 0.0, constant: *constant, value: *value };
            let n = self.columns.reach(*place, *position);
            self.rows.push((row, vec![0.0; n]));
        }
        self.gradients = Some(match self.gradients.take() {
            Some(before) => Tensor::f_cat(&[before, gradients], 0)?,
            None => gradients,
        });
        Ok(())
    }

    pub(super) fn add_gradients(&mut self, more: Option<Tensor>) -> Result<()> {
        if let (Some(gradients), Some(more)) = (&self.gradients, more) {
            self.gradients = Some(gradients.f_add(&more)?);
        }
        Ok(())
    }

    /// Keeps gradients at the stream that a layer's attention reads, `[row, pos, d_model]`, of the last rows, until the wave is there.
    pub(super) fn defer(&mut self, layer: usize, gradients: &Tensor) -> Result<()> {
        let missing = self.rows.len() as i64 - gradients.size()[0];
        let gradients = gradients.f_constant_pad_nd([0, 0, 0, 0, missing, 0])?;
        let sum = match self.deferred.remove(&layer) {
            Some(before) => gradients.f_add(&self.for_all_rows(&before)?)?,
            None => gradients,
        };
        self.deferred.insert(layer, sum);
        Ok(())
    }

    /// Adds what was kept for a layer.
    pub(super) fn add_deferred(&mut self, layer: usize) -> Result<()> {
        match self.deferred.remove(&layer) {
            Some(gradients) => {
                let gradients = self.for_all_rows(&gradients)?;
                self.add_gradients(Some(gradients))
            }
            None => Ok(()),
        }
    }

    /// Gradients of the rows that had begun earlier, with zeros for those that have begun since.
    fn for_all_rows(&self, gradients: &Tensor) -> Result<Tensor> {
        let missing = self.rows.len() as i64 - gradients.size()[0];
        Ok(gradients.f_constant_pad_nd([0, 0, 0, 0, 0, missing])?)
    }

    /// Backwards through a norm of the stream.
    pub(super) fn through_norm(&mut self, norm: Option<&FrozenNorm>) -> Result<()> {
        let (Some(norm), Some(gradients)) = (norm, self.gradients.as_ref().map(Tensor::shallow_clone)) else {
            return Ok(());
        };
        if let Some(bias) = &norm.b {
            let bias = bias.f_view([1, 1, -1])?.f_expand_as(&gradients.f_narrow(0, 0, 1)?)?;
            self.add_product(&gradients, &bias)?;
        }
        self.gradients = Some(norm.pull(&gradients, true)?);
        Ok(())
    }

    /// Backwards through what multiplies the whole stream: `[1]`, or `[d_model]`.
    pub(super) fn through_factor(&mut self, factor: Option<&Tensor>) -> Result<()> {
        if let (Some(factor), Some(gradients)) = (factor, &self.gradients) {
            self.gradients = Some(gradients.f_mul(&factor.f_to_kind(gradients.f_kind()?)?)?);
        }
        Ok(())
    }

    /// What a constant part of the stream, `[1, pos, d_model]`, adds to what targets read.
    pub(super) fn add_constant(&mut self, constant: &Tensor) -> Result<()> {
        match self.gradients.as_ref().map(Tensor::shallow_clone) {
            Some(gradients) => self.add_product(&gradients, constant),
            None => Ok(()),
        }
    }

    pub(super) fn add_product(&mut self, gradients: &Tensor, constant: &Tensor) -> Result<()> {
        let constant = constant.f_narrow(1, 0, self.pos)?.f_reshape([-1i64])?.f_to_kind(gradients.f_kind()?)?;
        let products = gradients.f_reshape([gradients.size()[0], -1])?.f_matmul(&constant)?;
        for ((row, _), product) in self.rows.iter_mut().zip(doubles(&products)?) {
            row.constant += product;
        }
        Ok(())
    }

    /// The effects of parts of the stream, one at each position: `[1, pos, d_model]`.
    pub(super) fn add_each(&mut self, kind: Kind, parts: &Tensor) -> Result<()> {
        let Some(gradients) = &self.gradients else { return Ok(()) };
        let parts = parts.f_narrow(1, 0, self.pos)?.f_squeeze_dim(0)?.f_unsqueeze(-1)?; // [pos, d_model, 1]
        let effects = gradients.f_transpose(0, 1)?.f_matmul(&parts)?; // [pos, row, 1]
        self.add(kind, &effects.f_squeeze_dim(-1)?.f_tr()?)
    }

    /// The effects of the units of a layer on what MLPs add in `layer`: gradients `[row, pos, d_model]` there.
    pub(super) fn add_units(&mut self, layer: usize, of: usize, units: &dyn Units, gradients: &Tensor) -> Result<()> {
        let table = units.table();
        let n = table.starts.get(self.pos as usize).copied().unwrap_or(0);
        if n == 0 {
            return Ok(());
        }
        let mut parts = Vec::with_capacity(self.pos as usize);
        for position in 0..self.pos as usize {
            if table.starts[position] < table.starts[position + 1] {
                parts.push(units.effects(layer, position, &gradients.f_select(1, position as i64)?)?);
            }
        }
        let effects = Tensor::f_cat(&parts, 1)?.f_mul(&table.values.f_narrow(0, 0, n as i64)?)?; // [row, unit]
        self.add(Kind::Units(of), &effects)
    }

    /// Adds effects, `[row, source]`, of the first sources of a group to the rows that have begun.
    pub(super) fn add(&mut self, kind: Kind, effects: &Tensor) -> Result<()> {
        let Some(first) = self.columns.group(kind).map(|group| group.first) else { return Ok(()) };
        let n = effects.size()[1] as usize;
        if n == 0 {
            return Ok(());
        }
        let numbers = numbers(effects)?;
        for ((row, edges), effects) in self.rows.iter_mut().zip(numbers.chunks_exact(n)) {
            let mut start = 0;
            for (group, len) in self.columns.support(row.place, row.position) {
                if group.first == first {
                    let len = len.min(n);
                    edges[start..start + len].iter_mut().zip(effects).for_each(|(edge, effect)| *edge += effect);
                    break;
                }
                start += len;
            }
        }
        Ok(())
    }
}

/// Places as an index tensor on the device of another tensor.
pub(super) fn index(places: &[usize], like: &Tensor) -> Result<Tensor> {
    let places: Vec<i64> = places.iter().map(|place| *place as i64).collect();
    Ok(Tensor::f_from_slice(&places)?.f_to_device(like.device())?)
}

/// The entries of a tensor.
pub(super) fn doubles(tensor: &Tensor) -> Result<Vec<f64>> {
    let flat = tensor.f_to_device(tch::Device::Cpu)?.f_to_kind(Numbers::Double)?.f_reshape([-1i64])?;
    Ok(Vec::<f64>::try_from(flat)?)
}
