//! [`Decoder`]: the directions that features write, in memory or read row by row when they are needed.

use std::fmt;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::features::SparseFeatures;
use crate::unchecked::onednn::{self, Epilogue};
use crate::unchecked::threads::SharedTensor;
use crate::Result;

/// A matrix of which rows are read when they are needed: one in a file.
pub(crate) trait RowSource: fmt::Debug + Send + Sync {
    /// `[feature, d_out]`
    fn size(&self) -> [i64; 2];
    /// Copies of these rows, in the kind of the file, on the CPU: `features` is `[n]`, the result `[n, d_out]`.
    fn rows(&self, features: &Tensor) -> Result<Tensor>;
}

/// The directions that features write: `[feature, d_out]`.
#[derive(Clone, Debug)]
pub(crate) enum Decoder {
    Memory(SharedTensor),
    OnDemand(Arc<dyn RowSource>),
}

/// Rows that are read at once where all of them are needed.
const CHUNK: i64 = 8192;

/// Where fewer than one entry in so many is not 0, the sum over the others is faster than the matrix product.
const SPARSE: i64 = 32;

impl Decoder {
    /// `[feature, d_out]`
    pub(crate) fn size(&self) -> [i64; 2] {
        match self {
            Decoder::Memory(w) => match w.size()[..] {
                [features, d_out] => [features, d_out],
                _ => [0, 0],
            },
            Decoder::OnDemand(source) => source.size(),
        }
    }

    /// The same rows in another kind on another device; those in a file are converted when they are read.
    pub(crate) fn to(&self, kind: Kind, device: Device) -> Result<Self> {
        match self {
            Decoder::Memory(w) => Ok(Decoder::Memory(w.f_to_device(device)?.f_to_kind(kind)?.into())),
            Decoder::OnDemand(source) => Ok(Decoder::OnDemand(Arc::clone(source))),
        }
    }

    /// Copies of these rows, in a kind and on a device: `features` is `[n]`, the result `[n, d_out]`.
    pub(crate) fn rows(&self, features: &Tensor, options: (Kind, Device)) -> Result<Tensor> {
        let rows = match self {
            Decoder::Memory(w) => w.f_index_select(0, &features.f_to_device(w.device())?)?,
            Decoder::OnDemand(source) => source.rows(&features.f_to_device(Device::Cpu)?)?,
        };
        Ok(rows.f_to_device(options.1)?.f_to_kind(options.0)?)
    }

    /// All rows. Those of a file are copied.
    pub(crate) fn whole(&self, options: (Kind, Device)) -> Result<Tensor> {
        match self {
            Decoder::Memory(w) => Ok(w.f_to_device(options.1)?.f_to_kind(options.0)?),
            Decoder::OnDemand(source) => {
                let n = source.size()[0];
                let mut chunks = Vec::new();
                for start in (0..n).step_by(CHUNK as usize) {
                    let features = crate::tensor::scalar::arange(start..n.min(start + CHUNK), Device::Cpu)?;
                    chunks.push(self.rows(&features, options)?);
                }
                Ok(Tensor::f_cat(&chunks, 0)?)
            }
        }
    }

    /// The Euclidean norm of each row: `[feature]`.
    pub(crate) fn norms(&self, options: (Kind, Device)) -> Result<Tensor> {
        use crate::tensor::scalar::Scalar;
        let n = self.size()[0];
        let mut norms = Vec::new();
        for start in (0..n).step_by(CHUNK as usize) {
            let features = crate::tensor::scalar::arange(start..n.min(start + CHUNK), options.1)?;
            norms.push(self.rows(&features, options)?.norm_over(&[-1], false)?);
        }
        Ok(Tensor::f_cat(&norms, 0)?)
    }

    /// `acts W`: `[row, feature]` to `[row, d_out]`.
    pub(crate) fn sum(&self, acts: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let options = (acts.f_kind()?, acts.device());
        if acts.requires_grad() {
            return with(acts.f_matmul(&self.whole(options)?)?, bias);
        }
        let few = |active: i64| active.saturating_mul(SPARSE) < acts.numel() as i64;
        // On a device the count would have to be waited for.
        let counts = acts.device() == Device::Cpu;
        match self {
            Decoder::Memory(w) if !counts || !few(count(acts)?) => {
                match onednn::linear(acts, &w.f_tr()?, bias, Epilogue::Identity) {
                    Some(sum) => Ok(sum),
                    None => Ok(acts.f_linear(&w.f_tr()?, bias)?),
                }
            }
            Decoder::Memory(_) => self.sum_sparse(&SparseFeatures::from_dense(acts)?, bias),
            Decoder::OnDemand(_) => {
                let active = acts.f_count_nonzero(0)?.f_nonzero()?.f_reshape([-1i64])?; // [n]
                let rows = self.rows(&active, options)?;
                with(acts.f_index_select(1, &active)?.f_matmul(&rows)?, bias)
            }
        }
    }

    /// The same for sparse activations: `[row, d_out]`.
    pub(crate) fn sum_sparse(&self, acts: &SparseFeatures, bias: Option<&Tensor>) -> Result<Tensor> {
        let options = (acts.values().f_kind()?, acts.values().device());
        let sum = |w: &Tensor, features: &Tensor| -> Result<Tensor> {
            let values = Some(acts.values());
            let (sum, ..) = Tensor::f_embedding_bag(w, features, acts.offsets(), false, 0, false, values, true)?;
            Ok(sum)
        };
        let sum = match self {
            Decoder::Memory(w) if w.f_kind()? == options.0 => sum(w, acts.features())?,
            _ => {
                // The rows of the features that are active, once each.
                let (active, places, _) = acts.features().f_internal_unique2(true, true, false)?;
                sum(&self.rows(&active, options)?, &places)?
            }
        };
        with(sum, bias)
    }
}

fn with(sum: Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match bias {
        Some(bias) => Ok(sum.f_add(bias)?),
        None => Ok(sum),
    }
}

/// How many entries are not 0.
fn count(acts: &Tensor) -> Result<i64> {
    Ok(i64::try_from(acts.f_count_nonzero(None)?)?)
}
