//! [`QuantizedWeight`]: a weight that is stored in a few tensors of a file, and read as one of plain numbers.

use std::path::PathBuf;

use tch::{Device, Tensor};

use crate::format::quantized::{Method, Rows};
use crate::format::{FormatError, Numbers, Place};
use crate::tensor::scalar::Scalar;
use crate::unchecked::mapped::{kind, FileBytes};
use crate::{Error, Result};

/// The files of a checkpoint.
pub(crate) type Files = [(PathBuf, FileBytes)];

/// A quantised weight: where its tensors lie, and how its family sees it.
#[derive(Debug)]
pub(crate) struct QuantizedWeight {
    method: Method,
    /// The index of a file, and the place in it.
    parts: Vec<(usize, Place)>,
    /// As the family's table has it.
    shape: Vec<i64>,
    layout: Layout,
}

/// What lies between the stored rows and the tensor of a family.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Layout {
    /// Whether the last two dimensions change places.
    pub(crate) transposed: bool,
    pub(crate) order: RowOrder,
    /// Whether one is taken off each number: of gains that a family stores as their difference from one.
    pub(crate) minus_one: bool,
}

/// The order of the stored rows, where it is not that of the family.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum RowOrder {
    #[default]
    Same,
    /// The rows from this one on: an expert's.
    From(usize),
    /// Of each head, the two dimensions that rotate together lie beside each other.
    Pairs { heads: usize },
    /// The queries of all heads, then the keys, then the values. The family has those of a group together, keys and values last.
    Groups { heads: usize, kv_heads: usize },
}

impl RowOrder {
    /// The stored row of a family's row.
    fn stored(self, row: usize, rows: usize) -> usize {
        match self {
            RowOrder::Same => row,
            RowOrder::From(first) => first + row,
            RowOrder::Pairs { heads } => {
                let d_head = rows / heads;
                let (half, pair) = (row % d_head / (d_head / 2), row % (d_head / 2));
                row - row % d_head + 2 * pair + half
            }
            RowOrder::Groups { heads, kv_heads } => {
                let d_head = rows / (heads + 2 * kv_heads);
                let of_group = heads / kv_heads;
                let (head, within) = (row / d_head, row % d_head);
                let (group, member) = (head / (of_group + 2), head % (of_group + 2));
                let head = match member.checked_sub(of_group) {
                    None => group * of_group + member,
                    Some(0) => heads + group,
                    Some(_) => heads + kv_heads + group,
                };
                head * d_head + within
            }
        }
    }

    /// Whether so many rows, out of so many stored ones, can be in this order.
    fn fits(self, rows: usize, stored: usize) -> bool {
        match self {
            RowOrder::Same => rows == stored,
            RowOrder::From(first) => first.checked_add(rows).is_some_and(|end| end <= stored),
            RowOrder::Pairs { heads } => rows == stored && heads > 0 && rows.is_multiple_of(2 * heads),
            RowOrder::Groups { heads, kv_heads } => {
                let all = heads + 2 * kv_heads;
                rows == stored && kv_heads > 0 && heads % kv_heads == 0 && rows.is_multiple_of(all)
            }
        }
    }
}

impl QuantizedWeight {
    /// A weight of this shape, or of that of its stored rows; its tensors must go together.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`], naming the first tensor's file.
    pub(crate) fn new(
        files: &Files,
        method: Method,
        parts: Vec<(usize, Place)>,
        shape: Option<Vec<i64>>,
        layout: Layout,
    ) -> Result<Self> {
        let mut weight = QuantizedWeight { method, parts, shape: Vec::new(), layout };
        let [rows, columns] = weight.open(files)?.size();
        weight.shape = shape.unwrap_or_else(|| {
            let (rows, columns) = (rows as i64, columns as i64);
            if layout.transposed {
                vec![columns, rows]
            } else {
                vec![rows, columns]
            }
        });
        let wanted =
            weight.stored_shape().iter().try_fold(1usize, |n, size| n.checked_mul(usize::try_from(*size).ok()?));
        let wanted = wanted.filter(|wanted| wanted % columns == 0 && layout.order.fits(wanted / columns, rows));
        match wanted {
            Some(_) => Ok(weight),
            None => Err(weight.malformed(files, FormatError::quantized_shape(&weight.shape, [rows, columns]))),
        }
    }

    /// The shape that the family sees.
    pub(crate) fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// All numbers, in the kind that the method's reference rounds them to.
    pub(crate) fn read(&self, files: &Files) -> Result<Tensor> {
        let shape = self.stored_shape();
        let numbers: i64 = shape.iter().product();
        let rows = self.open(files)?;
        let count = numbers as usize / rows.size()[1];
        self.seen(self.rows(files, rows.as_ref(), 0, count)?.f_view(shape.as_slice())?)
    }

