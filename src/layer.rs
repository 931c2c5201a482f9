//! [`Layer`]: the index of a layer, counted from the start or the end.

use std::fmt;

use crate::{Error, Result};

/// The index of a layer. A negative index counts from the end: −1 is the last layer.
///
/// A layer is made from a `usize`, `i32` or `i64`. Functions with a parameter `impl Into<Layer>` accept all three, and so do functions
/// over weights, which accept several layers as a [`Slice`](crate::Slice):
///
/// ```
/// use tch_lens::{hook, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary")?;
/// let last = model.config().n_layers - 1; // a usize
/// assert_eq!(cache.get(hook::resid_post(-1))?, cache.get(hook::resid_post(last))?);
/// assert_eq!(cache.get(("q", last))?, cache.get(("q", -1))?);
/// assert_eq!(model.w_q(last)?, model.w_q(-1)?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Layer(i64);

impl Layer {
    pub(crate) const FIRST: Layer = Layer(0);

    /// The index as it was given; negative if it counts from the end.
    pub const fn signed(self) -> i64 {
        self.0
    }

    /// The index if it counts from the start; `None` if it counts from the end, which needs a model to resolve.
    #[inline]
    pub const fn index(self) -> Option<usize> {
        if self.0 < 0 {
            None
        } else {
            Some(self.0 as usize)
        }
    }

    /// The index counted from the start in a model with `n_layers` layers.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] if the model has no such layer.
    pub fn resolve(self, n_layers: usize) -> Result<usize> {
        let len = i64::try_from(n_layers).unwrap_or(i64::MAX);
        let index = if self.0 < 0 { self.0.saturating_add(len) } else { self.0 };
        if (0..len).contains(&index) {
            Ok(index as usize)
        } else {
            Err(Error::LayerOutOfRange { layer: self.0, n_layers })
        }
    }
}

impl From<usize> for Layer {
    #[inline]
    fn from(index: usize) -> Self {
        Layer(i64::try_from(index).unwrap_or(i64::MAX))
    }
}

impl From<i64> for Layer {
    #[inline]
    fn from(index: i64) -> Self {
        Layer(index)
    }
}

impl From<i32> for Layer {
    #[inline]
    fn from(index: i32) -> Self {
        Layer(index.into())
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_integer_types_convert_and_negative_layers_count_from_the_end() {
        assert_eq!(Layer::from(2usize), Layer::from(2));
        assert_eq!(Layer::from(2i64), Layer::from(2));
        assert_eq!(Layer::from(usize::MAX).signed(), i64::MAX);
        for (given, found) in [(0, Some(0)), (3, Some(3)), (-1, Some(3)), (-4, Some(0)), (4, None), (-5, None)] {
            assert_eq!(Layer::from(given).resolve(4).ok(), found, "{given}");
        }
        for extreme in [i64::MIN, i64::MAX] {
            assert!(Layer::from(extreme).resolve(4).is_err());
        }
        assert!(Layer::from(0).resolve(0).is_err());
    }
}
