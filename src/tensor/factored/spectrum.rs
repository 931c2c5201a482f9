//! Norms, eigenvalues, singular values and composition scores of a [`FactoredMatrix`], from its factors.

use tch::Tensor;

use super::{product, shape, transposed, FactoredMatrix};
use crate::tensor::precision::widened;
use crate::tensor::scalar::Scalar;
use crate::Result;

/// The singular value decomposition `U diag(S) Vᵀ` of a [`FactoredMatrix`], with `k = min(ldim, mdim, rdim)`.
#[derive(Debug)]
pub struct Svd {
    /// The left singular vectors, as columns: `[…, ldim, k]`.
    pub u: Tensor,
    /// The singular values, in descending order: `[…, k]`.
    pub s: Tensor,
    /// The right singular vectors, as columns: `[…, rdim, k]`.
    pub v: Tensor,
}

impl Svd {
    /// The right singular vectors, as rows: `[…, k, rdim]`, a view.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails, for example for lack of memory.
    pub fn vh(&self) -> Result<Tensor> {
        transposed(&self.v)
    }
}

impl FactoredMatrix {
    /// The Frobenius norm, `√Σ (A B)²`: `[…]`.
    ///
    /// With `A = Q R` and orthogonal `Q`, this is the norm of `R B`, `[…, mdim, rdim]`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails, for example for lack of memory.
    pub fn norm(&self) -> Result<Tensor> {
        frobenius(&self.without_left()?)
    }

    /// The `mdim` eigenvalues of a square matrix that may be nonzero: `[…, mdim]`, complex, in no particular order.
    ///
    /// They are the eigenvalues of `B A`: if `A B x = λ x`, then `B x` is an eigenvector of `B A` with the same eigenvalue. All other
    /// eigenvalues of `A B` are zero.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`](crate::Error::Shape) if the matrix is not square.
    pub fn eigenvalues(&self) -> Result<Tensor> {
        let matrix = FactoredMatrix { a: widened(&self.a)?, b: widened(&self.b)? };
        Ok(matrix.ba()?.f_linalg_eigvals()?)
    }

    /// The singular value decomposition, `A B = U diag(S) Vᵀ`, without forming `A B`.
    ///
    /// With `A = Q R` and `Bᵀ = Q' R'`, it is the decomposition of the small matrix `R R'ᵀ`, with `Q` and `Q'` applied to the singular
    /// vectors.
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
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails, for example for lack of memory.
    pub fn svd(&self) -> Result<Svd> {
        let (qa, ra) = qr(&self.a)?; // […, ldim, p], […, p, mdim]
        let (qb, rb) = qr(&transposed(&self.b)?)?; // […, rdim, q], […, q, mdim]
        let (u, s, v) = ra.f_matmul(&transposed(&rb)?)?.f_svd(true, true)?;
        Ok(Svd { u: qa.f_matmul(&u)?, s, v: qb.f_matmul(&v)? })
    }

    /// The same matrix with the factors `U √S` and `√S Vᵀ`, which share the singular values evenly.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails, for example for lack of memory.
    pub fn make_even(&self) -> Result<Self> {
        let svd = self.svd()?;
        let root = svd.s.f_sqrt()?;
        let a = svd.u.f_mul(&root.f_unsqueeze(-2)?)?; // […, ldim, k]
        let b = svd.vh()?.f_mul(&root.f_unsqueeze(-1)?)?; // […, k, rdim]
        Ok(FactoredMatrix { a, b })
    }

    /// `S Vᵀ`, the matrix without its left singular vectors: `[…, k, rdim]`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails, for example for lack of memory.
    pub fn collapse_l(&self) -> Result<Tensor> {
        let svd = self.svd()?;
        Ok(svd.vh()?.f_mul(&svd.s.f_unsqueeze(-1)?)?)
    }

    /// `U S`, the matrix without its right singular vectors: `[…, ldim, k]`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`](crate::Error::Torch) if libtorch fails, for example for lack of memory.
    pub fn collapse_r(&self) -> Result<Tensor> {
        let svd = self.svd()?;
        Ok(svd.u.f_mul(&svd.s.f_unsqueeze(-2)?)?)
    }

    /// The composition score `‖W₁ W₂‖ / (‖W₁‖ ‖W₂‖)` in Frobenius norms, with `self` as `W₁` and `right` as `W₂`: `[…]`.
    ///
    /// TransformerLens' `composition_scores` (Elhage et al. 2021), with leading dimensions broadcast. It is zero if a matrix is zero.
    /// [`all_composition_scores`](crate::Transformer::all_composition_scores) returns the scores of all pairs of heads.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`](crate::Error::Shape) if `right` does not have as many rows as this matrix has columns, or the leading dimensions do not broadcast.
    pub fn composition_score(&self, right: &FactoredMatrix) -> Result<Tensor> {
        if self.rdim() != right.ldim() {
            return Err(shape("the right matrix", &right.shape(), format!("[.., {}, n]", self.rdim())));
        }
        let (left, right) = (self.without_left()?, right.without_right()?);
        let norm = frobenius(&product(&left, &right)?)?;
        Ok(norm.f_div(&positive(&frobenius(&left)?)?)?.f_div(&positive(&frobenius(&right)?)?)?)
    }

    /// The product without an orthogonal factor on the left, which norms do not depend on: `[…, min(ldim, mdim), rdim]`.
    pub(crate) fn without_left(&self) -> Result<Tensor> {
        Ok(qr(&self.a)?.1.f_matmul(&widened(&self.b)?)?)
    }

    /// The product without an orthogonal factor on the right: `[…, ldim, min(rdim, mdim)]`.
    pub(crate) fn without_right(&self) -> Result<Tensor> {
        transposed(&self.t()?.without_left()?)
    }
}

/// The QR decomposition of `[…, n, m]`: `Q`, `[…, n, min(n, m)]`, and `R`, `[…, min(n, m), m]`.
fn qr(t: &Tensor) -> Result<(Tensor, Tensor)> {
    Ok(Tensor::f_linalg_qr(&widened(t)?, "reduced")?)
}

/// The Frobenius norm: `[…, n, m]` to `[…]`.
pub(crate) fn frobenius(t: &Tensor) -> Result<Tensor> {
    t.norm_over(&[-2i64, -1], false)
}

/// Norms as divisors: the smallest positive fp32 number replaces zero.
pub(crate) fn positive(norm: &Tensor) -> Result<Tensor> {
    norm.at_least(f64::from(f32::MIN_POSITIVE))
}
