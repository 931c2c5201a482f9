//! [`FactoredMatrix`]: a large matrix of low rank, kept as its two factors.

use std::fmt;

use tch::{Kind, Tensor};

use crate::tensor::scalar::Scalar;
use crate::tensor::slice::Slice;
use crate::{Error, Result};

/// A matrix `A B` of low rank, kept as `A` `[…, ldim, mdim]` and `B` `[…, mdim, rdim]`: TransformerLens' `FactoredMatrix`.
///
/// A head's circuits are such: `d_model × d_model` with only `d_head` in the middle. Norms, singular values and eigenvalues
/// come from the factors; only [`FactoredMatrix::ab`] forms the product. Leading dimensions are broadcast. Decompositions and
/// norms are computed in fp32 or better.
///
/// ```
/// use tch_lens::HookedTransformer;
/// let model = HookedTransformer::toy()?;
/// // What head 1 of layer 2 does from token to token, [d_vocab, d_vocab], and whether it copies: Elhage et al. 2021,
/// // "A Mathematical Framework for Transformer Circuits".
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

/// The singular value decomposition of a [`FactoredMatrix`]: `U diag(S) Vᵀ`, with `k = min(ldim, mdim, rdim)`.
#[derive(Debug)]
pub struct Svd {
    /// Left singular vectors, as columns: `[…, ldim, k]`.
    pub u: Tensor,
    /// Singular values, falling: `[…, k]`.
    pub s: Tensor,
    /// Right singular vectors, as columns: `[…, rdim, k]`.
    pub v: Tensor,
}

impl Svd {
    /// Right singular vectors, as rows: `[…, k, rdim]`, a view.
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn vh(&self) -> Result<Tensor> {
        transposed(&self.v)
    }
}

impl FactoredMatrix {
    /// `A B`, of `a` `[…, ldim, mdim]` and `b` `[…, mdim, rdim]`.
    ///
    /// ```
    /// use tch::{Device, Kind, Tensor};
    /// use tch_lens::FactoredMatrix;
    /// let (a, b) = (Tensor::randn([7, 1, 20, 3], (Kind::Float, Device::Cpu)), Tensor::randn([5, 3, 30], (Kind::Float, Device::Cpu)));
    /// let matrix = FactoredMatrix::new(&a, &b)?;
    /// assert_eq!(matrix.shape(), [7, 5, 20, 30]);
    /// assert_eq!(matrix.to_string(), "FactoredMatrix: Shape([7, 5, 20, 30]), Hidden Dim(3)");
    /// let error = FactoredMatrix::new(&b, &a).unwrap_err();
    /// assert_eq!(error.to_string(), "the right factor has shape [7, 1, 20, 3], expected [.., 30, rdim]: the left one is [5, 3, 30]");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] where a factor is no matrix, the inner dimensions differ or the leading ones cannot be broadcast.
    pub fn new(a: &Tensor, b: &Tensor) -> Result<Self> {
        let (a_size, b_size) = (a.size(), b.size());
        let [a_leading @ .., ldim, mdim] = a_size.as_slice() else {
            return Err(shape("the left factor", &a_size, "[.., ldim, mdim]".into()));
        };
        let [b_leading @ .., b_mdim, rdim] = b_size.as_slice() else {
            return Err(shape("the right factor", &b_size, "[.., mdim, rdim]".into()));
        };
        if mdim != b_mdim {
            let expected = format!("[.., {mdim}, rdim]: the left one is {a_size:?}");
            return Err(shape("the right factor", &b_size, expected));
        }
        let leading = broadcast(a_leading, b_leading).ok_or_else(|| {
            let expected = format!("leading dimensions that can be broadcast with {a_leading:?}");
            shape("the right factor", &b_size, expected)
        })?;
        let wide = |last: [i64; 2]| [leading.as_slice(), &last].concat();
        Ok(FactoredMatrix { a: a.f_expand(wide([*ldim, *mdim]), false)?, b: b.f_expand(wide([*mdim, *rdim]), false)? })
    }

    /// The left factor: `[…, ldim, mdim]`.
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// The right factor: `[…, mdim, rdim]`.
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// Rows.
    pub fn ldim(&self) -> i64 {
        self.a.size()[self.ndim() - 2]
    }

