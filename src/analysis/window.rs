//! [`Window`]: the rows of the batch and the positions that an analysis looks at.

use tch::Tensor;

use crate::cache::ActivationCache;
use crate::hook::HookPoint;
use crate::tensor::precision::widened;
use crate::tensor::slice::Slice;
use crate::{Error, Result};

/// The rows of the batch and the positions that an analysis looks at.
///
/// Within an analysis every activation is `[batch, pos, …]`, with axes of length one where the cache or the slices have
/// none; [`Window::drop_axes`] takes these off at the end. So no method has to know which axes there are.
#[derive(Clone, Debug, Default)]
pub(crate) struct Window {
    pub(crate) batch: Slice,
    pub(crate) pos: Slice,
}

impl Window {
    /// An activation as `[batch, pos, …]`, in fp32 or better.
    pub(crate) fn of(&self, cache: &ActivationCache, point: HookPoint) -> Result<Tensor> {
        let tensor = cache.get(point)?;
        let tensor = match cache.has_batch_dim() {
            true => self.batch.keeping_axis().apply(tensor, 0, "batch")?,
            false if matches!(self.batch, Slice::All) => tensor.f_unsqueeze(0)?,
            false => return Err(Error::invalid("the cache has no batch dimension to slice: it was removed")),
        };
        let tensor = self.pos.keeping_axis().apply(&tensor, 1, "position")?;
        widened(&tensor)
    }

    /// Which of the axes are left in the end: batch, position.
    pub(crate) fn axes(&self, cache: &ActivationCache) -> (bool, bool) {
        (cache.has_batch_dim() && !self.batch.drops_axis(), !self.pos.drops_axis())
    }

    /// `tensor` of `[row, batch, pos, …]`, without the axes that are not left.
    pub(crate) fn drop_axes(&self, cache: &ActivationCache, tensor: &Tensor) -> Result<Tensor> {
        let (batch, pos) = self.axes(cache);
        let tensor = if pos { tensor.shallow_clone() } else { tensor.f_squeeze_dim(2)? };
        Ok(if batch { tensor } else { tensor.f_squeeze_dim(1)? })
    }
}
