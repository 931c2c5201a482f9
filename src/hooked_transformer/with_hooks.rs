//! [`ModelWithHooks`]: a model whose runs all have some hooks.

use tch::Tensor;

use super::{HookedTransformer, ReturnType, RunOptions, RunOutput};
use crate::cache::ActivationCache;
use crate::hook::HookFilter;
use crate::run::Hooks;
use crate::text::input::Input;
use crate::Result;

/// A handle on a model with hooks that act in all of its runs: TransformerLens' permanent hooks.
///
/// The model itself is as it was: other handles, and its other users, run without these hooks. The hooks of a single run act after
/// those of the handle. Made by [`HookedTransformer::with_hooks`].
///
/// ```
/// use tch_lens::{hook, HookedTransformer, Hooks, Patch};
/// let model = HookedTransformer::toy()?;
/// let prompt = "When Mary and John went to the shop, John gave a bag to Mary";
/// let mut ablated = model.with_hooks(Hooks::new().patch(hook::z(2).head(1), Patch::zero()));
/// assert!(ablated.loss(prompt)? != model.loss(prompt)?);
/// let (_, cache) = ablated.run_with_cache(prompt)?; // the head is ablated in this run as well
/// assert!(cache.is_changed(hook::z(2)));
/// # Ok::<(), tch_lens::Error>(())
/// ```
pub struct ModelWithHooks<'h> {
    model: HookedTransformer,
    hooks: Hooks<'h>,
}

impl HookedTransformer {
    /// A handle on this model with hooks that act in all of its runs. The model does not change.
    pub fn with_hooks<'h>(&self, hooks: Hooks<'h>) -> ModelWithHooks<'h> {
        ModelWithHooks { model: self.clone(), hooks }
    }
}

impl<'h> ModelWithHooks<'h> {
    /// The model, without the hooks.
    pub fn model(&self) -> &HookedTransformer {
        &self.model
    }

    /// The same handle with more hooks, which act after those that it has.
    pub fn and(mut self, hooks: Hooks<'h>) -> Self {
        self.hooks = self.hooks.and(hooks);
        self
    }

    /// [`HookedTransformer::run`] with the hooks.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`]; a hook at a point that the run does not reach is one of them.
    pub fn run<'a>(&'a mut self, input: impl Into<Input>, mut run: RunOptions<'a>) -> Result<RunOutput> {
        let own = std::mem::take(&mut run.hooks);
        run.hooks = self.hooks.by_ref().and(own);
        self.model.run(input, run)
    }

    /// [`HookedTransformer::forward`] with the hooks.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn forward(&mut self, input: impl Into<Input>) -> Result<Tensor> {
        self.run(input, RunOptions::new())?.take_logits()
    }

    /// [`HookedTransformer::loss`] with the hooks.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn loss(&mut self, input: impl Into<Input>) -> Result<f64> {
        self.run(input, RunOptions::new().return_type(ReturnType::Loss))?.loss()
    }

    /// [`HookedTransformer::run_with_cache`] with the hooks.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn run_with_cache(&mut self, input: impl Into<Input>) -> Result<(Tensor, ActivationCache)> {
        self.run_with_cache_of(input, HookFilter::All)
    }

    /// [`HookedTransformer::run_with_cache_of`] with the hooks.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn run_with_cache_of<'a>(
        &'a mut self,
        input: impl Into<Input>,
        select: impl Into<HookFilter<'a>>,
    ) -> Result<(Tensor, ActivationCache)> {
        let mut output = self.run(input, RunOptions::new().cache(select))?;
        Ok((output.take_logits()?, output.cache))
    }

    /// [`HookedTransformer::run_with_hooks`] with the hooks, and others after them.
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`].
    pub fn run_with_hooks<'a>(&'a mut self, input: impl Into<Input>, hooks: Hooks<'a>) -> Result<Tensor> {
        self.run(input, RunOptions::new().hooks(hooks))?.take_logits()
    }
}

impl std::fmt::Debug for ModelWithHooks<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelWithHooks").field("model", &self.model).finish_non_exhaustive()
    }
}
