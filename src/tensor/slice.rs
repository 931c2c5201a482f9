//! [`Slice`]: a selection of entries of an axis.

use std::fmt;
use std::ops::{Range, RangeFrom, RangeFull, RangeInclusive, RangeTo};

use tch::{Kind, Tensor};

use crate::layer::Layer;
use crate::tensor::scalar::arange;
use crate::{Error, Result};

/// A selection of entries of an axis: Python's slices, and TransformerLens' `pos_slice` and `batch_slice`.
///
/// Negative numbers count from the end. An index removes the axis, like an integer index in Python; every other selection keeps it.
///
/// A slice is made from an integer, a range, a tuple of start, end and step, a list, a mask or a tensor. Integers may be `usize`, `i32` or
/// `i64`, and a [`Layer`] is one, too.
///
/// ```
/// use tch_lens::Slice;
/// use tch::Tensor;
/// let t = Tensor::from_slice(&[10, 11, 12, 13, 14]);
/// let select = |slice: Slice| Vec::<i64>::try_from(slice.apply(&t, 0, "position").unwrap().reshape(-1)).unwrap();
/// assert_eq!(select((-1).into()), [14]); // without the axis
/// assert_eq!(select((1..4).into()), [11, 12, 13]);
/// assert_eq!(select((0, 5, 2).into()), [10, 12, 14]); // start, end, step
/// assert_eq!(select(vec![0, -2].into()), [10, 13]);
/// assert_eq!(select(vec![true, false, false, true, false].into()), [10, 13]);
/// let last = t.size()[0] as usize - 1;
/// assert_eq!(select((last..).into()), select([last].into()));
/// ```
#[derive(Debug, Default)]
pub enum Slice {
    /// All entries.
    #[default]
    All,
    /// One entry; the axis is removed.
    Index(i64),
    /// Every `step`th entry of `start..end`. Bounds outside the axis are clipped, as in Python.
    Range {
        /// The first entry; the start of the axis for `None`.
        start: Option<i64>,
        /// The end, exclusive; the end of the axis for `None`.
        end: Option<i64>,
        /// The step, at least 1.
        step: i64,
    },
    /// Entries by index, in this order.
    List(Vec<i64>),
    /// The entries where the mask is `true`. The mask is as long as the axis.
    Mask(Vec<bool>),
    /// A tensor of integers or bools with one dimension, or an integer without dimensions, which removes the axis.
    Tensor(Tensor),
}

impl Slice {
    /// The selected entries of `tensor` along `dim`. `axis` names the axis in errors.
    ///
    /// A view of `tensor` for an index or a range, otherwise a copy.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`] for an index outside the axis or a mask of another length; [`Error::WrongInput`] for a step below 1;
    /// [`Error::Shape`] if `tensor` has no dimension `dim`, or if the slice is a tensor of another shape or kind.
    pub fn apply(&self, tensor: &Tensor, dim: i64, axis: &'static str) -> Result<Tensor> {
        let len = length(tensor, dim)?;
        match self {
            Slice::All => Ok(tensor.shallow_clone()),
            Slice::Index(index) => Ok(tensor.f_select(dim, self.index(*index, len, axis)?)?),
            Slice::Range { start, end, step } => {
                if *step < 1 {
                    return Err(Error::wrong_input(format!("the step of a slice must be at least 1, but is {step}")));
                }
                Ok(tensor.f_slice(dim, *start, *end, *step)?)
            }
            Slice::List(indices) => {
                let indices = indices.iter().map(|i| self.index(*i, len, axis)).collect::<Result<Vec<_>>>()?;
                Ok(tensor.f_index_select(dim, &Tensor::f_from_slice(&indices)?.f_to_device(tensor.device())?)?)
            }
            Slice::Mask(mask) => self.masked(mask, len, axis)?.apply(tensor, dim, axis),
            Slice::Tensor(tensor_slice) => from_tensor(tensor_slice)?.apply(tensor, dim, axis),
        }
    }

    /// The selected indices of an axis of `len` entries, counted from the start.
    ///
    /// # Errors
    ///
    /// Those of [`Slice::apply`].
    pub fn indices(&self, len: i64, axis: &'static str) -> Result<Vec<i64>> {
        match self {
            Slice::Index(index) => Ok(vec![self.index(*index, len, axis)?]),
            Slice::List(indices) => indices.iter().map(|i| self.index(*i, len, axis)).collect(),
            Slice::Mask(mask) => self.masked(mask, len, axis)?.indices(len, axis),
            Slice::Tensor(tensor) => from_tensor(tensor)?.indices(len, axis),
            Slice::All | Slice::Range { .. } => {
                let all = arange(0..len, tch::Device::Cpu)?;
                Ok(Vec::<i64>::try_from(self.apply(&all, 0, axis)?.f_reshape(-1)?)?)
            }
        }
    }

    /// The slice that a tensor of integers or bools stands for.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for a tensor of another shape or kind.
    pub(crate) fn from_tensor(tensor: &Tensor) -> Result<Slice> {
        from_tensor(tensor)
    }

    /// Whether the selection removes the axis.
    pub fn drops_axis(&self) -> bool {
        match self {
            Slice::Index(_) => true,
            Slice::Tensor(t) => t.dim() == 0,
            _ => false,
        }
    }

    /// The same selection, with an index as a list of one, which keeps the axis.
    pub(crate) fn keeping_axis(&self) -> Slice {
        match self {
            Slice::Index(index) => Slice::List(vec![*index]),
            Slice::Tensor(t) if t.dim() == 0 => Slice::Tensor(t.reshape(1)),
            other => other.clone(),
        }
    }

