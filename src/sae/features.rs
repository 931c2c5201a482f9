//! [`SparseFeatures`]: the features that are active, and nothing else.

use tch::{Device, Kind, Tensor};

use crate::tensor::scalar::{arange, Scalar};
use crate::unchecked::threads::SharedTensor;
use crate::{Error, Result};

/// The active features of each position, as three tensors: compressed sparse rows.
///
/// Row `r` (a position of a batch row, counted in their order) has the features `features[offsets[r]..offsets[r + 1]]`, with these
/// activations in `values`. An entry takes 12 bytes in fp32, and a row 8; a dense row takes 4 bytes for each feature of the dictionary.
///
/// Clones are handles on the same tensors.
#[derive(Clone, Debug)]
pub struct SparseFeatures {
    leading: Vec<i64>,
    d_sae: i64,
    offsets: SharedTensor,
    features: SharedTensor,
    values: SharedTensor,
}

impl SparseFeatures {
    /// Of rows in this order, of so many features: offsets, features and values.
    pub(crate) fn new(leading: Vec<i64>, d_sae: i64, [offsets, features, values]: [Tensor; 3]) -> Self {
        SparseFeatures { leading, d_sae, offsets: offsets.into(), features: features.into(), values: values.into() }
    }

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
        Ok(SparseFeatures::new(leading.to_vec(), d_sae, [offsets, features, values]))
    }

    /// Of so many features for every position: `features` and `values` are `[row, k]`.
    pub(crate) fn of_k(leading: &[i64], d_sae: i64, features: &Tensor, values: &Tensor) -> Result<Self> {
        let size = features.size();
        let (rows, k) = (size.first().copied().unwrap_or(0), size.get(1).copied().unwrap_or(0));
        let offsets: Vec<i64> = (0..=rows).map(|row| row * k).collect();
        let offsets = Tensor::f_from_slice(&offsets)?.f_to_device(features.device())?;
        let parts = [offsets, features.f_reshape([-1i64])?, values.f_reshape([-1i64])?];
        Ok(SparseFeatures::new(leading.to_vec(), d_sae, parts))
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
        let offsets = Tensor::f_cat(&[zero, offsets], 0)?;
        let features = Tensor::f_cat(&features, 0)?.f_index_select(0, &order)?;
        let values = Tensor::f_cat(&values, 0)?.f_index_select(0, &order)?;
        Ok(SparseFeatures::new(leading.to_vec(), d_sae, [offsets, features, values]))
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
        let rows = arange(0..n, counts.device())?;
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

    /// The features that are active anywhere, and the activations of these alone: `[n]`, and `[…, n]`.
    pub(crate) fn columns(&self) -> Result<(Tensor, Tensor)> {
        let counts = self.values.f_ne_tensor(&self.values.f_zeros_like()?)?;
        let features = self.features.f_masked_select(&counts)?;
        let (active, places, _) = features.f_internal_unique2(true, true, false)?;
        let rows = self.rows()?.f_masked_select(&counts)?;
        let (n, width) = (self.leading.iter().product::<i64>(), active.numel() as i64);
        let flat = Tensor::f_zeros([n.saturating_mul(width)], (self.values.f_kind()?, self.values.device()))?;
        let places = rows.mul_int(width)?.f_add(&places)?;
        let flat = flat.f_index_add(0, &places, &self.values.f_masked_select(&counts)?)?;
        let size: Vec<i64> = self.leading.iter().copied().chain([width]).collect();
        Ok((active, flat.f_reshape(size)?))
    }

    /// At how many positions each feature is active: `[feature]`.
    pub(crate) fn counts(&self) -> Result<Tensor> {
        let counts = self.values.f_ne_tensor(&self.values.f_zeros_like()?)?;
        Ok(self.features.f_masked_select(&counts)?.f_bincount(None::<&Tensor>, self.d_sae)?)
    }

    /// The entries with other values: `[active]`.
    pub(crate) fn with_values(&self, values: Tensor) -> Self {
        SparseFeatures { values: values.into(), ..self.clone() }
    }

    /// The number of each row, in the shape of the rows: what [`SparseFeatures::at`] takes.
    pub(crate) fn numbers(&self) -> Result<Tensor> {
        let n = self.leading.iter().product::<i64>();
        Ok(arange(0..n, self.values.device())?.f_reshape(self.leading.as_slice())?)
    }

    /// The rows of these numbers, in their shape.
    pub(crate) fn at(&self, numbers: &Tensor) -> Result<Self> {
        let flat = numbers.f_reshape([-1i64])?;
        let n = self.offsets.size().first().copied().unwrap_or(1) - 1;
        let starts = self.offsets.f_slice(0, 0, n, 1)?;
        let counts = self.offsets.f_slice(0, 1, n + 1, 1)?.f_sub(&starts)?.f_index_select(0, &flat)?;
        let ends = counts.f_cumsum(0, Kind::Int64)?;
        let zero = Tensor::f_zeros([1], (Kind::Int64, ends.device()))?;
        let offsets = Tensor::f_cat(&[zero, ends.shallow_clone()], 0)?;
        // How far each row's entries move.
        let moved = starts.f_index_select(0, &flat)?.f_sub(&ends.f_sub(&counts)?)?;
        let moved = moved.f_repeat_interleave_self_tensor(&counts, 0, None)?;
        let places = arange(0..moved.numel() as i64, moved.device())?.f_add(&moved)?;
        let [features, values] = [&self.features, &self.values].map(|tensor| tensor.f_index_select(0, &places));
        Ok(SparseFeatures::new(numbers.size(), self.d_sae, [offsets, features?, values?]))
    }

    /// Rows one behind the other along an axis.
    pub(crate) fn joined(parts: &[&SparseFeatures], axis: i64) -> Result<Self> {
        let (mut numbers, mut offsets, mut d_sae) = (Vec::new(), Vec::new(), 0);
        let (mut features, mut values) = (Vec::new(), Vec::new());
        let (mut rows, mut entries) = (0i64, 0i64);
        for part in parts {
            d_sae = part.d_sae;
            numbers.push(part.numbers()?.add_int(rows)?);
            let n = part.offsets.size().first().copied().unwrap_or(1) - 1;
            offsets.push(part.offsets.f_slice(0, 0, n, 1)?.add_int(entries)?);
            (rows, entries) = (rows + n, entries + part.len() as i64);
            features.push(part.features.shallow_clone());
            values.push(part.values.shallow_clone());
        }
        let numbers = Tensor::f_cat(&numbers, axis)?;
        offsets.push(Tensor::f_from_slice(&[entries])?.f_to_device(numbers.device())?);
        let all = [Tensor::f_cat(&offsets, 0)?, Tensor::f_cat(&features, 0)?, Tensor::f_cat(&values, 0)?];
        SparseFeatures::new(vec![rows], d_sae, all).at(&numbers)
    }

    /// The same on another device.
    pub(crate) fn to_device(&self, device: Device) -> Result<Self> {
        let [offsets, features, values] =
            [&self.offsets, &self.features, &self.values].map(|tensor| tensor.f_to_device(device));
        Ok(SparseFeatures::new(self.leading.clone(), self.d_sae, [offsets?, features?, values?]))
    }

    /// The bytes of its tensors.
    pub(crate) fn bytes(&self) -> Result<usize> {
        let mut sum = 0;
        for tensor in [&self.offsets, &self.features, &self.values] {
            sum += tensor.numel() * tensor.f_kind()?.elt_size_in_bytes();
        }
        Ok(sum)
    }

    pub(crate) fn leading(&self) -> &[i64] {
        &self.leading
    }
}