    /// The dimension between the factors, which bounds the rank.
    pub fn mdim(&self) -> i64 {
        self.a.size()[self.ndim() - 1]
    }

    /// Columns.
    pub fn rdim(&self) -> i64 {
        self.b.size()[self.ndim() - 1]
    }

    /// The product's shape: `[…, ldim, rdim]`.
    pub fn shape(&self) -> Vec<i64> {
        let mut shape = self.a.size();
        shape.pop();
        shape.push(self.rdim());
        shape
    }

    /// How many dimensions the product has.
    pub fn ndim(&self) -> usize {
        self.a.dim()
    }

    // --- products -----------------------------------------------------------------------------

    /// The product `A B`: `[…, ldim, rdim]`. As large as the matrix: mind the memory.
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn ab(&self) -> Result<Tensor> {
        Ok(self.a.f_matmul(&self.b)?)
    }

    /// The product the other way round, `B A`: `[…, mdim, mdim]`, of a square matrix.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] where the matrix is not square.
    pub fn ba(&self) -> Result<Tensor> {
        if self.ldim() != self.rdim() {
            let expected = "a square matrix: the product the other way round, and eigenvalues, are of one".into();
            return Err(shape("the factored matrix", &self.shape(), expected));
        }
        Ok(self.b.f_matmul(&self.a)?)
    }

    /// `(A B)ᵀ = Bᵀ Aᵀ`: `[…, rdim, ldim]`; TransformerLens' `.T`.
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn t(&self) -> Result<Self> {
        Ok(FactoredMatrix { a: transposed(&self.b)?, b: transposed(&self.a)? })
    }

    /// `(A B) right`, of a matrix `[…, rdim, n]`; TransformerLens' `self @ right`. The smaller of the two inner dimensions stays.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] where the inner dimensions differ, or `right` is no matrix.
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

    /// `left (A B)`, of a matrix `[…, n, ldim]`; TransformerLens' `left @ self`. The smaller of the two inner dimensions stays.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] where the inner dimensions differ, or `left` is no matrix.
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

    /// `(A B)(A' B')`; TransformerLens' `self @ right`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] where `right` has not as many rows as this matrix has columns.
    pub fn compose(&self, right: &FactoredMatrix) -> Result<Self> {
        self.matmul(&right.a)?.matmul(&right.b)
    }

    /// `(A B) v`, of a vector `[rdim]`: `[…, ldim]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for anything but such a vector.
    pub fn matvec(&self, v: &Tensor) -> Result<Tensor> {
        if v.size() != [self.rdim()] {
            return Err(shape("the vector", &v.size(), format!("[{}]", self.rdim())));
        }
        let middle = self.b.f_matmul(&v.f_unsqueeze(-1)?)?; // […, mdim, 1]
        Ok(self.a.f_matmul(&middle)?.f_squeeze_dim(-1)?)
    }

    /// `v (A B)`, of a vector `[ldim]`: `[…, rdim]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for anything but such a vector.
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
    /// None but libtorch's own.
    pub fn scale(&self, factor: f64) -> Result<Self> {
        Ok(FactoredMatrix { a: self.a.mul_number(factor)?, b: self.b.shallow_clone() })
    }

    // --- what the factors tell of the product -------------------------------------------------

    /// The Frobenius norm, `√Σ (A B)²`: `[…]`.
    ///
    /// Of `A = Q R` with orthogonal `Q`, it is the norm of `R B`, `[…, mdim, rdim]`.
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn norm(&self) -> Result<Tensor> {
        frobenius(&self.without_left()?)
    }

    /// The eigenvalues of a square matrix: `[…, mdim]`, complex, in no order.
    ///
    /// Those of `B A`: `A B x = λ x` makes `B x` an eigenvector of `B A` with the same eigenvalue. All others of `A B` are zero.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] where the matrix is not square.
    pub fn eigenvalues(&self) -> Result<Tensor> {
        let wide = FactoredMatrix { a: wide(&self.a)?, b: wide(&self.b)? };
        Ok(wide.ba()?.f_linalg_eigvals()?)
    }

