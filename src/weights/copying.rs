//! Copying scores: whether heads raise the logits of the tokens that they look at.

use tch::{Kind, Tensor};

use crate::model::Transformer;
use crate::tensor::factored::FactoredMatrix;
use crate::tensor::precision::widened;
#[cfg(doc)]
use crate::Error;
use crate::Result;

impl Transformer {
    /// The copying score of each head: `[layer, head]`, from −1 to 1.
    ///
    /// The score is `Σ λ / Σ |λ|` over the eigenvalues of the head's circuit from tokens to logits, `W_E W_V W_O W_U` (Elhage et al. 2021, "A
    /// Mathematical Framework for Transformer Circuits"). It is near 1 where looking at a token raises that token's own logit. Norms
    /// count as far as they are folded into the weights, which they are in a model that was loaded with processing. Only products of
    /// size `d_head × d_head` have their eigenvalues taken.
    ///
    /// ```
    /// let model = tch_lens::HookedTransformer::toy()?;
    /// assert_eq!(model.copying_scores()?.size(), [4, 4]);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a model whose outputs are not its vocabulary; [`Error::Torch`].
    pub fn copying_scores(&self) -> Result<Tensor> {
        let config = self.config();
        if config.d_vocab != config.d_vocab_out {
            return Err(crate::Error::unsupported(format!(
                "copying compares tokens with logits of the same tokens, but this model has {} tokens and {} outputs",
                config.d_vocab, config.d_vocab_out
            )));
        }
        let through_vocab = widened(&self.w_u()?)?.f_matmul(&widened(&self.w_e()?)?)?; // [d_model, d_model]
        let scores = (0..config.n_layers as i64).map(|layer| {
            // The eigenvalues of a product do not depend on where its cycle is cut.
            let right = through_vocab.f_matmul(&widened(&self.w_v(layer)?)?)?; // [head, d_model, d_head]
            let circuit = FactoredMatrix::new(&widened(&self.w_o(layer)?)?, &right)?; // [head, d_head, d_head]
            let eigenvalues = circuit.eigenvalues()?; // [head, d_head], complex
            let sum = |x: Tensor| {
                Ok::<_, crate::Error>(x.f_to_kind(Kind::Double)?.f_sum_dim_intlist([-1i64].as_slice(), false, None)?)
            };
            let total = sum(eigenvalues.f_abs()?)?;
            let kind = through_vocab.f_kind()?;
            Ok(sum(eigenvalues.f_real()?)?.f_div(&total)?.f_to_kind(kind)?) // [head]
        });
        Ok(Tensor::f_stack(&scores.collect::<Result<Vec<_>>>()?, 0)?)
    }
}
