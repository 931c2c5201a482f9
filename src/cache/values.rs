//! Patches whose values come from a cache.

use std::sync::Arc;

use super::ActivationCache;
use crate::hook::HookTarget;
use crate::run::{Hooks, Patch, PatchValue, RunForm, RunValues};

impl ActivationCache {
    fn values_as(&self, form: RunForm) -> PatchValue {
        PatchValue::Run(RunValues {
            entries: Arc::clone(&self.entries),
            kept: self.kept.clone(),
            mask: self.tokens.mask.as_ref().map(|mask| mask.shallow_clone().into()),
            past: self.kept.past(),
            form,
        })
    }
}

impl From<&ActivationCache> for PatchValue {
    /// The activations as they are: row by row, and position by position.
    fn from(cache: &ActivationCache) -> Self {
        cache.values_as(RunForm::Same)
    }
}

impl Patch {
    /// Mean ablation: sets the entries to their mean over the rows and positions of another run. Padding does not count.
    ///
    /// ```
    /// use tch_lens::{hook, HookedTransformer, Hooks, Patch};
    /// let model = HookedTransformer::toy()?;
    /// let (_, cache) = model.run_with_cache_of(["When Anna and Peter went to the shop", "When Laura and Adam went to the shop"], "z")?;
    /// let hooks = Hooks::new().patch("z", Patch::mean(&cache).head(1)); // head 1 of every layer
    /// model.run_with_hooks("When Mary and John went to the shop", hooks)?;
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn mean(cache: &ActivationCache) -> Self {
        Patch::set(cache.values_as(RunForm::Mean))
    }

    /// Mean ablation by position: sets the entries at each position to their mean over the rows of another run at that position.
    pub fn mean_by_position(cache: &ActivationCache) -> Self {
        Patch::set(cache.values_as(RunForm::MeanByPosition))
    }

    /// Resample ablation: sets the entries of each row to those of a random row of another run, at the same positions. Which row follows
    /// from the seed and the row's number, so all points of a run draw the same.
    pub fn resample(cache: &ActivationCache, seed: u64) -> Self {
        Patch::set(cache.values_as(RunForm::Resampled(seed)))
    }
}

impl<'a> Hooks<'a> {
    /// Freezes activations: sets them to what they are in another run.
    ///
    /// ```
    /// use tch_lens::{hook, HookedTransformer, Hooks, Patch};
    /// let model = HookedTransformer::toy()?;
    /// let prompt = "When Mary and John went to the shop, John gave a bag to";
    /// let (_, cache) = model.run_with_cache(prompt)?;
    /// // What does head 1 of layer 0 do, if no pattern and no MLP reacts to it?
    /// let hooks = Hooks::new().freeze("pattern", &cache).freeze("mlp_out", &cache).patch(hook::z(0).head(1), Patch::zero());
    /// model.run_with_hooks(prompt, hooks)?;
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn freeze(self, target: impl Into<HookTarget<'a>>, cache: &ActivationCache) -> Self {
        self.patch(target, Patch::set(cache))
    }
}
