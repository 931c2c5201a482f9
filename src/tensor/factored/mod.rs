//! [`FactoredMatrix`]: a matrix of low rank, stored as its two factors.

mod select;
mod spectrum;

use std::fmt;

use tch::Tensor;

use crate::tensor::scalar::Scalar;
use crate::{Error, Result};

pub use spectrum::Svd;
pub(crate) use spectrum::{frobenius, positive};

/// A matrix `A B` of low rank, stored as `A` `[…, ldim, mdim]` and `B` `[…, mdim, rdim]`: TransformerLens' `FactoredMatrix`.
///
/// The circuits of a head are such matrices: they are `d_model × d_model`, with a rank of at most `d_head`. Norms, singular values and
/// eigenvalues are computed from the factors; only [`FactoredMatrix::ab`] forms the product. Leading dimensions are broadcast.
/// Decompositions and norms are computed in fp32 or fp64.
///
/// ```
/// use tch_lens::HookedTransformer;
/// let model = HookedTransformer::toy()?;
/// // The OV circuit of head 1 in layer 2 from input token to output token, [d_vocab, d_vocab], and how far the head copies tokens
/// // (Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits").
/// let ov = model.ov(..)?.index([2, 1])?;
/// let full = ov.left_matmul(&model.w_e()?)?.matmul(&model.w_u()?)?;
/// assert_eq!(full.shape(), [1047, 1047]);
/// let eigenvalues = full.eigenvalues()?; // [d_head], complex
/// let copying = eigenvalues.sum(None).real() / eigenvalues.abs().sum(None);
/// assert!((-1.0..=1.0).contains(&copying.double_value(&[])));
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Debug)]
pub struct FactoredMatrix {
    a: Tensor, // […, ldim, mdim]
    b: Tensor, // […, mdim, rdim]
}

impl FactoredMatrix {
    /// The matrix `A B` with the factors `a`, `[…, ldim, mdim]`, and `b`, `[…, mdim, rdim]`.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tch_lens::FactoredMatrix;
    /// let (a, b) = (Tensor::randn([7, 1, 20, 3], (Kind::Float, Device::Cpu)), Tensor::randn([5, 3, 30], (Kind::Float, Device::Cpu)));
    /// let matrix = FactoredMatrix::new(&a, &b)?;
    /// assert_eq!(matrix.shape(), [7, 5, 20, 30]);
    /// assert_eq!(matrix.to_string(), "FactoredMatrix: Shape([7, 5, 20, 30]), Hidden Dim(3)");
    /// let error = FactoredMatrix::new(&b, &a).unwrap_err();
    /// assert_eq!(error.to_string(), "the right factor has shape [7, 1, 20, 3], expected [.., 30, rdim]: the left factor is [5, 3, 30]");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if a factor has fewer than two dimensions, the inner dimensions differ, or the leading ones do not broadcast.
    pub fn new(a: &Tensor, b: &Tensor) -> Result<Self> {
        let (a_size, b_size) = (a.size(), b.size());
        let [a_leading @ .., ldim, mdim] = a_size.as_slice() else {
            return Err(shape("the left factor", &a_size, "[.., ldim, mdim]".into()));
        };
        let [b_leading @ .., b_mdim, rdim] = b_size.as_slice() else {
            return Err(shape("the right factor", &b_size, "[.., mdim, rdim]".into()));
        };
        if mdim != b_mdim {
            let expected = format!("[.., {mdim}, rdim]: the left factor is {a_size:?}");
            return Err(shape("the right factor", &b_size, expected));
        }
        let leading = broadcast(a_leading, b_leading).ok_or_else(|| {
            let expected = format!("leading dimensions that broadcast with {a_leading:?}");
            shape("the right factor", &b_size, expected)
        })?;
        let full_shape = |last: [i64; 2]| [leading.as_slice(), &last].concat();
        let a = a.f_expand(full_shape([*ldim, *mdim]), false)?;
        let b = b.f_expand(full_shape([*mdim, *rdim]), false)?;
        Ok(FactoredMatrix { a, b })
    }

    /// The left factor: `[…, ldim, mdim]`.
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// The right factor: `[…, mdim, rdim]`.
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// The number of rows.
    pub fn ldim(&self) -> i64 {
        self.a.size()[self.ndim() - 2]
    }

    /// The dimension between the factors. The rank is at most this.
    pub fn mdim(&self) -> i64 {
        self.a.size()[self.ndim() - 1]
    }

    /// The number of columns.
    pub fn rdim(&self) -> i64 {
        self.b.size()[self.ndim() - 1]
    }

    /// The shape of the product: `[…, ldim, rdim]`.
    pub fn shape(&self) -> Vec<i64> {
        let mut shape = self.a.size();
        shape.pop();
        shape.push(self.rdim());
        shape
    }

    /// The number of dimensions of the product.
    pub fn ndim(&self) -> usize {
        self.a.dim()
    }

    /// The product `A B`: `[…, ldim, rdim]`. It needs the memory of the full matrix.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if libtorch fails, for example for lack of memory.
    pub fn ab(&self) -> Result<Tensor> {
        Ok(self.a.f_matmul(&self.b)?)
    }

    /// The product in the other order, `B A`: `[…, mdim, mdim]`. The matrix must be square.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if the matrix is not square.
    pub fn ba(&self) -> Result<Tensor> {
        if self.ldim() != self.rdim() {
            let expected = "a square matrix, which B A and eigenvalues need".into();
            return Err(shape("the factored matrix", &self.shape(), expected));
        }
        Ok(self.b.f_matmul(&self.a)?)
    }

