//! Parts of a [`FactoredMatrix`]: entries of its leading dimensions, rows and columns.

use tch::Tensor;

use super::FactoredMatrix;
use crate::tensor::slice::Slice;
use crate::{Error, Result};

impl FactoredMatrix {
    /// Selects entries of the leading dimensions, then rows, then columns. Dimensions without a slice keep all entries.
    ///
    /// An index removes a leading dimension. An index of rows or columns keeps the dimension, so that the result is a matrix, as in
    /// TransformerLens.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, Slice};
    /// let ov = HookedTransformer::toy()?.ov(..)?; // [layer, head, d_model, d_model]
    /// assert_eq!(ov.index([2, 1])?.shape(), [128, 128]);
    /// assert_eq!(ov.index([Slice::from(2), (..).into(), (0..5).into(), 7.into()])?.shape(), [4, 5, 1]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`Slice::apply`]; [`Error::WrongInput`] for more slices than dimensions.
    pub fn index<S: Into<Slice>>(&self, index: impl IntoIterator<Item = S>) -> Result<Self> {
        let index: Vec<Slice> = index.into_iter().map(Into::into).collect();
        let ndim = self.ndim();
        if index.len() > ndim {
            let (given, shape) = (index.len(), self.shape());
            return Err(Error::wrong_input(format!(
                "a factored matrix of shape {shape:?} takes at most {ndim} slices, but {given} were given"
            )));
        }
        let (mut a, mut b) = (self.a.shallow_clone(), self.b.shallow_clone());
        let mut dim = 0;
        for (axis, slice) in index.iter().enumerate() {
            match ndim - axis {
                2 => a = keeping_axis(slice, &a, -2, "row")?,
                1 => b = keeping_axis(slice, &b, -1, "column")?,
                _ => {
                    (a, b) = (slice.apply(&a, dim, "leading")?, slice.apply(&b, dim, "leading")?);
                    dim += i64::from(!slice.drops_axis());
                }
            }
        }
        Ok(FactoredMatrix { a, b })
    }

    /// The selected rows: `[…, rows, rdim]`.
    ///
    /// # Errors
    ///
    /// Those of [`Slice::apply`].
    pub fn rows(&self, rows: impl Into<Slice>) -> Result<Self> {
        let a = keeping_axis(&rows.into(), &self.a, -2, "row")?;
        Ok(FactoredMatrix { a, b: self.b.shallow_clone() })
    }

    /// The selected columns: `[…, ldim, columns]`.
    ///
    /// # Errors
    ///
    /// Those of [`Slice::apply`].
    pub fn cols(&self, columns: impl Into<Slice>) -> Result<Self> {
        let b = keeping_axis(&columns.into(), &self.b, -1, "column")?;
        Ok(FactoredMatrix { a: self.a.shallow_clone(), b })
    }

    /// The first `k` entries of the product along every dimension, for inspection.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if libtorch fails, for example for lack of memory.
    pub fn get_corner(&self, k: i64) -> Result<Tensor> {
        self.index(vec![Slice::from(..k); self.ndim()])?.ab()
    }

    /// The matrix with an additional leading dimension of size one before dimension `dim`.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] if `dim` is larger than the number of leading dimensions.
    pub fn unsqueeze(&self, dim: usize) -> Result<Self> {
        let leading = self.ndim() - 2;
        if dim > leading {
            return Err(Error::wrong_input(format!(
                "a dimension can be inserted at 0 to {leading}, before the rows and columns, not at {dim}"
            )));
        }
        Ok(FactoredMatrix { a: self.a.f_unsqueeze(dim as i64)?, b: self.b.f_unsqueeze(dim as i64)? })
    }
}

/// The selected entries of a dimension, which an index keeps with length one.
fn keeping_axis(slice: &Slice, t: &Tensor, dim: i64, axis: &'static str) -> Result<Tensor> {
    let some = slice.apply(t, dim, axis)?;
    Ok(if slice.drops_axis() { some.f_unsqueeze(dim)? } else { some })
}
