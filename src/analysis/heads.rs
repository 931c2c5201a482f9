//! `compute_head_results` and `stack_head_results`: what each head wrote.

use tch::Tensor;

use super::frozen_norm::FrozenNorm;
use super::options::HeadOptions;
use super::recipe::{Recipe, StackOptions};
use super::row_form::RowForm;
use super::stack::ResidualStack;
use super::window::View;
use crate::cache::ActivationCache;
use crate::component::{Component, Sublayer};
use crate::model::head_router::ChosenHeads;
use crate::{hook, Result};

impl ActivationCache {
    /// Adds each layer's `hook_result` to the cache, where it is absent: `[batch, pos, head, d_model]`, from `z` and `W_O`.
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
    /// [`Error::NoEntry`](crate::Error::NoEntry) where the run did not keep `z`, or did not keep a `result` that a hook changed.
    pub fn compute_head_results(&mut self) -> Result<()> {
        for layer in 0..self.model().config().n_layers {
            let point = hook::result(layer);
            if self.contains(point) {
                continue;
            }
            if self.is_changed(point) {
                self.get(point)?;
            }
            let with_batch = |x: &Tensor| -> Result<Tensor> {
                Ok(if self.has_batch_dim() { x.shallow_clone() } else { x.f_unsqueeze(0)? })
            };
            let chosen = match self.model().head_router(layer)? {
                None => None,
                Some(router) => {
                    let weights = with_batch(self.get(hook::head_weights(layer))?)?;
                    Some(router.chosen(&weights, with_batch(self.get(hook::head_indices(layer))?)?)?)
                }
            };
            let z = with_batch(self.get(hook::z(layer))?)?;
            let result = self.model().head_results(layer, &z, chosen.as_ref())?;
            let result = if self.has_batch_dim() { result } else { result.f_squeeze_dim(0)? };
            self.insert_after(hook::z(layer), point, result);
        }
        self.compute_cross_results()?;
        Ok(())
    }

    /// [`ActivationCache::compute_head_results`] of a decoder's cross-attention.
    fn compute_cross_results(&mut self) -> Result<()> {
        let config = self.model().shared_config().clone();
        for layer in 0..config.attention.cross.map_or(0, |_| config.n_layers) {
            let (z, point) = (hook::cross_z(layer), hook::cross_result(layer));
            if self.contains(point) {
                continue;
            }
            if self.is_changed(point) {
                self.get(point)?;
            }
            let z_of_run = self.get(z)?;
            let batched = if self.has_batch_dim() { z_of_run.shallow_clone() } else { z_of_run.f_unsqueeze(0)? };
            let result = self.model().cross_results(layer, &batched)?;
            let result = if self.has_batch_dim() { result } else { result.f_squeeze_dim(0)? };
            self.insert_after(z, point, result);
        }
        Ok(())
    }

    /// What each head wrote to the stream before the target: `[component, batch, pos, d_model]`, rows `L0H0`, `L0H1`, …, and of a
    /// decoder's cross-attention `L0C0`, `L0C1`, ….
    ///
    /// A head's row is `z W_O`, through the norm after attention where the model has one, at its frozen scale: so
    /// `Σ rows + bias` is `attn_out`, for every model. Where a hook changed `hook_result`, the rows are what it left there. With
    /// [`HeadOptions::incl_remainder`], the last row, `remainder`, is the rest of the stream; with [`HeadOptions::project`], rows are
    /// projected without being formed.
    ///
    /// ```
    /// # use tch_lens::{analysis::HeadOptions, HookedTransformer};
    /// # let model = HookedTransformer::toy()?;
    /// # let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let heads = cache.stack_head_results(HeadOptions::new().incl_remainder(true).pos(-1))?;
    /// assert_eq!(heads.tensor().size(), [4 * 4 + 1, 1, 128]);
    /// assert_eq!(heads.labels()[15], "L3H3");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`](crate::Error::NoEntry) and [`Error::NoPosition`](crate::Error::NoPosition) naming what the run did not keep;
    /// [`Error::LayerOutOfRange`](crate::Error::LayerOutOfRange) of the target; [`Error::Shape`](crate::Error::Shape) for directions of
    /// another width; those of the slices.
    pub fn stack_head_results(&self, options: HeadOptions) -> Result<ResidualStack> {
        let HeadOptions { target, apply_ln, window, incl_remainder, project } = options;
        self.decompose(&Recipe::Heads { incl_remainder }, StackOptions { target, apply_ln, window, project })
    }
}

impl View<'_> {
    /// What each head of a layer's attention, or of its cross-attention, wrote: `[head, batch, pos, last]`.
    pub(crate) fn head_rows(&self, layer: usize, sublayer: Sublayer, form: &RowForm) -> Result<Tensor> {
        let after = FrozenNorm::of_run(self.model().norm_after(layer, sublayer)?, self)?;
        let is_cross = sublayer == Sublayer::CrossAttention;
        let (z, result) = match is_cross {
            true => (hook::cross_z(layer), hook::cross_result(layer)),
            false => (hook::z(layer), hook::result(layer)),
        };
        // What a hook left in `result` is not in `z`.
        if self.cache.is_changed(result) || !self.cache.contains(z) && self.cache.contains(result) {
            let rows = self.get(result)?.f_permute([2, 0, 1, 3])?; // [head, batch, pos, d_model]
            return form.rows(&after.apply(&rows)?);
        }
        let z = self.get(z)?;
        if is_cross {
            return form.heads(&z, &self.model().cross_writer(layer)?.weight, &after);
        }
        let weight = &self.model().head_writer(layer)?.weight;
        match (self.model().head_router(layer)?, self.chosen_heads(layer)?) {
            (Some(router), Some(chosen)) => {
                // The heads of each choice are those of one expert.
                let rows = router.by_choice(&z, &chosen)?.into_iter();
                let rows = rows.map(|z| router.of_one_expert(&form.heads(&z, weight, &after)?, 0));
                Ok(Tensor::f_cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
            }
            _ => form.heads(&z, weight, &after),
        }
    }

    /// The experts whose heads tokens have, where the layer's heads are a mixture.
    pub(crate) fn chosen_heads(&self, layer: usize) -> Result<Option<ChosenHeads>> {
        let Some(router) = self.model().head_router(layer)? else { return Ok(None) };
        let indices = self.get_as_kept(hook::head_indices(layer))?;
        router.chosen(&self.get(hook::head_weights(layer))?, indices).map(Some)
    }

    /// The heads of a layer's attention, or of its cross-attention.
    pub(crate) fn head_components(&self, layer: usize, sublayer: Sublayer) -> impl Iterator<Item = Component> + use<> {
        (0..self.model().config().heads(layer).query).map(move |head| match sublayer {
            Sublayer::CrossAttention => Component::CrossHead { layer, head },
            _ => Component::Head { layer, head },
        })
    }
}
