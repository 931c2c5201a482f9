//! [`Slice`]: which entries of an axis are meant.

use std::fmt;
use std::ops::{Range, RangeFrom, RangeFull, RangeInclusive, RangeTo};

use tch::{Kind, Tensor};

use crate::tensor::scalar::arange;
use crate::{Error, Result};

/// Which entries of an axis are meant: Python's slices, TransformerLens' `pos_slice` and `batch_slice`.
///
/// Negative numbers count from the end. An index drops the axis; everything else keeps it.
///
/// ```
/// use tch_lens::Slice;
/// use tch::Tensor;
/// let t = Tensor::from_slice(&[10, 11, 12, 13, 14]);
/// let of = |slice: Slice| Vec::<i64>::try_from(slice.apply(&t, 0, "position").unwrap().reshape(-1)).unwrap();
/// assert_eq!(of((-1).into()), [14]); // and no axis is left
/// assert_eq!(of((1..4).into()), [11, 12, 13]);
/// assert_eq!(of((0, 5, 2).into()), [10, 12, 14]); // start, end, step
/// assert_eq!(of(vec![0, -2].into()), [10, 13]);
/// assert_eq!(of(vec![true, false, false, true, false].into()), [10, 13]);
/// ```
#[derive(Debug, Default)]
pub enum Slice {
    /// All of them.
    #[default]
    All,
    /// One, whose axis is dropped.
    Index(i64),
    /// From `start` to before `end`, every `step`th; out-of-range ends are cut off, as in Python.
    Range {
        /// The first.
        start: Option<i64>,
        /// The one after the last.
        end: Option<i64>,
        /// The stride, at least 1.
        step: i64,
    },
    /// These, in this order.
    List(Vec<i64>),
    /// Those that are `true`; as long as the axis.
    Mask(Vec<bool>),
    /// A tensor of indices, or of bools; of no dimension, it drops the axis.
    Tensor(Tensor),
}

impl Slice {
    /// The entries of `tensor` along `dim`; `axis` names that axis in errors.
    ///
    /// A view of `tensor` where the slice is an index or a range, a copy otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`] for an index that the axis does not have or a mask of another length.
    pub fn apply(&self, tensor: &Tensor, dim: i64, axis: &'static str) -> Result<Tensor> {
        let len = length(tensor, dim)?;
        match self {
            Slice::All => Ok(tensor.shallow_clone()),
            Slice::Index(index) => Ok(tensor.f_select(dim, self.index(*index, len, axis)?)?),
            Slice::Range { start, end, step } => {
                if *step < 1 {
                    return Err(Error::wrong_input(format!("a slice's step is at least 1, not {step}")));
                }
                Ok(tensor.f_slice(dim, *start, *end, *step)?)
            }
            Slice::List(indices) => {
                let indices = indices.iter().map(|i| self.index(*i, len, axis)).collect::<Result<Vec<_>>>()?;
                Ok(tensor.f_index_select(dim, &Tensor::f_from_slice(&indices)?.f_to_device(tensor.device())?)?)
            }
            Slice::Mask(mask) => self.indices_of(mask, len, axis)?.apply(tensor, dim, axis),
            Slice::Tensor(indices) => self.of_tensor(indices)?.apply(tensor, dim, axis),
        }
    }

    /// The indices meant, of an axis of `len` entries.
    ///
    /// # Errors
    ///
    /// As [`Slice::apply`].
    pub fn indices(&self, len: i64, axis: &'static str) -> Result<Vec<i64>> {
        match self {
            Slice::Index(index) => Ok(vec![self.index(*index, len, axis)?]),
            Slice::List(indices) => indices.iter().map(|i| self.index(*i, len, axis)).collect(),
            Slice::Mask(mask) => self.indices_of(mask, len, axis)?.indices(len, axis),
            Slice::Tensor(indices) => self.of_tensor(indices)?.indices(len, axis),
            Slice::All | Slice::Range { .. } => {
                let all = arange(0..len, tch::Device::Cpu)?;
                Ok(Vec::<i64>::try_from(self.apply(&all, 0, axis)?.f_reshape(-1)?)?)
            }
        }
    }

    /// Whether the axis goes.
    pub fn drops_axis(&self) -> bool {
        match self {
            Slice::Index(_) => true,
            Slice::Tensor(t) => t.dim() == 0,
            _ => false,
        }
    }

    /// The same entries with the axis kept.
    pub(crate) fn keeping_axis(&self) -> Slice {
        match self {
            Slice::Index(index) => Slice::List(vec![*index]),
            Slice::Tensor(t) if t.dim() == 0 => Slice::Tensor(t.reshape(1)),
            other => other.clone(),
        }
    }

    fn index(&self, index: i64, len: i64, axis: &'static str) -> Result<i64> {
        let positive = if index < 0 { index.saturating_add(len) } else { index };
        if (0..len).contains(&positive) {
            Ok(positive)
        } else {
            Err(Error::SliceOutOfRange { slice: self.to_string(), axis, len })
        }
    }

    fn indices_of(&self, mask: &[bool], len: i64, axis: &'static str) -> Result<Slice> {
        if mask.len() as i64 != len {
            return Err(Error::SliceOutOfRange { slice: self.to_string(), axis, len });
        }
        Ok(Slice::List((0..len).filter(|i| mask[*i as usize]).collect()))
    }

