//! What heads read and write, as matrices over the residual stream, and how heads compose.

use tch::Tensor;

use crate::component::Component;
use crate::model::Transformer;
use crate::tensor::factored::{frobenius, positive, FactoredMatrix};
use crate::tensor::scalar::Scalar;
use crate::tensor::slice::Slice;
use crate::Result;

/// Through which input of the later head two heads compose (Elhage et al. 2021).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Composition {
    /// The earlier head writes what the later one looks from: its queries.
    Q,
    /// The earlier head writes what the later one looks for: its keys.
    K,
    /// The earlier head writes what the later one moves: its values.
    V,
}

impl Transformer {
    /// The QK circuit, `W_Q W_Kᵀ`: `[n_heads, d_model, d_model]` of one layer, `[layer, …]` of several.
    ///
    /// `x W_Q W_Kᵀ yᵀ` is the score of a query at `x` for a key at `y`, but for biases, the scale, norms of queries and keys and
    /// rotary positions. Where query heads share keys, each has its own circuit.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// assert_eq!(model.qk(..)?.shape(), [4, 4, 128, 128]);
    /// assert_eq!(model.qk(0)?.norm()?.size(), [4]); // one a head
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`LayerOutOfRange`](crate::Error::LayerOutOfRange), [`SliceOutOfRange`](crate::Error::SliceOutOfRange).
    pub fn qk(&self, layers: impl Into<Slice>) -> Result<FactoredMatrix> {
        let layers = layers.into();
        FactoredMatrix::new(&self.w_q(layers.clone())?, &self.w_k(layers)?.f_transpose(-2, -1)?)
    }

    /// The OV circuit, `W_V W_O`: `[n_heads, d_model, d_model]` of one layer, `[layer, …]` of several.
    ///
    /// `x W_V W_O` is what a head writes where it looks at `x`, but for biases. Where query heads share values, each has its own
    /// circuit.
    ///
    /// # Errors
    ///
    /// [`LayerOutOfRange`](crate::Error::LayerOutOfRange), [`SliceOutOfRange`](crate::Error::SliceOutOfRange).
    pub fn ov(&self, layers: impl Into<Slice>) -> Result<FactoredMatrix> {
        let layers = layers.into();
        FactoredMatrix::new(&self.w_v(layers.clone())?, &self.w_o(layers)?)
    }

    /// How much each head's output goes into the queries, keys or values of each later one:
    /// `[n_layers, n_heads, n_layers, n_heads]`, the earlier head first; zero where it is not in an earlier layer.
    ///
    /// `‖W₁ W₂‖ / (‖W₁‖ ‖W₂‖)` in Frobenius norms, with `W₁ = W_V W_O` of the earlier head and `W₂` of the later one: `W_Q W_Kᵀ`
    /// ([`Composition::Q`]), its transpose ([`Composition::K`]) or `W_V W_O` ([`Composition::V`]). Elhage et al. 2021, "A Mathematical
    /// Framework for Transformer Circuits". Computed from `d_head × d_head` products.
    ///
    /// ```
    /// use tch_lens::{Composition, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let scores = model.all_composition_scores(Composition::K)?;
    /// assert_eq!(scores.size(), [4, 4, 4, 4]);
    /// let score = scores.double_value(&[0, 1, 2, 3]); // of L0H1 into the keys of L2H3
    /// assert!(0.0 < score && score < 1.0);
    /// assert_eq!(scores.double_value(&[2, 3, 0, 1]), 0.0);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn all_composition_scores(&self, mode: Composition) -> Result<Tensor> {
        let later = match mode {
            Composition::Q => self.qk(..)?,
            Composition::K => self.qk(..)?.t()?,
            Composition::V => self.ov(..)?,
        };
        // Orthogonal factors on the outer sides change no norm, and are left out.
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

    /// Every head's label, `L0H0`, `L0H1`, …, in the order of [`all_composition_scores`](Transformer::all_composition_scores).
    ///
    /// ```
    /// let labels = tch_lens::HookedTransformer::toy()?.all_head_labels();
    /// assert_eq!(labels[5], "L1H1");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn all_head_labels(&self) -> Vec<String> {
        let heads = |layer| (0..self.config().n_heads).map(move |head| Component::Head { layer, head }.to_string());
        (0..self.config().n_layers).flat_map(heads).collect()
    }
}
