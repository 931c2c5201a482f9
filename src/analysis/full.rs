//! `get_full_resid_decomposition`: heads, neurons, embeddings and biases, all that the stream is made of.

use tch::Tensor;

use super::options::Full;
use super::project::Directions;
use super::rows::Rows;
use super::stack::ResidualStack;
use super::window::Window;
use crate::cache::ActivationCache;
use crate::component::{Component, Reach};
use crate::hook;
use crate::tensor::slice::Slice;
use crate::Result;

impl ActivationCache {
    /// All that the stream at the target is made of: `[component, batch, pos, d_model]`.
    ///
    /// Rows: every head (`L0H0`, …), every neuron (`L0N0`, …) or, without [`Full::expand_neurons`], every MLP (`0_mlp_out`, …), `embed`,
    /// `pos_embed`, and `bias`. They sum to the stream, for every model. With [`Full::project`], rows are projected without being
    /// formed, which is what one wants of a model with many neurons.
    ///
    /// ```
    /// # use tch_lens::{analysis::Full, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let stack = cache.get_full_resid_decomposition(Full::new().pos(-1))?;
    /// let resid = cache[("resid_post", -1)].select(1, -1);
    /// assert!((stack.sum()? - resid).abs().max().double_value(&[]) < 1e-4);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`](crate::Error::NoEntry) naming what the run did not keep, and those of the slices.
    pub fn get_full_resid_decomposition(&self, options: Full) -> Result<ResidualStack> {
        let Full { target, apply_ln, window, expand_neurons, project } = options;
        let window = window.of(self)?;
        let reach = target.reach(self.model().config())?;
        self.stack_rows(&FullRows { expand_neurons }, &reach, &window, apply_ln, project)
    }
}

/// The rows of [`ActivationCache::get_full_resid_decomposition`].
pub(crate) struct FullRows {
    pub(crate) expand_neurons: bool,
}

impl FullRows {
    /// The rows after heads and MLPs, formed: `[row, batch, pos, d_model]`.
    fn rest(&self, cache: &ActivationCache, reach: &Reach, window: &Window) -> Result<Vec<Tensor>> {
        let embeddings = cache.embeddings();
        let mut rest = Vec::new();
        if !self.expand_neurons {
            for layer in 0..reach.mlp_layers {
                rest.push(window.of(cache, hook::mlp_out(layer))?.f_unsqueeze(0)?);
            }
        }
        for (_, point) in embeddings {
            rest.push(window.of(cache, point)?.f_unsqueeze(0)?);
        }
        rest.push(cache.accumulated_bias_rows(reach, window, self.expand_neurons)?);
        Ok(rest)
    }
}

impl Rows for FullRows {
    fn components(&self, cache: &ActivationCache, reach: &Reach) -> Result<Vec<Component>> {
        let mut components = cache.head_components(reach);
        match self.expand_neurons {
            true => components.extend(cache.neuron_components(reach, &Slice::All)?),
            false => components.extend((0..reach.mlp_layers).map(Component::MlpOut)),
        }
        components.extend(cache.embeddings().into_iter().map(|(component, _)| component));
        components.push(Component::Bias);
        Ok(components)
    }

    fn form(&self, cache: &ActivationCache, reach: &Reach, window: &Window) -> Result<Tensor> {
        let mut rows = Vec::new();
        for layer in 0..reach.attn_layers {
            rows.push(cache.head_rows(layer, window)?);
        }
        for layer in 0..if self.expand_neurons { reach.mlp_layers } else { 0 } {
            rows.push(cache.neuron_rows(layer, window, &Slice::All)?);
        }
        rows.extend(self.rest(cache, reach, window)?);
        Ok(Tensor::f_cat(&rows, 0)?)
    }

    fn project(&self, cache: &ActivationCache, reach: &Reach, window: &Window, onto: &Directions) -> Result<Tensor> {
        let mut rows = Vec::new();
        for layer in 0..reach.attn_layers {
            rows.push(cache.projected_heads(layer, window, onto)?);
        }
        for layer in 0..if self.expand_neurons { reach.mlp_layers } else { 0 } {
            rows.push(cache.projected_neurons(layer, window, &Slice::All, onto)?);
        }
        for formed in self.rest(cache, reach, window)? {
            rows.push(onto.rows(&formed)?);
        }
        Ok(Tensor::f_cat(&rows, 0)?)
    }
}
