//! `compute_head_results` and `stack_head_results`: what each head wrote.

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::options::Heads;
use super::project::Directions;
use super::stack::ResidualStack;
use super::window::Window;
use crate::cache::ActivationCache;
use crate::component::{Component, Reach};
use crate::hook;
use crate::Result;

impl ActivationCache {
    /// Adds each layer's `hook_result` to the cache, where it is not there: `[batch, pos, head, d_model]`, from `z` and `W_O`.
    ///
    /// No other method needs this. As in TransformerLens, a head's result is what it wrote before any norm after attention.
    ///
    /// ```
    /// # use tch_lens::{hook, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, mut cache) = model.run_with_cache("When Mary and John")?;
    /// assert!(!cache.contains(hook::result(0)));
    /// cache.compute_head_results()?;
    /// assert_eq!(cache[hook::result(0)].size(), [1, 5, 4, 128]); // [batch, pos, head, d_model]
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`](crate::Error::NoEntry) where the run did not keep `z`.
    pub fn compute_head_results(&mut self) -> Result<()> {
        for layer in 0..self.model().config().n_layers {
            if self.contains(hook::result(layer)) {
                continue;
            }
            let z = self.get(hook::z(layer))?;
            let with_batch = if self.has_batch_dim() { z.shallow_clone() } else { z.f_unsqueeze(0)? };
            let result = self.model().weights().blocks[layer].attn.result(&with_batch)?;
            let result = if self.has_batch_dim() { result } else { result.f_squeeze_dim(0)? };
            self.insert_after(hook::z(layer), hook::result(layer), result);
        }
        Ok(())
    }

    /// What each head wrote to the stream before the target: `[component, batch, pos, d_model]`, rows `L0H0`, `L0H1`, ….
    ///
    /// A head's row is `z W_O`, through the norm after attention where the model has one, at its frozen scale: so
    /// `Σ rows + bias` is `attn_out`, for every model. With [`Heads::incl_remainder`], the last row, `remainder`, is the rest of the
    /// stream; with [`Heads::project`], rows are projected without being formed.
    ///
    /// ```
    /// # use tch_lens::{analysis::Heads, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let heads = cache.stack_head_results(Heads::new().incl_remainder(true).pos(-1))?;
    /// assert_eq!(heads.tensor().size(), [4 * 4 + 1, 1, 128]);
    /// assert_eq!(heads.labels()[15], "L3H3");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`](crate::Error::NoEntry) naming what the run did not keep, and those of the slices.
    pub fn stack_head_results(&self, options: Heads) -> Result<ResidualStack> {
        let Heads { target, apply_ln, window, incl_remainder, project } = options;
        let window = window.of(self)?;
        let reach = target.reach(self.model().config())?;
        let rows = HeadRows { incl_remainder };
        self.stack_rows(&rows, &reach, &window, apply_ln, project)
    }

    /// What each head of a layer wrote: `[head, batch, pos, d_model]`.
    pub(crate) fn head_rows(&self, layer: usize, window: &Window) -> Result<Tensor> {
        let z = window.of(self, hook::z(layer))?; // [batch, pos, head, d_head]
        let w_o = self.model().weights().blocks[layer].attn.w_o()?.f_to_kind(z.f_kind()?)?; // [head, d_head, d_model]
        let rows = z.f_permute([2, 0, 1, 3])?.f_matmul(&w_o.f_unsqueeze(1)?)?; // [head, batch, pos, d_model]
        FrozenNorm::after_attn(layer, self, window)?.apply(&rows)
    }

    /// The heads' components before the target.
    pub(crate) fn head_components(&self, reach: &Reach) -> Vec<Component> {
        let n_heads = self.model().config().n_heads;
        (0..reach.attn_layers).flat_map(|layer| (0..n_heads).map(move |head| Component::Head { layer, head })).collect()
    }

    /// [`ActivationCache::head_rows`] of a layer, projected: `[head, batch, pos, k]`.
    pub(crate) fn projected_heads(&self, layer: usize, window: &Window, onto: &Directions) -> Result<Tensor> {
        let z = window.of(self, hook::z(layer))?;
        let after = FrozenNorm::after_attn(layer, self, window)?;
        onto.heads(&z, &self.model().weights().blocks[layer].attn.o.weight, &after)
    }
}

/// The rows of [`ActivationCache::stack_head_results`].
pub(crate) struct HeadRows {
    pub(crate) incl_remainder: bool,
}
