//! What lenses have in common: the files and the kinds of their matrices, and caches of their model.

use std::path::{Path, PathBuf};

use tch::{Kind, Tensor};

use crate::cache::ActivationCache;
use crate::format::Place;
use crate::tensor::precision::at_least_float;
use crate::unchecked::mapped::{Access, FileBytes};
use crate::unchecked::threads::SharedTensor;
use crate::{Error, HookedTransformer, Result};

/// A file, mapped into memory.
pub(super) struct TensorFile {
    pub(super) path: PathBuf,
    bytes: FileBytes,
}

impl TensorFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        Ok(TensorFile { path: path.into(), bytes: FileBytes::open(path, Access::Map)? })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    /// The tensor at a place, copied to the model's device, in the kind that its lenses compute in.
    pub(super) fn tensor(&self, place: &Place, model: &HookedTransformer) -> Result<SharedTensor> {
        let view = self.bytes.tensor(place, &self.path)?;
        Ok(view.f_to_kind(kind(model))?.f_to_device(model.device())?.f_alias_copy()?.f_contiguous()?.into())
    }

    pub(super) fn malformed(&self, what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::malformed(&self.path, what)
    }
}

/// The kind in which a lens of a model computes: fp32, or fp64 for a model in fp64.
pub(super) fn kind(model: &HookedTransformer) -> Kind {
    at_least_float(model.kind())
}

/// A tensor of a lens, in the kind and on the device in which it computes.
///
/// # Errors
///
/// [`Error::Shape`] for another shape.
pub(super) fn shaped(
    tensor: &Tensor,
    shape: &[i64],
    what: impl FnOnce() -> String,
    model: &HookedTransformer,
) -> Result<SharedTensor> {
    if !tensor.defined() || tensor.size() != shape {
        let found = if tensor.defined() { tensor.size() } else { Vec::new() };
        return Err(Error::Shape { what: what(), found, expected: format!("{shape:?}") });
    }
    Ok(tensor.f_detach()?.f_to_kind(kind(model))?.f_to_device(model.device())?.into())
}

/// That a cache is of a run of the model that a lens belongs to.
///
/// # Errors
///
/// [`Error::WrongInput`].
pub(super) fn check_cache(cache: &ActivationCache, model: &HookedTransformer) -> Result<()> {
    match cache.model().has_weights_of(model) {
        true => Ok(()),
        false => Err(Error::wrong_input(
            "the cache is of another model than the lens: run the lens' model, or give the lens that model with `with_model`",
        )),
    }
}

/// The logits of streams, through the last norm and the unembedding of the model.
pub(super) fn logits(model: &HookedTransformer, stream: &Tensor) -> Result<Tensor> {
    model.read_logits(&stream.f_to_kind(model.kind())?)
}