    /// The singular value decomposition, `A B = U diag(S) Vᵀ`, without forming `A B`.
    ///
    /// Of `A = Q R` and `Bᵀ = Q' R'`, it is that of the small `R R'ᵀ`, turned by `Q` and `Q'`.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let svd = HookedTransformer::toy()?.ov(2)?.svd()?;
    /// assert_eq!(svd.u.size(), [4, 128, 32]); // [head, d_model, d_head]
    /// assert_eq!(svd.s.size(), [4, 32]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn svd(&self) -> Result<Svd> {
        let (qa, ra) = qr(&self.a)?; // […, ldim, p], […, p, mdim]
        let (qb, rb) = qr(&transposed(&self.b)?)?; // […, rdim, q], […, q, mdim]
        let (u, s, v) = ra.f_matmul(&transposed(&rb)?)?.f_svd(true, true)?;
        Ok(Svd { u: qa.f_matmul(&u)?, s, v: qb.f_matmul(&v)? })
    }

    /// The same matrix as `U √S` times `√S Vᵀ`: orthogonal factors that share the singular values evenly.
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn make_even(&self) -> Result<Self> {
        let svd = self.svd()?;
        let root = svd.s.f_sqrt()?;
        let a = svd.u.f_mul(&root.f_unsqueeze(-2)?)?; // […, ldim, k]
        let b = svd.vh()?.f_mul(&root.f_unsqueeze(-1)?)?; // […, k, rdim]
        Ok(FactoredMatrix { a, b })
    }

    /// The matrix without the orthogonal factor on its left: `S Vᵀ`, `[…, k, rdim]`.
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn collapse_l(&self) -> Result<Tensor> {
        let svd = self.svd()?;
        Ok(svd.vh()?.f_mul(&svd.s.f_unsqueeze(-1)?)?)
    }

    /// The matrix without the orthogonal factor on its right: `U S`, `[…, ldim, k]`.
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn collapse_r(&self) -> Result<Tensor> {
        let svd = self.svd()?;
        Ok(svd.u.f_mul(&svd.s.f_unsqueeze(-2)?)?)
    }

    /// How much of this matrix goes into another: `‖W₁ W₂‖ / (‖W₁‖ ‖W₂‖)` in Frobenius norms, of `self` as `W₁`: `[…]`.
    ///
    /// TransformerLens' `composition_scores`, of Elhage et al. 2021, with leading dimensions broadcast; zero where a matrix is.
    /// [`all_composition_scores`](crate::HookedTransformer::all_composition_scores) has them for all pairs of heads.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] where `right` has not as many rows as this matrix has columns.
    pub fn composition_score(&self, right: &FactoredMatrix) -> Result<Tensor> {
        if self.rdim() != right.ldim() {
            return Err(shape("the right matrix", &right.shape(), format!("[.., {}, n]", self.rdim())));
        }
        let (left, right) = (self.without_left()?, right.without_right()?);
        let norm = frobenius(&product(&left, &right)?)?;
        Ok(norm.f_div(&positive(&frobenius(&left)?)?)?.f_div(&positive(&frobenius(&right)?)?)?)
    }

    /// The product up to an orthogonal factor on its left: `[…, min(ldim, mdim), rdim]`.
    pub(crate) fn without_left(&self) -> Result<Tensor> {
        Ok(qr(&self.a)?.1.f_matmul(&wide(&self.b)?)?)
    }

    /// The product up to an orthogonal factor on its right: `[…, ldim, min(rdim, mdim)]`.
    pub(crate) fn without_right(&self) -> Result<Tensor> {
        transposed(&self.t()?.without_left()?)
    }

    // --- parts --------------------------------------------------------------------------------

    /// Some entries of the leading dimensions, then of the rows, then of the columns; what is not given is taken whole.
    ///
    /// An index drops a leading dimension; of rows and columns it keeps it, so that a matrix stays one, as in TransformerLens.
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
    /// [`Error::SliceOutOfRange`]; [`Error::WrongInput`] for more slices than there are dimensions.
    pub fn index<S: Into<Slice>>(&self, index: impl IntoIterator<Item = S>) -> Result<Self> {
        let index: Vec<Slice> = index.into_iter().map(Into::into).collect();
        let ndim = self.ndim();
        if index.len() > ndim {
            let (given, shape) = (index.len(), self.shape());
            return Err(Error::wrong_input(format!(
                "{given} slices are too many for a factored matrix of shape {shape:?}"
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

    /// Some of the rows: `[…, rows, rdim]`.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`].
    pub fn rows(&self, rows: impl Into<Slice>) -> Result<Self> {
        let a = keeping_axis(&rows.into(), &self.a, -2, "row")?;
        Ok(FactoredMatrix { a, b: self.b.shallow_clone() })
    }

    /// Some of the columns: `[…, ldim, columns]`.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`].
    pub fn cols(&self, columns: impl Into<Slice>) -> Result<Self> {
        let b = keeping_axis(&columns.into(), &self.b, -1, "column")?;
        Ok(FactoredMatrix { a: self.a.shallow_clone(), b })
    }

    /// The product's first `k` entries along every dimension, for a look at it.
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn get_corner(&self, k: i64) -> Result<Tensor> {
        self.index(vec![Slice::from(..k); self.ndim()])?.ab()
    }

    /// One more leading dimension, of size one, before dimension `dim`.
    ///
    /// # Errors
    ///
    /// [`Error::WrongInput`] where `dim` is not among, or just after, the leading dimensions.
    pub fn unsqueeze(&self, dim: usize) -> Result<Self> {
        let leading = self.ndim() - 2;
        if dim > leading {
            return Err(Error::wrong_input(format!(
                "dimension {dim} is not among the leading ones, of which there are {leading}"
            )));
        }
        Ok(FactoredMatrix { a: self.a.f_unsqueeze(dim as i64)?, b: self.b.f_unsqueeze(dim as i64)? })
    }
}

impl Clone for FactoredMatrix {
    /// Shares the factors' memory.
    fn clone(&self) -> Self {
        FactoredMatrix { a: self.a.shallow_clone(), b: self.b.shallow_clone() }
    }
}

impl fmt::Display for FactoredMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FactoredMatrix: Shape({:?}), Hidden Dim({})", self.shape(), self.mdim())
    }
}

/// Some entries of a dimension; of an index, one.
fn keeping_axis(slice: &Slice, t: &Tensor, dim: i64, axis: &'static str) -> Result<Tensor> {
    let some = slice.apply(t, dim, axis)?;
    Ok(if slice.drops_axis() { some.f_unsqueeze(dim)? } else { some })
}

/// The shape that both can be expanded to.
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

/// `left right`, with an error that says which leading dimensions cannot be broadcast.
fn product(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let leading = |t: &Tensor| t.size()[..t.dim() - 2].to_vec();
    let (a, b) = (leading(left), leading(right));
    if broadcast(&a, &b).is_none() {
        let expected = format!("leading dimensions that can be broadcast with {a:?}");
        return Err(shape("the right matrix", &right.size(), expected));
    }
    Ok(left.f_matmul(right)?)
}

fn shape(what: &str, found: &[i64], expected: String) -> Error {
    Error::Shape { what: what.into(), found: found.to_vec(), expected }
}

/// At least fp32: libtorch decomposes nothing below.
fn wide(t: &Tensor) -> Result<Tensor> {
    match t.f_kind()? {
        Kind::Half | Kind::BFloat16 => Ok(t.f_to_kind(Kind::Float)?),
        _ => Ok(t.shallow_clone()),
    }
}

/// `Q R` of `[…, n, m]`: `[…, n, min(n, m)]` with orthogonal columns, and `[…, min(n, m), m]`.
fn qr(t: &Tensor) -> Result<(Tensor, Tensor)> {
    Ok(Tensor::f_linalg_qr(&wide(t)?, "reduced")?)
}

fn transposed(t: &Tensor) -> Result<Tensor> {
    Ok(t.f_transpose(-2, -1)?)
}

/// `[…, n, m]` to `[…]`.
pub(crate) fn frobenius(t: &Tensor) -> Result<Tensor> {
    Ok(t.norm_over(&[-2i64, -1], false)?)
}

/// Norms to divide by: of a matrix of zeros, something that zero can be divided by.
pub(crate) fn positive(norm: &Tensor) -> Result<Tensor> {
    Ok(norm.at_least(f64::from(f32::MIN_POSITIVE))?)
}