    /// `index` counted from the start.
    fn index(&self, index: i64, len: i64, axis: &'static str) -> Result<i64> {
        let from_start = if index < 0 { index.saturating_add(len) } else { index };
        if (0..len).contains(&from_start) {
            Ok(from_start)
        } else {
            Err(Error::SliceOutOfRange { slice: self.to_string(), axis, len })
        }
    }

    /// The entries where the mask is true, as a list.
    fn masked(&self, mask: &[bool], len: i64, axis: &'static str) -> Result<Slice> {
        if mask.len() as i64 != len {
            return Err(Error::SliceOutOfRange { slice: self.to_string(), axis, len });
        }
        Ok(Slice::List((0..len).filter(|i| mask[*i as usize]).collect()))
    }
}

/// The slice that a tensor of integers or bools stands for.
fn from_tensor(tensor: &Tensor) -> Result<Slice> {
    match (tensor.f_kind()?, tensor.dim()) {
        (Kind::Bool, 1) => Ok(Slice::Mask(Vec::try_from(tensor)?)),
        (Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Int8 | Kind::Uint8, 0) => {
            Ok(Slice::Index(tensor.f_int64_value(&[])?))
        }
        (Kind::Int64 | Kind::Int | Kind::Int16 | Kind::Int8 | Kind::Uint8, 1) => {
            Ok(Slice::List(Vec::try_from(tensor.f_to_kind(Kind::Int64)?)?))
        }
        _ => Err(Error::Shape {
            what: "the tensor used as a slice".into(),
            found: tensor.size(),
            expected: "integers with at most one dimension, or bools with one".into(),
        }),
    }
}

/// The length of a dimension.
///
/// # Errors
///
/// [`Error::Shape`] if the tensor has no such dimension.
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
        let bound = |bound: &Option<i64>| bound.map(|index| index.to_string()).unwrap_or_default();
        match self {
            Slice::All => write!(f, "the slice :"),
            Slice::Index(index) => write!(f, "index {index}"),
            Slice::Range { start, end, step: 1 } => write!(f, "the slice {}:{}", bound(start), bound(end)),
            Slice::Range { start, end, step } => write!(f, "the slice {}:{}:{step}", bound(start), bound(end)),
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
    Layer: layer => Slice::Index(layer.signed());
    RangeFull: _ => Slice::All;
    (i64, i64): (start, end) => range(Some(start), Some(end), 1);
    (i64, i64, i64): (start, end, step) => range(Some(start), Some(end), step);
    Vec<bool>: mask => Slice::Mask(mask);
    Tensor: tensor => Slice::Tensor(tensor);
    &Tensor: tensor => Slice::Tensor(tensor.shallow_clone());
}

/// Slices from indices of one integer type.
macro_rules! slice_from_integer {
    ($($integer:ty),*) => {
        $(
            slice_from! {
                $integer: index => Slice::Index(signed(index));
                Range<$integer>: r => range(Some(signed(r.start)), Some(signed(r.end)), 1);
                RangeFrom<$integer>: r => range(Some(signed(r.start)), None, 1);
                RangeTo<$integer>: r => range(None, Some(signed(r.end)), 1);
                RangeInclusive<$integer>: r => inclusive(signed(*r.start()), signed(*r.end()));
                Vec<$integer>: list => Slice::List(list.into_iter().map(signed).collect());
                &[$integer]: list => Slice::List(list.iter().copied().map(signed).collect());
            }

            impl<const N: usize> From<[$integer; N]> for Slice {
                fn from(list: [$integer; N]) -> Self {
                    Slice::List(list.into_iter().map(signed).collect())
                }
            }
        )*
    };
}

slice_from_integer!(usize, i32, i64);

/// An index as `i64`. One beyond `i64` becomes `i64::MAX`, which is outside every axis.
fn signed(index: impl TryInto<i64>) -> i64 {
    index.try_into().unwrap_or(i64::MAX)
}

/// `start..=end`; an end of −1 is the end of the axis.
fn inclusive(start: i64, end: i64) -> Slice {
    range(Some(start), (end != -1).then(|| end.saturating_add(1)), 1)
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

    #[test]
    fn every_integer_type_makes_the_same_slices() {
        let indices = |slice: Slice| (slice.drops_axis(), slice.indices(5, "position").unwrap());
        for slices in [
            [Slice::from(3usize), Slice::from(3i32), Slice::from(3i64)],
            [Slice::from(1usize..3), Slice::from(1i32..3), Slice::from(1i64..3)],
            [Slice::from(2usize..), Slice::from(2i32..), Slice::from(2i64..)],
            [Slice::from(..2usize), Slice::from(..2i32), Slice::from(..2i64)],
            [Slice::from(1usize..=3), Slice::from(1i32..=3), Slice::from(1i64..=3)],
            [Slice::from([3usize, 1]), Slice::from([3i32, 1]), Slice::from([3i64, 1])],
            [Slice::from(vec![3usize, 1]), Slice::from(vec![3i32, 1]), Slice::from([3i64, 1].as_slice())],
            [Slice::from(Layer::from(3usize)), Slice::from(3), Slice::from(-2)],
        ] {
            let [first, second, third] = slices.map(indices);
            assert_eq!(first, second);
            assert_eq!(second, third);
        }
        let last = -1;
        assert_eq!(indices(Slice::from(2..=last)).1, [2, 3, 4]);
        assert!(Slice::from(usize::MAX).indices(5, "position").is_err());
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