    /// One entry of the first of three dimensions: `[1, …]`. `None` where there are not three, or not so many.
    pub(crate) fn read_expert(&self, files: &Files, expert: usize) -> Result<Option<Tensor>> {
        let mut shape = self.stored_shape();
        if shape.len() != 3 || expert as i64 >= shape[0] || self.layout.order != RowOrder::Same {
            return Ok(None);
        }
        shape[0] = 1;
        let rows = self.open(files)?;
        let count = shape.iter().product::<i64>() as usize / rows.size()[1];
        let tensor = self.rows(files, rows.as_ref(), expert * count, count)?;
        self.seen(tensor.f_view(shape.as_slice())?).map(Some)
    }

    /// The family's shape before the last two dimensions change places.
    fn stored_shape(&self) -> Vec<i64> {
        let mut shape = self.shape.clone();
        if let (true, [.., a, b]) = (self.layout.transposed, shape.as_mut_slice()) {
            std::mem::swap(a, b);
        }
        shape
    }

    /// What the family sees of the stored numbers.
    fn seen(&self, tensor: Tensor) -> Result<Tensor> {
        let tensor = if self.layout.transposed { tensor.f_transpose(-2, -1)? } else { tensor };
        Ok(if self.layout.minus_one { tensor.add_number(-1.0)? } else { tensor })
    }

    /// Rows `first..first + count` of the family's order: `[row, column]`. A part of them at a time is in memory twice.
    fn rows(&self, files: &Files, rows: &dyn Rows, first: usize, count: usize) -> Result<Tensor> {
        /// The numbers that are read at a time, at least.
        const PIECE: usize = 1 << 16;
        let [stored, columns] = rows.size();
        let all = if let RowOrder::From(_) = self.layout.order { count } else { stored };
        let tensor = Tensor::f_empty([count as i64, columns as i64], (kind(rows.rounded_to()), Device::Cpu))?;
        let piece = PIECE.div_ceil(columns).min(count);
        let mut buffer = vec![0f32; piece * columns];
        for start in (0..count).step_by(piece) {
            let len = piece.min(count - start);
            for (row, out) in buffer.chunks_exact_mut(columns).take(len).enumerate() {
                let stored = self.layout.order.stored(first + start + row, all);
                rows.read(stored, out).map_err(|what| self.malformed(files, what))?;
            }
            let read = Tensor::f_from_slice(&buffer[..len * columns])?.f_view([len as i64, columns as i64])?;
            tensor.f_narrow(0, start as i64, len as i64)?.f_copy_(&read)?;
        }
        Ok(tensor)
    }

    fn open<'a>(&'a self, files: &'a Files) -> Result<Box<dyn Rows + 'a>> {
        let parts = self.parts.iter().map(|(file, place)| {
            let whole = Place::contiguous(place.start, place.dtype, place.shape.clone()) == *place;
            let bytes = place.bytes().and_then(|range| files.get(*file)?.1.as_slice().get(range));
            bytes.filter(|_| whole).map(|bytes| Numbers { dtype: place.dtype, shape: &place.shape, bytes })
        });
        let parts: Option<Vec<_>> = parts.collect();
        let parts = parts.ok_or_else(|| self.malformed(files, "a quantised weight's tensor is not contiguous"))?;
        self.method.open(&parts).map_err(|what| self.malformed(files, what))
    }

    fn malformed(&self, files: &Files, what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        let path = self.parts.first().and_then(|(file, _)| files.get(*file)).map(|(path, _)| path.clone());
        Error::malformed(path.unwrap_or_default(), what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_permutations() {
        let all = |order: RowOrder, rows: usize| (0..rows).map(|row| order.stored(row, rows)).collect::<Vec<_>>();
        assert_eq!(all(RowOrder::Pairs { heads: 2 }, 8), [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(all(RowOrder::Groups { heads: 2, kv_heads: 1 }, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(all(RowOrder::Groups { heads: 2, kv_heads: 2 }, 6), [0, 2, 4, 1, 3, 5]);
        assert_eq!(all(RowOrder::From(0), 3), [0, 1, 2]);
        assert!(!RowOrder::Pairs { heads: 3 }.fits(8, 8) && !RowOrder::Pairs { heads: 0 }.fits(8, 8));
        assert!(!RowOrder::Groups { heads: 3, kv_heads: 2 }.fits(7, 7) && !RowOrder::From(2).fits(2, 3));
        assert!(!RowOrder::Groups { heads: 0, kv_heads: 0 }.fits(7, 7) && !RowOrder::Same.fits(2, 3));
    }
}
