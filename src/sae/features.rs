//! [`SparseFeatures`]: the features that are active, and nothing else.

use tch::{Kind, Tensor};

use crate::tensor::scalar::Scalar;
use crate::{Error, Result};

/// The active features of each position, as three tensors: compressed sparse rows.
///
/// Row `r` (a position of a batch row, counted in their order) has the features `features[offsets[r]..offsets[r + 1]]`, with these
/// activations in `values`. An entry takes 12 bytes in fp32; a dense row takes 4 bytes for each feature of the dictionary.
#[derive(Debug)]
pub struct SparseFeatures {
    leading: Vec<i64>,
    d_sae: i64,
    offsets: Tensor,
    features: Tensor,
    values: Tensor,
}

impl SparseFeatures {
    /// Of dense activations, `[…, feature]`: the entries that are not 0.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for a tensor without dimensions; [`Error::Torch`] if memory runs out.
    pub fn from_dense(acts: &Tensor) -> Result<Self> {
        let size = acts.size();
        let Some((&d_sae, leading)) = size.split_last() else {
            return Err(Error::Shape {
                what: "the activations of features".into(),
                expected: "[…, feature]".into(),
                found: size,
            });
        };
        let rows: i64 = leading.iter().product();
        let flat = acts.f_reshape([rows, d_sae])?;
        let places = flat.f_nonzero()?; // [active, 2]
        let (row, features) = (places.f_select(1, 0)?, places.f_select(1, 1)?.f_contiguous()?);
        let values = flat.f_reshape([-1i64])?.f_index_select(0, &row.mul_int(d_sae)?.f_add(&features)?)?;
        let counts = row.f_bincount(None::<&Tensor>, rows)?;
        let offsets = counts.f_cumsum(0, Kind::Int64)?;
        let zero = Tensor::f_zeros([1], (Kind::Int64, acts.device()))?;
        let offsets = Tensor::f_cat(&[zero, offsets], 0)?;
        Ok(SparseFeatures { leading: leading.to_vec(), d_sae, offsets, features, values })
    }

    /// Of so many features for every position: `features` and `values` are `[row, k]`.
    pub(crate) fn of_k(leading: &[i64], d_sae: i64, features: &Tensor, values: &Tensor) -> Result<Self> {
        let size = features.size();
        let (rows, k) = (size.first().copied().unwrap_or(0), size.get(1).copied().unwrap_or(0));
        let offsets: Vec<i64> = (0..=rows).map(|row| row * k).collect();
        Ok(SparseFeatures {
            leading: leading.to_vec(),
            d_sae,
            offsets: Tensor::f_from_slice(&offsets)?.f_to_device(features.device())?,
            features: features.f_reshape([-1i64])?,
            values: values.f_reshape([-1i64])?,
        })
    }

    /// The activations of several parts of a dictionary's features, in their order, as one.
    pub(crate) fn side_by_side(parts: &[SparseFeatures], leading: &[i64]) -> Result<Self> {
        if let [part] = parts {
            return Ok(SparseFeatures { leading: leading.to_vec(), ..part.with_values(part.values.shallow_clone()) });
        }
        let (mut rows, mut features, mut values, mut d_sae) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for part in parts {
            rows.push(part.rows()?);
            features.push(part.features.f_add(&Tensor::f_from_slice(&[d_sae])?.f_to_device(part.features.device())?)?);
            values.push(part.values.shallow_clone());
            d_sae += part.d_sae;
        }
        let (rows, order) = Tensor::f_cat(&rows, 0)?.f_sort_stable(true, 0, false)?;
        let n = leading.iter().product::<i64>();
        let offsets = rows.f_bincount(None::<&Tensor>, n)?.f_cumsum(0, Kind::Int64)?;
        let zero = Tensor::f_zeros([1], (Kind::Int64, rows.device()))?;
        Ok(SparseFeatures {
            leading: leading.to_vec(),
            d_sae,
            offsets: Tensor::f_cat(&[zero, offsets], 0)?,
            features: Tensor::f_cat(&features, 0)?.f_index_select(0, &order)?,
            values: Tensor::f_cat(&values, 0)?.f_index_select(0, &order)?,
        })
    }

    /// Where the entries of each row begin, and where those of the last one end: `[rows + 1]`.
    pub fn offsets(&self) -> &Tensor {
        &self.offsets
    }

    /// The active features: `[active]`.
    pub fn features(&self) -> &Tensor {
        &self.features
    }

    /// Their activations: `[active]`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// The row of each entry: `[active]`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if memory runs out.
    pub fn rows(&self) -> Result<Tensor> {
        let n = self.offsets.size().first().copied().unwrap_or(1) - 1;
        let counts = self.offsets.f_slice(0, 1, n + 1, 1)?.f_sub(&self.offsets.f_slice(0, 0, n, 1)?)?;
        let rows = crate::tensor::scalar::arange(0..n, counts.device())?;
        Ok(rows.f_repeat_interleave_self_tensor(&counts, 0, None)?)
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.values.numel()
    }

    /// Whether no feature is active anywhere.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sizes of the dense activations: those of the activation but for its last, and the number of features.
    pub fn size(&self) -> Vec<i64> {
        self.leading.iter().copied().chain([self.d_sae]).collect()
    }

    /// The dense activations: `[…, feature]`.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if memory runs out.
    pub fn to_dense(&self) -> Result<Tensor> {
        let n = self.leading.iter().product::<i64>();
        let flat = Tensor::f_zeros([n.saturating_mul(self.d_sae)], (self.values.f_kind()?, self.values.device()))?;
        let places = self.rows()?.mul_int(self.d_sae)?.f_add(&self.features)?;
        Ok(flat.f_index_add(0, &places, &self.values)?.f_reshape(self.size())?)
    }

    /// The entries with other values: `[active]`.
    pub(crate) fn with_values(&self, values: Tensor) -> Self {
        SparseFeatures {
            leading: self.leading.clone(),
            d_sae: self.d_sae,
            offsets: self.offsets.shallow_clone(),
            features: self.features.shallow_clone(),
            values,
        }
    }

    pub(crate) fn leading(&self) -> &[i64] {
        &self.leading
    }
}
