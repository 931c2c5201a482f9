//! Models in another kind and on another device.

use tch::{Device, Kind};

use super::HookedTransformer;
use crate::Result;

impl HookedTransformer {
    /// The model with its weights in another kind: `Float`, `BFloat16`, `Half` or `Double`. This model stays as it is.
    ///
    /// Weights that are of that kind already are shared with this model, not copied. Tied weights stay tied.
    ///
    /// ```
    /// use tch::Kind;
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let precise = model.to_kind(Kind::Double)?;
    /// assert_eq!(precise.forward("Mary and John")?.kind(), Kind::Double);
    /// assert_eq!(model.kind(), Kind::Float);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnsupportedKind`](crate::Error::UnsupportedKind) for any other kind; libtorch's own, where memory runs out.
    pub fn to_kind(&self, kind: Kind) -> Result<Self> {
        Ok(HookedTransformer { model: self.model.to_kind(kind)?, ..self.clone() })
    }

    /// The model with its weights on another device. This model stays where it is.
    ///
    /// Weights that are there already are shared with this model, not copied. Tied weights stay tied.
    ///
    /// ```
    /// use tch_lens::{cuda_if_available, HookedTransformer};
    /// let model = HookedTransformer::toy()?.to(cuda_if_available())?;
    /// let logits = model.forward("Mary and John")?;
    /// assert_eq!(logits.device(), model.device());
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`](crate::Error::NoDevice) where there is no such device; libtorch's own, where memory runs out.
    pub fn to(&self, device: Device) -> Result<Self> {
        Ok(HookedTransformer { model: self.model.to(device)?, ..self.clone() })
    }
}