    fn of_tensor(&self, indices: &Tensor) -> Result<Slice> {
        match (indices.f_kind()?, indices.dim()) {
            (Kind::Bool, 1) => Ok(Slice::Mask(Vec::try_from(indices)?)),
            (Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Int8 | Kind::Uint8, 0) => {
                Ok(Slice::Index(indices.f_int64_value(&[])?))
            }
            (Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Int8 | Kind::Uint8, 1) => {
                Ok(Slice::List(Vec::try_from(indices.f_to_kind(Kind::Int64)?)?))
            }
            _ => Err(Error::Shape {
                what: "a slice's tensor".into(),
                found: indices.size(),
                expected: "whole numbers of no or one dimension, or bools of one".into(),
            }),
        }
    }
}

/// The length of a dimension, as an error rather than a panic where there is none.
fn length(tensor: &Tensor, dim: i64) -> Result<i64> {
    let size = tensor.size();
    let index = if dim < 0 { dim + size.len() as i64 } else { dim };
    usize::try_from(index).ok().and_then(|i| size.get(i)).copied().ok_or_else(|| Error::Shape {
        what: "the tensor to slice".into(),
        found: size.clone(),
        expected: format!("a dimension {dim}"),
    })
}

impl Clone for Slice {
    fn clone(&self) -> Self {
        match self {
            Slice::All => Slice::All,
            Slice::Index(index) => Slice::Index(*index),
            Slice::Range { start, end, step } => Slice::Range { start: *start, end: *end, step: *step },
            Slice::List(list) => Slice::List(list.clone()),
            Slice::Mask(mask) => Slice::Mask(mask.clone()),
            Slice::Tensor(tensor) => Slice::Tensor(tensor.shallow_clone()),
        }
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |end: &Option<i64>| end.map(|e| e.to_string()).unwrap_or_default();
        match self {
            Slice::All => write!(f, "the slice :"),
            Slice::Index(index) => write!(f, "index {index}"),
            Slice::Range { start, end: last, step: 1 } => write!(f, "the slice {}:{}", end(start), end(last)),
            Slice::Range { start, end: last, step } => write!(f, "the slice {}:{}:{step}", end(start), end(last)),
            Slice::List(list) => match list.as_slice() {
                [index] => write!(f, "index {index}"),
                _ => write!(f, "the list {list:?}"),
            },
            Slice::Mask(mask) => write!(f, "a mask of {} entries", mask.len()),
            Slice::Tensor(tensor) => write!(f, "a tensor of shape {:?}", tensor.size()),
        }
    }
}

fn range(start: Option<i64>, end: Option<i64>, step: i64) -> Slice {
    Slice::Range { start, end, step }
}

macro_rules! slice_from {
    ($($type:ty: $pattern:pat => $slice:expr;)*) => {
        $(impl From<$type> for Slice {
            fn from($pattern: $type) -> Self {
                $slice
            }
        })*
    };
}

slice_from! {
    i64: index => Slice::Index(index);
    RangeFull: _ => Slice::All;
    Range<i64>: r => range(Some(r.start), Some(r.end), 1);
    RangeFrom<i64>: r => range(Some(r.start), None, 1);
    RangeTo<i64>: r => range(None, Some(r.end), 1);
    RangeInclusive<i64>: r => range(Some(*r.start()), (*r.end() != -1).then(|| *r.end() + 1), 1);
    (i64, i64): (start, end) => range(Some(start), Some(end), 1);
    (i64, i64, i64): (start, end, step) => range(Some(start), Some(end), step);
    Vec<i64>: list => Slice::List(list);
    &[i64]: list => Slice::List(list.to_vec());
    Vec<bool>: mask => Slice::Mask(mask);
    Tensor: tensor => Slice::Tensor(tensor);
    &Tensor: tensor => Slice::Tensor(tensor.shallow_clone());
}

impl<const N: usize> From<[i64; N]> for Slice {
    fn from(list: [i64; N]) -> Self {
        Slice::List(list.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Python's `range(len)[start:end:step]`.
    fn python(len: i64, start: Option<i64>, end: Option<i64>, step: i64) -> Vec<i64> {
        let clamp = |i: i64| if i < 0 { (i + len).max(0) } else { i.min(len) };
        let (start, end) = (clamp(start.unwrap_or(0)), clamp(end.unwrap_or(len)));
        (start..end).step_by(step as usize).collect()
    }

    proptest! {
        #[test]
        fn ranges_are_python_s(len in 0i64..9, start in prop::option::of(-12i64..12), end in prop::option::of(-12i64..12), step in 1i64..4) {
            let found = Slice::Range { start, end, step }.indices(len, "position").unwrap();
            prop_assert_eq!(found, python(len, start, end, step));
        }

        #[test]
        fn an_index_is_there_or_an_error(len in 0i64..9, index in -12i64..12) {
            let found = Slice::Index(index).indices(len, "position");
            if (-len..len).contains(&index) {
                prop_assert_eq!(found.unwrap(), [index.rem_euclid(len)]);
            } else {
                let refused = matches!(found, Err(Error::SliceOutOfRange { .. }));
                prop_assert!(refused);
            }
        }

        #[test]
        fn masks_tensors_and_lists_agree(mask in prop::collection::vec(any::<bool>(), 0..9)) {
            let list: Vec<i64> = (0..mask.len() as i64).filter(|i| mask[*i as usize]).collect();
            let len = mask.len() as i64;
            prop_assert_eq!(Slice::from(mask.clone()).indices(len, "position").unwrap(), list.clone());
            prop_assert_eq!(Slice::from(Tensor::from_slice(&mask)).indices(len, "position").unwrap(), list.clone());
            prop_assert_eq!(Slice::from(Tensor::from_slice(&list)).indices(len, "position").unwrap(), list);
        }
    }
}