    /// `(A B)ᵀ = Bᵀ Aᵀ`: `[…, rdim, ldim]`; TransformerLens' `.T`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if libtorch fails, for example for lack of memory.
    pub fn t(&self) -> Result<Self> {
        Ok(FactoredMatrix { a: transposed(&self.b)?, b: transposed(&self.a)? })
    }

    /// `(A B) right` for a matrix `[…, rdim, n]`; TransformerLens' `self @ right`. The result has the smaller inner dimension, `mdim` or
    /// `rdim`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if `right` has fewer than two dimensions or not `rdim` rows, or the leading dimensions do not broadcast.
    pub fn matmul(&self, right: &Tensor) -> Result<Self> {
        let size = right.size();
        if size.len() < 2 || size[size.len() - 2] != self.rdim() {
            return Err(shape("the right matrix", &size, format!("[.., {}, n]", self.rdim())));
        }
        if self.rdim() > self.mdim() {
            Self::new(&self.a, &product(&self.b, right)?)
        } else {
            Self::new(&self.ab()?, right)
        }
    }

    /// `left (A B)` for a matrix `[…, n, ldim]`; TransformerLens' `left @ self`. The result has the smaller inner dimension, `mdim` or
    /// `ldim`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if `left` has fewer than two dimensions or not `ldim` columns, or the leading dimensions do not broadcast.
    pub fn left_matmul(&self, left: &Tensor) -> Result<Self> {
        let size = left.size();
        if size.len() < 2 || size[size.len() - 1] != self.ldim() {
            return Err(shape("the left matrix", &size, format!("[.., n, {}]", self.ldim())));
        }
        if self.ldim() > self.mdim() {
            Self::new(&product(left, &self.a)?, &self.b)
        } else {
            Self::new(left, &self.ab()?)
        }
    }

    /// `(A B)(A' B')`, with `right` as `A' B'`; TransformerLens' `self @ right`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if `right` does not have as many rows as this matrix has columns, or the leading dimensions do not broadcast.
    pub fn compose(&self, right: &FactoredMatrix) -> Result<Self> {
        self.matmul(&right.a)?.matmul(&right.b)
    }

    /// `(A B) v` for a vector `[rdim]`: `[…, ldim]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if `v` does not have the shape `[rdim]`.
    pub fn matvec(&self, v: &Tensor) -> Result<Tensor> {
        if v.size() != [self.rdim()] {
            return Err(shape("the vector", &v.size(), format!("[{}]", self.rdim())));
        }
        let middle = self.b.f_matmul(&v.f_unsqueeze(-1)?)?; // […, mdim, 1]
        Ok(self.a.f_matmul(&middle)?.f_squeeze_dim(-1)?)
    }

    /// `v (A B)` for a vector `[ldim]`: `[…, rdim]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] if `v` does not have the shape `[ldim]`.
    pub fn vecmat(&self, v: &Tensor) -> Result<Tensor> {
        if v.size() != [self.ldim()] {
            return Err(shape("the vector", &v.size(), format!("[{}]", self.ldim())));
        }
        let middle = v.f_unsqueeze(0)?.f_matmul(&self.a)?; // […, 1, mdim]
        Ok(middle.f_matmul(&self.b)?.f_squeeze_dim(-2)?)
    }

    /// The matrix times a number.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if libtorch fails, for example for lack of memory.
    pub fn scale(&self, factor: f64) -> Result<Self> {
        Ok(FactoredMatrix { a: self.a.mul_number(factor)?, b: self.b.shallow_clone() })
    }
}

impl Clone for FactoredMatrix {
    /// A clone that shares the memory of the factors.
    fn clone(&self) -> Self {
        FactoredMatrix { a: self.a.shallow_clone(), b: self.b.shallow_clone() }
    }
}

impl fmt::Display for FactoredMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FactoredMatrix: Shape({:?}), Hidden Dim({})", self.shape(), self.mdim())
    }
}

/// The shape that two shapes broadcast to.
fn broadcast(a: &[i64], b: &[i64]) -> Option<Vec<i64>> {
    let n = a.len().max(b.len());
    let padded = |size: &[i64], i: usize| (i + size.len()).checked_sub(n).map_or(1, |i| size[i]);
    (0..n)
        .map(|i| match (padded(a, i), padded(b, i)) {
            (x, y) if x == y || y == 1 => Some(x),
            (1, y) => Some(y),
            _ => None,
        })
        .collect()
}

/// `left right`.
///
/// # Errors
///
/// [`Error::Shape`] if the leading dimensions do not broadcast.
fn product(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let leading = |t: &Tensor| t.size()[..t.dim() - 2].to_vec();
    let (a, b) = (leading(left), leading(right));
    if broadcast(&a, &b).is_none() {
        let expected = format!("leading dimensions that broadcast with {a:?}");
        return Err(shape("the right matrix", &right.size(), expected));
    }
    Ok(left.f_matmul(right)?)
}

fn shape(what: &str, found: &[i64], expected: String) -> Error {
    Error::Shape { what: what.into(), found: found.to_vec(), expected }
}

fn transposed(t: &Tensor) -> Result<Tensor> {
    Ok(t.f_transpose(-2, -1)?)
}
