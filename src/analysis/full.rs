//! `get_full_resid_decomposition`: heads, neurons, embeddings and biases, all that the stream is made of.

use super::options::FullOptions;
use super::recipe::{Recipe, StackOptions};
use super::stack::ResidualStack;
use crate::cache::ActivationCache;
use crate::Result;

impl ActivationCache {
    /// All that the stream at the target is made of: `[component, batch, pos, d_model]`.
    ///
    /// Rows: every head (`L0H0`, …), every neuron (`L0N0`, …) or, without [`FullOptions::expand_neurons`], every MLP (`0_mlp_out`, …),
    /// `embed`, `pos_embed`, and `bias`; where a hook changed what is not a row of its own, `intervention`. They sum to the stream, for
    /// every model. With [`FullOptions::project`], rows are projected without being formed, which is what one wants of a model with
    /// many neurons.
    ///
    /// ```
    /// # use tch_lens::{analysis::FullOptions, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let stack = cache.get_full_resid_decomposition(FullOptions::new().pos(-1))?;
    /// let resid = cache[("resid_post", -1)].select(1, -1);
    /// assert!((stack.sum()? - resid).abs().max().double_value(&[]) < 1e-4);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`](crate::Error::NoEntry) and [`Error::NoPosition`](crate::Error::NoPosition) naming what the run did not keep;
    /// [`Error::LayerOutOfRange`](crate::Error::LayerOutOfRange) of the target; [`Error::Shape`](crate::Error::Shape) for directions of
    /// another width; those of the slices.
    pub fn get_full_resid_decomposition(&self, options: FullOptions) -> Result<ResidualStack> {
        let FullOptions { target, apply_ln, window, expand_neurons, project } = options;
        self.decompose(&Recipe::Full { expand_neurons }, StackOptions { target, apply_ln, window, project })
    }
}
