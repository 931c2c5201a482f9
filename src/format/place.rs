//! [`Place`]: where in a file a tensor lies.

use std::ops::Range;

use super::Dtype;

/// Where a tensor lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// The first entry's first byte.
    pub(crate) start: usize,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<i64>,
    /// In entries, none negative.
    pub(crate) strides: Vec<i64>,
}

impl Place {
    /// A contiguous tensor that begins at byte `start`.
    pub(crate) fn contiguous(start: usize, dtype: Dtype, shape: Vec<i64>) -> Self {
        let mut strides = vec![1i64; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i].saturating_mul(shape[i]);
        }
        Place { start, dtype, shape, strides }
    }

    /// The bytes from the first entry to the end of the last; `None` where no file has so many, or where a stride or size is
    /// negative. Of a tensor without entries, an empty range.
    pub(crate) fn bytes(&self) -> Option<Range<usize>> {
        if self.shape.len() != self.strides.len() {
            return None;
        }
        let mut entries = 1usize;
        for (n, stride) in self.shape.iter().zip(&self.strides) {
            let (n, stride) = (usize::try_from(*n).ok()?, usize::try_from(*stride).ok()?);
            if n > 0 && !self.shape.contains(&0) {
                entries = entries.checked_add((n - 1).checked_mul(stride)?)?;
            }
        }
        if self.shape.contains(&0) {
            entries = 0;
        }
        let end = self.start.checked_add(entries.checked_mul(self.dtype.width())?)?;
        Some(self.start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_range_of_bytes_or_none() {
        let bytes = |start, shape: &[i64], strides: &[i64]| {
            Place { start, dtype: Dtype::F32, shape: shape.into(), strides: strides.into() }.bytes()
        };
        assert_eq!(bytes(8, &[], &[]), Some(8..12));
        assert_eq!(bytes(8, &[2, 3], &[3, 1]), Some(8..32));
        assert_eq!(bytes(8, &[2, 3], &[1, 5]), Some(8..56)); // the last entry is the twelfth
        assert_eq!(bytes(8, &[7, 3], &[0, 0]), Some(8..12)); // expanded
        assert_eq!(bytes(8, &[i64::MAX, 0], &[i64::MAX, 1]), Some(8..8));
        assert_eq!(bytes(8, &[0, i64::MAX], &[1, i64::MAX]), Some(8..8));
        for (start, shape, strides) in [
            (0, &[2][..], &[][..]),
            (0, &[-1], &[1]),
            (0, &[2], &[-1]),
            (0, &[2, 2], &[i64::MAX, i64::MAX]),
            (0, &[i64::MAX], &[1]),
            (usize::MAX, &[1], &[1]),
            (usize::MAX - 3, &[1], &[1]),
        ] {
            assert_eq!(bytes(start, shape, strides), None, "{shape:?} {strides:?} from {start}");
        }
        assert_eq!(Place::contiguous(0, Dtype::I8, vec![i64::MAX, i64::MAX, 2]).bytes(), None);
        assert_eq!(Place::contiguous(4, Dtype::F64, vec![2, 3, 5]).strides, [15, 5, 1]);
    }
}
