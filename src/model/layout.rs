//! [`Layout`]: where the tokens of a run stand.

use tch::{Device, Kind, Tensor};

use crate::tensor::scalar::Scalar;
use crate::tensor::span::Span;
use crate::Result;

/// Where the tokens of a run stand: which columns the run computes, and which columns are padding.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) batch: i64,
    pub(crate) span: Span,
    /// Absent where every token is real.
    pub(crate) padding: Option<Padding>,
}

/// The padding of a batch, over the columns of the past and the new ones. It may be anywhere in a row.
///
/// A token's position is the number of real tokens before it in its row, so a row has the positions that it has alone.
#[derive(Debug)]
pub(crate) struct Padding {
    /// Which tokens are real: `[batch, key]`, bool.
    pub(crate) real: Tensor,
    /// The position of each token, and of padding any valid one: `[batch, key]`, int64.
    pub(crate) positions: Tensor,
}

impl Layout {
    /// Rows of `span.new` tokens, after a past with this padding. `mask` says which of the new tokens are real: `[batch, new]`.
    pub(crate) fn new(batch: usize, span: Span, past: Option<&Padding>, mask: Option<&Tensor>) -> Result<Self> {
        let batch = i64::try_from(batch).unwrap_or(i64::MAX);
        let padding = match (past, mask) {
            (None, None) => None,
            (None, Some(mask)) if span.past == 0 => Some(Padding::new(mask.shallow_clone())?),
            (past, mask) => {
                let kind = |of: Option<&Tensor>| of.map(|t| (Kind::Bool, t.device()));
                let options = kind(mask).or(kind(past.map(|p| &p.real))).unwrap_or((Kind::Bool, tch::Device::Cpu));
                let all = |n: usize| Ok::<_, crate::Error>(Tensor::f_ones([batch, n as i64], options)?);
                let before = past.map_or_else(|| all(span.past), |past| Ok(past.real.shallow_clone()))?;
                let new = mask.map_or_else(|| all(span.new), |mask| Ok(mask.shallow_clone()))?;
                Some(Padding::new(Tensor::f_cat(&[before, new], 1)?)?)
            }
        };
        Ok(Layout { batch, span, padding })
    }

    /// The positions of the new tokens, where padding shifts any: `[batch, new]`.
    pub(crate) fn new_positions(&self) -> Result<Option<Tensor>> {
        self.padding.as_ref().map(|padding| self.new_columns(&padding.positions)).transpose()
    }

    /// Which of the new tokens are padding: `[batch, new]`, bool.
    pub(crate) fn new_padding(&self) -> Result<Option<Tensor>> {
        let padding = |padding: &Padding| Ok(self.new_columns(&padding.real)?.f_logical_not()?);
        self.padding.as_ref().map(padding).transpose()
    }

    /// The length of each row, the past included and padding not. Copies from the device where a row is padded.
    pub(crate) fn row_lengths(&self) -> Result<Vec<usize>> {
        match &self.padding {
            Some(padding) => padding.row_lengths(),
            None => Ok(vec![self.span.keys(); self.batch as usize]),
        }
    }

    /// The new columns of `[batch, key]`.
    fn new_columns(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_narrow(1, self.span.past as i64, self.span.new as i64)?)
    }
}

impl Padding {
    pub(crate) fn new(real: Tensor) -> Result<Self> {
        let positions = real.f_cumsum(1, Kind::Int64)?.add_int(-1)?.at_least_int(0)?;
        Ok(Padding { real, positions })
    }

    /// The padding of the first `len` columns.
    pub(crate) fn narrow(&self, len: usize) -> Result<Self> {
        let first = |x: &Tensor| Ok::<_, crate::Error>(x.f_narrow(1, 0, len as i64)?);
        Ok(Padding { real: first(&self.real)?, positions: first(&self.positions)? })
    }

    /// The first of the first `len` columns that is among the last `count` real tokens of any row. Copies from the device.
    pub(crate) fn column_of_last(&self, count: usize, len: usize) -> Result<usize> {
        let rows = Vec::<Vec<bool>>::try_from(self.real.f_narrow(1, 0, len as i64)?.f_to_device(Device::Cpu)?)?;
        let first = |row: &Vec<bool>| {
            let real = row.iter().enumerate().rev().filter(|(_, real)| **real).take(count);
            real.last().map_or(len, |(column, _)| column)
        };
        Ok(rows.iter().map(first).min().unwrap_or(len))
    }

    /// The padding of these rows.
    pub(crate) fn rows(&self, rows: &Tensor) -> Result<Self> {
        let chosen = |x: &Tensor| Ok::<_, crate::Error>(x.f_index_select(0, rows)?);
        Ok(Padding { real: chosen(&self.real)?, positions: chosen(&self.positions)? })
    }

    /// How many real tokens each row has. Copies from the device.
    fn row_lengths(&self) -> Result<Vec<usize>> {
        let lengths = self.real.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int64)?;
        Ok(Vec::<i64>::try_from(lengths)?.into_iter().map(|n| n as usize).collect())
    }
}

impl Clone for Padding {
    fn clone(&self) -> Self {
        Padding { real: self.real.shallow_clone(), positions: self.positions.shallow_clone() }
    }
}
