//! The QK and OV circuits of heads, as matrices over the residual stream, and composition scores.

use tch::Tensor;

use crate::component::Component;
use crate::model::Transformer;
use crate::tensor::factored::{frobenius, positive, FactoredMatrix};
use crate::tensor::scalar::Scalar;
use crate::tensor::slice::Slice;
use crate::{Error, Result};

/// The input of the later head through which two heads compose (Elhage et al. 2021).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Composition {
    /// The earlier head's output changes the later head's queries.
    Q,
    /// The earlier head's output changes the later head's keys.
    K,
    /// The earlier head's output changes the later head's values.
    V,
}

impl Transformer {
    /// The QK circuit, `W_Q W_Kᵀ`: `[n_heads, d_model, d_model]` for one layer, `[layer, …]` for several.
    ///
    /// `x W_Q W_Kᵀ yᵀ` is the attention score of a query from `x` and a key from `y`, without biases, the attention scale, norms of
    /// queries and keys, and rotary embeddings. In grouped-query models each query head has a circuit.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// assert_eq!(model.qk(..)?.shape(), [4, 4, 128, 128]);
    /// assert_eq!(model.qk(0)?.norm()?.size(), [4]); // one norm per head
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have.
    pub fn qk(&self, layers: impl Into<Slice>) -> Result<FactoredMatrix> {
        let layers = layers.into();
        FactoredMatrix::new(&self.w_q(layers.clone())?, &self.w_k(layers)?.f_transpose(-2, -1)?)
    }

    /// The OV circuit, `W_V W_O`: `[n_heads, d_model, d_model]` for one layer, `[layer, …]` for several.
    ///
    /// `x W_V W_O` is the output of a head that attends only to a position with the normalised stream `x`, without biases. In
    /// grouped-query models each query head has a circuit.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`] or [`Error::SliceOutOfRange`] for layers that the model does not have; [`Error::Unsupported`] with
    /// differential attention.
    pub fn ov(&self, layers: impl Into<Slice>) -> Result<FactoredMatrix> {
        if self.config().attention.differential {
            return Err(Error::unsupported(
                "in differential attention W_O reads the difference of two heads, so no head has an OV circuit of its own",
            ));
        }
        let layers = layers.into();
        FactoredMatrix::new(&self.w_v(layers.clone())?, &self.w_o(layers)?)
    }

    /// The composition score of each pair of heads: `[n_layers, n_heads, n_layers, n_heads]`, with the earlier head first.
    ///
    /// The score measures how much the earlier head's output affects the later head's queries, keys or values. It is zero if the first
    /// head is not in an earlier layer than the second.
    ///
    /// The score is `‖W₁ W₂‖ / (‖W₁‖ ‖W₂‖)` in Frobenius norms. `W₁` is `W_V W_O` of the earlier head. `W₂` belongs to the later head:
    /// `W_Q W_Kᵀ` for [`Composition::Q`], its transpose for [`Composition::K`] and `W_V W_O` for [`Composition::V`]. Elhage et al. 2021, "A
    /// Mathematical Framework for Transformer Circuits". Only products of size `d_head × d_head` are formed.
    ///
    /// ```
    /// use tch_lens::{Composition, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let scores = model.all_composition_scores(Composition::K)?;
    /// assert_eq!(scores.size(), [4, 4, 4, 4]);
    /// let score = scores.double_value(&[0, 1, 2, 3]); // from L0H1 to the keys of L2H3
    /// assert!(0.0 < score && score < 1.0);
    /// assert_eq!(scores.double_value(&[2, 3, 0, 1]), 0.0);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if libtorch fails, for example for lack of memory.
    pub fn all_composition_scores(&self, mode: Composition) -> Result<Tensor> {
        let later = match mode {
            Composition::Q => self.qk(..)?,
            Composition::K => self.qk(..)?.t()?,
            Composition::V => self.ov(..)?,
        };
        // Orthogonal factors on the outer sides do not change the norms, so they are left out.
        let earlier = self.ov(..)?.without_left()?; // [layer, head, d_head, d_model]
        let later = later.without_right()?; // [layer, head, d_model, d_head]
        let (earlier_norm, later_norm) = (positive(&frobenius(&earlier)?)?, positive(&frobenius(&later)?)?); // [layer, head]
        let size = earlier.size();
        let (n_layers, n_heads) = (size[0], size[1]);
        let scores = Tensor::f_zeros([n_layers, n_heads, n_layers, n_heads], (earlier.f_kind()?, earlier.device()))?;
        for layer in 0..n_layers - 1 {
            let (start, n) = (layer + 1, n_layers - layer - 1);
            let left = earlier.f_select(0, layer)?.f_flatten(0, 1)?; // [head * d_head, d_model]
            let right = later.f_narrow(0, start, n)?.f_permute([2, 0, 1, 3])?.f_flatten(1, 3)?; // [d_model, later * head * d_head]
            let product = left.f_matmul(&right)?.f_view([n_heads, -1, n, n_heads, later.size()[3]])?;
            let norm = product.norm_over(&[1i64, 4], false)?; // [head, later, head]
            let norm = norm.f_div(&earlier_norm.f_select(0, layer)?.f_view([n_heads, 1, 1])?)?;
            let score = norm.f_div(&later_norm.f_narrow(0, start, n)?)?;
            scores.f_select(0, layer)?.f_narrow(1, start, n)?.f_copy_(&score)?;
        }
        Ok(scores)
    }

    /// The labels of all heads, `L0H0`, `L0H1`, …, in the order of [`all_composition_scores`](Transformer::all_composition_scores).
    ///
    /// ```
    /// let labels = tch_lens::HookedTransformer::toy()?.all_head_labels();
    /// assert_eq!(labels[5], "L1H1");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn all_head_labels(&self) -> Vec<String> {
        let heads =
            |layer| (0..self.config().heads(layer).query).map(move |head| Component::Head { layer, head }.to_string());
        (0..self.config().n_layers).flat_map(heads).collect()
    }
}
