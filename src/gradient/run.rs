//! [`run_with_grad`](HookedTransformer::run_with_grad): a run, and the way back.

use tch::Tensor;

use super::cache::GradientCache;
use crate::cache::ActivationCache;
use crate::hook::HookPoint;
use crate::run::backward::{guarded_scalar, BackwardPass};
use crate::run::Order;
use crate::text::input::Input;
use crate::{autodiff, Error, HookedTransformer, Result, RunOptions, RunOutput};

/// The results of [`HookedTransformer::run_with_grad`].
#[derive(Debug)]
pub struct GradientOutput {
    /// The number that was differentiated.
    pub value: f64,
    /// What the run gave: its tensors record no gradients any more.
    pub run: RunOutput,
    /// The gradients of the number with respect to the activations that the run kept.
    pub gradients: GradientCache,
}

impl HookedTransformer {
    /// Runs the model, and differentiates a number that `scalar` computes from what the run gives: by one backward pass, with respect to
    /// every activation that the run keeps. TransformerLens' `run_with_cache(incl_bwd=True)`, for any number.
    ///
    /// `scalar` gets the logits, or the loss with [`RunOptions::return_type`], and the activations that [`RunOptions::cache`] selects, and
    /// returns a tensor of one entry. Without `cache`, every activation is kept that fires by default. Of gradients with respect to the input
    /// embeddings, the name is `hook_embed`.
    ///
    /// What comes before the first kept activation is not differentiated. Parameters stay as they are: nothing is added to gradients that they
    /// have. All settings of a run apply, but for `budget` and `sink`: hooks act in the forward pass, and those on gradients
    /// ([`Hooks::observe_gradient`](crate::Hooks::observe_gradient), [`Hooks::replace_gradient`](crate::Hooks::replace_gradient)) in the
    /// backward pass.
    ///
    /// ```
    /// use tch_lens::{hook, HookedTransformer, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let (mary, john) = (model.to_single_token(" Mary")?, model.to_single_token(" John")?);
    /// let run = RunOptions::new().cache(["pattern", "z"]).logits_at(-1);
    /// let output = model.run_with_grad("When Mary and John went to the shop, John gave a bag to", run, |output| {
    ///     let logits = output.logits()?.select(0, 0).select(0, 0); // [d_vocab_out]
    ///     Ok(logits.get(mary) - logits.get(john))
    /// })?;
    /// // By how much each head's pattern moves the difference of logits, to first order.
    /// let pattern = &output.gradients[hook::pattern(3)]; // [batch, head, query, key]
    /// assert_eq!(pattern.size(), [1, 4, 15, 15]);
    /// assert!(output.value > 0.0);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`HookedTransformer::run`]; those of `scalar`; [`Error::Shape`] where it returns more than one entry; [`Error::WrongInput`]
    /// where the number is not finite, or does not depend on what is kept; [`Error::Hook`] where `scalar` or a hook panics.
    pub fn run_with_grad<'a>(
        &self,
        input: impl Into<Input>,
        run: RunOptions<'a>,
        scalar: impl FnOnce(&RunOutput) -> Result<Tensor>,
    ) -> Result<GradientOutput> {
        let _recording = autodiff(true);
        let (output, backward) = self.run_recorded(input.into(), run.differentiable(Order::Once))?;
        let scalar = guarded_scalar(|| scalar(&output))?;
        let value = number(&scalar)?;
        let gradients = gradients(&output.cache, backward, &scalar)?;
        Ok(GradientOutput { value, gradients, run: detached(output)? })
    }
}

/// The one entry of the tensor that is differentiated.
pub(super) fn number(scalar: &Tensor) -> Result<f64> {
    if !scalar.defined() || scalar.numel() != 1 {
        let found = if scalar.defined() { scalar.size() } else { Vec::new() };
        return Err(Error::Shape { what: "the number to differentiate".into(), found, expected: "one entry".into() });
    }
    let value = scalar.f_detach()?.f_reshape([1])?.f_double_value(&[0])?;
    if !value.is_finite() {
        return Err(Error::wrong_input(format!("the number to differentiate is {value}: it must be finite")));
    }
    if !scalar.requires_grad() {
        return Err(Error::wrong_input(
            "the number to differentiate depends on nothing that the run keeps: compute it from the output's logits, loss or cache, and \
             select what comes before them with `cache`",
        ));
    }
    Ok(value)
}

fn gradients(cache: &ActivationCache, backward: BackwardPass<'_>, scalar: &Tensor) -> Result<GradientCache> {
    let kept: Vec<(HookPoint, Tensor)> = cache.items().map(|(point, x)| (point, x.shallow_clone())).collect();
    Ok(GradientCache::new(cache.with_entries(backward.gradients(scalar, &kept)?)))
}

/// What the run gave, without the record of gradients.
pub(super) fn detached(output: RunOutput) -> Result<RunOutput> {
    let detach = |x: Option<Tensor>| x.map(|x| x.f_detach()).transpose();
    let entries = output.cache.items().map(|(point, x)| Ok((point, x.f_detach()?)));
    let cache = output.cache.with_entries(entries.collect::<Result<Vec<_>>>()?);
    Ok(RunOutput { logits: detach(output.logits)?, loss: detach(output.loss)?, resid: detach(output.resid)?, cache })
}
