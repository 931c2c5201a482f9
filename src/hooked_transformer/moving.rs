//! Models in another kind, on another device, and without groups of heads.

use tch::{Device, Kind};

use super::HookedTransformer;
use crate::Result;

impl HookedTransformer {
    /// The model with another one's embedding in place of its own, where the two are the same.
    pub(crate) fn sharing_embedding(&self, other: &HookedTransformer) -> Result<Self> {
        Ok(HookedTransformer { model: self.model.sharing_embedding(&other.model)?, ..self.clone() })
    }

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
        let encoder_output = self.encoder_output.as_ref().map(|output| output.to_kind(kind)).transpose()?;
        Ok(HookedTransformer { model: self.model.to_kind(kind)?, encoder_output, ..self.clone() })
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
        let encoder_output = self.encoder_output.as_ref().map(|output| output.to(device)).transpose()?;
        Ok(HookedTransformer { model: self.model.to(device)?, encoder_output, ..self.clone() })
    }

    /// The model with keys and values of its own for each query head: those of the head's group, repeated. TransformerLens'
    /// `ungroup_grouped_query_attention`.
    ///
    /// It computes the same, and its hook points of keys, values and what they read have an entry for each query head. The repeated weights
    /// take memory of their own; all others are shared. A model whose heads share no keys is returned as it is.
    ///
    /// Where a router chooses each token's heads, the model has those of all experts, one expert after the other, and the router's weights
    /// are their [gates](crate::hook::head_gate): zero for an expert that is not chosen.
    ///
    /// ```
    /// use tch_lens::{hook, Config, HookedTransformer};
    /// let grouped = HookedTransformer::init(Config { n_key_value_heads: 2, ..Config::new(2, 32, 4, 50, 12) }, 0)?;
    /// let model = grouped.ungrouped()?;
    /// let (logits, cache) = model.run_with_cache([3, 1, 4])?;
    /// assert_eq!(cache[hook::k(0)].size(), [1, 3, 4, 8]); // [batch, pos, head, d_head]
    /// assert!(logits.allclose(&grouped.forward([3, 1, 4])?, 1e-5, 1e-5, false));
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`](crate::Error::Unsupported) for heads of a router that have sinks or biases by distance; libtorch's own,
    /// where memory runs out.
    pub fn ungrouped(&self) -> Result<Self> {
        let model = self.model.ungrouped()?;
        if model.config() == self.config() {
            return Ok(self.clone());
        }
        // It is no longer what the checkpoint's configuration says.
        Ok(HookedTransformer { model, hugging_face: None, ..self.clone() })
    }
}
