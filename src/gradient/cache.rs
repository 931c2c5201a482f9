//! [`GradientCache`]: gradients by hook point.

use std::ops::Index;

use tch::{Device, Tensor};

use crate::cache::ActivationCache;
use crate::hook::{HookName, HookPoint};
use crate::tensor::columns::Columns;
use crate::tensor::slice::Slice;
use crate::Result;

/// The gradients of a number with respect to the activations that a run kept, under the activations' names.
///
/// A gradient has the shape of its activation. It is the total one: all paths from the activation to the number count. Where a hook
/// changed the gradient at a point, the cache has what the hook left. Whole numbers, such as chosen experts, have no gradient.
///
/// ```
/// use tch_lens::{hook, HookedTransformer, RunOptions};
/// let model = HookedTransformer::toy()?;
/// let output = model.run_with_grad("When Mary and John", RunOptions::new(), |output| Ok(output.logits()?.sum(None)))?;
/// let gradients = output.gradients;
/// assert_eq!(gradients.get(("q", 0))?.size(), output.run.cache.get(("q", 0))?.size());
/// assert_eq!(gradients["blocks.1.hook_resid_post"], gradients[hook::resid_pre(2)]);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GradientCache(ActivationCache);

impl GradientCache {
    pub(super) fn new(cache: ActivationCache) -> Self {
        GradientCache(cache)
    }

    /// The gradient at a point, by any of the point's names.
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::get`].
    pub fn get(&self, name: impl HookName) -> Result<&Tensor> {
        self.0.get(name)
    }

    /// Whether there is a gradient at a point; an unknown name gives `false`.
    pub fn contains(&self, name: impl HookName) -> bool {
        self.0.contains(name)
    }

    /// The points, in the order in which they fired in the forward pass.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = HookPoint> + '_ {
        self.0.keys()
    }

    /// The points and their gradients, in the order in which they fired in the forward pass.
    pub fn items(&self) -> impl ExactSizeIterator<Item = (HookPoint, &Tensor)> + '_ {
        self.0.items()
    }

    /// How many gradients there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it holds no gradients.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which token columns the gradient of this name holds.
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::get`].
    pub fn positions_of(&self, name: impl HookName) -> Result<&Columns> {
        self.0.positions_of(name)
    }

    /// The batch dimension of the gradient at `point`, if it has one here.
    pub fn batch_axis(&self, point: HookPoint) -> Option<usize> {
        self.0.batch_axis(point)
    }

    /// The position dimension of the gradient at `point`, if it has one.
    pub fn position_axis(&self, point: HookPoint) -> Option<usize> {
        self.0.position_axis(point)
    }

    /// Drops the batch dimension of every gradient.
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::remove_batch_dim`].
    pub fn remove_batch_dim(self) -> Result<Self> {
        Ok(GradientCache(self.0.remove_batch_dim()?))
    }

    /// The rows of the batch that `slice` means; an index drops the dimension.
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::apply_slice_to_batch_dim`].
    pub fn apply_slice_to_batch_dim(self, slice: impl Into<Slice>) -> Result<Self> {
        Ok(GradientCache(self.0.apply_slice_to_batch_dim(slice)?))
    }

    /// The same gradients on another device.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`](crate::Error::NoDevice).
    pub fn to(self, device: Device) -> Result<Self> {
        Ok(GradientCache(self.0.to(device)?))
    }
}

impl<N: HookName> Index<N> for GradientCache {
    type Output = Tensor;

    /// [`GradientCache::get`], for names that are surely there.
    ///
    /// # Panics
    ///
    /// With `get`'s error where they are not.
    fn index(&self, name: N) -> &Tensor {
        &self.0[name]
    }
}
