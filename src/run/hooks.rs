//! [`Hooks`]: what to do at which hook points.

use tch::Tensor;

use super::patch::Patch;
use crate::hook::{self, HookPart, HookPoint, HookTarget, Site};
use crate::layer::Layer;
use crate::tensor::slice::Slice;
use crate::text::positions::Positions;
use crate::Config;

/// What a hook may fail with.
pub type HookError = Box<dyn std::error::Error + Send + Sync>;

/// What to do at which hook points. Several hooks at one point act in the order in which they were added.
///
/// A hook acts at one point, at several, or where a predicate holds ([`HookFilter`](crate::HookFilter)); on the whole activation, or on
/// a part of it: `hook::z(3).head(1).pos(-1)` ([`HookPart`](crate::hook::HookPart)). Of a part, it gets a tensor of its own.
///
/// | to | use | the hook gets |
/// | --- | --- | --- |
/// | look | [`observe`](Hooks::observe) | `&Tensor` |
/// | put a known value in a known place | [`patch`](Hooks::patch) | nothing: a [`Patch`] is data |
/// | change entries in place | [`edit`](Hooks::edit) | `&mut Tensor`, a copy of its own |
/// | compute another tensor | [`replace`](Hooks::replace) | `&Tensor` |
/// | keep gradients from flowing | [`stop_gradient`](Hooks::stop_gradient) | nothing |
/// | look at a gradient | [`observe_gradient`](Hooks::observe_gradient) | `&Tensor` |
/// | compute another gradient | [`replace_gradient`](Hooks::replace_gradient) | `&Tensor` |
///
/// ```
/// use tch_lens::{hook, Hooks, HookedTransformer, Patch};
/// let model = HookedTransformer::toy()?;
/// let prompt = "When Mary and John went to the shop";
/// let mut norms = Vec::new();
/// let hooks = Hooks::new()
///     .patch(hook::z(0), Patch::zero().head(1).pos(-1)) // ablate a head at the last position
///     .edit(hook::z(1), |z, _point| {
///         let _ = z.select(2, 1).zero_(); // TransformerLens' `z[:, :, 1] = 0`
///     })
///     .replace(hook::mlp_out(-1), |mlp_out, _point| mlp_out * 0.5)
///     .observe("resid_post", |resid, point| norms.push((point, resid.norm().double_value(&[]))));
/// let logits = model.run_with_hooks(prompt, hooks)?;
/// assert_eq!(norms.len(), 4);
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// # What a hook may do
///
/// A tensor that a hook gets by `&` is the run's own. A hook that changes it in place (`z.select(2, 1).zero_()`) ends the run
/// with [`Error::Hook`](crate::Error::Hook); so does one that changes what it was shown earlier, as far as
/// the cache keeps that. Weights and the caller's tokens are never handed out, only copies, so no hook changes them. A hook that
/// panics ends the run with [`Error::Hook`](crate::Error::Hook), which names the point.
#[derive(Default)]
pub struct Hooks<'a> {
    pub(crate) entries: Vec<Entry<'a>>,
}

/// A hook, and the points and parts at which it acts.
pub(crate) struct Entry<'a> {
    pub(crate) target: HookTarget<'a>,
    pub(crate) action: Action<'a>,
}

/// Looks at an activation.
pub(crate) type Observer<'a> = dyn FnMut(&Tensor, HookPoint) -> Result<(), HookError> + 'a;
/// Returns what is put in place of an activation, or nothing.
pub(crate) type Replacer<'a> = dyn FnMut(&Tensor, HookPoint) -> Result<Option<Tensor>, HookError> + 'a;
/// Changes a copy of an activation.
pub(crate) type Editor<'a> = dyn FnMut(&mut Tensor, HookPoint) -> Result<(), HookError> + 'a;

/// What happens at a point.
pub(crate) enum Action<'a> {
    /// Something looks.
    Observe(Box<Observer<'a>>),
    /// Another tensor may be put in place of what is there.
    Replace(Box<Replacer<'a>>),
    /// A copy of what is there is changed and put in its place.
    Edit(Box<Editor<'a>>),
    /// Known entries get known values.
    Patch(Box<Patch>),
    /// The value stays, gradients end here.
    StopGradient,
    /// Something looks at the gradient.
    ObserveGradient(Box<Observer<'a>>),
    /// Another tensor may be put in place of the gradient.
    ReplaceGradient(Box<Replacer<'a>>),
}

impl<'a> Entry<'a> {
    pub(super) fn by_ref(&mut self) -> Entry<'_> {
        let action = match &mut self.action {
            Action::Observe(f) => Action::Observe(Box::new(move |tensor, point| f(tensor, point))),
            Action::Replace(f) => Action::Replace(Box::new(move |tensor, point| f(tensor, point))),
            Action::Edit(f) => Action::Edit(Box::new(move |tensor, point| f(tensor, point))),
            Action::Patch(patch) => Action::Patch(patch.clone()),
            Action::StopGradient => Action::StopGradient,
            Action::ObserveGradient(f) => Action::ObserveGradient(Box::new(move |tensor, point| f(tensor, point))),
            Action::ReplaceGradient(f) => Action::ReplaceGradient(Box::new(move |tensor, point| f(tensor, point))),
        };
        Entry { target: self.target.by_ref(), action }
    }
}

impl Action<'_> {
    /// Whether what comes out may have other values than what went in.
    pub(crate) fn changes(&self) -> bool {
        match self {
            Action::Observe(_) | Action::StopGradient => false,
            Action::ObserveGradient(_) | Action::ReplaceGradient(_) => false,
            Action::Replace(_) | Action::Edit(_) | Action::Patch(_) => true,
        }
    }

    /// Whether it runs a function of the caller's.
    pub(crate) fn is_closure(&self) -> bool {
        match self {
            Action::Observe(_) | Action::Replace(_) | Action::Edit(_) => true,
            Action::ObserveGradient(_) | Action::ReplaceGradient(_) => true,
            Action::Patch(_) | Action::StopGradient => false,
        }
    }

    /// Whether it acts on the gradient, in the backward pass.
    pub(crate) fn is_backward(&self) -> bool {
        matches!(self, Action::ObserveGradient(_) | Action::ReplaceGradient(_))
    }
}

impl<'a> Hooks<'a> {
    /// No hooks.
    pub fn new() -> Self {
        Hooks::default()
    }

    /// Adds a hook that looks: `f` gets the activation and the point, and returns nothing or a `Result`.
    pub fn observe<R: HookResult>(
        self,
        target: impl Into<HookTarget<'a>>,
        mut f: impl FnMut(&Tensor, HookPoint) -> R + 'a,
    ) -> Self {
        self.add(target, Action::Observe(Box::new(move |tensor, point| f(tensor, point).into_result())))
    }

    /// Adds a hook that returns what stands in the activation's place: of the same shape, kind and device. It returns a tensor,
    /// an `Option` of one (`None` leaves what is there), or a `Result` of either.
    pub fn replace<R: HookReplacement>(
        self,
        target: impl Into<HookTarget<'a>>,
        mut f: impl FnMut(&Tensor, HookPoint) -> R + 'a,
    ) -> Self {
        self.add(target, Action::Replace(Box::new(move |tensor, point| f(tensor, point).into_replacement())))
    }

    /// Adds a hook that changes a copy of the activation; the run goes on with what that holds afterwards. `f` returns nothing
    /// or a `Result`.
    ///
    /// ```
    /// use tch_lens::{hook, Hooks, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let hooks = Hooks::new().edit(hook::pattern(0), |pattern, _| {
    ///     let _ = pattern.select(1, 3).fill_(0.1); // head 3
    /// });
    /// model.run_with_hooks("When Mary", hooks)?;
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn edit<R: HookResult>(
        self,
        target: impl Into<HookTarget<'a>>,
        mut f: impl FnMut(&mut Tensor, HookPoint) -> R + 'a,
    ) -> Self {
        self.add(target, Action::Edit(Box::new(move |tensor, point| f(tensor, point).into_result())))
    }

    /// Puts values in chosen entries of the activation. What is chosen and what is put there is data, so it is checked before
    /// the run.
    pub fn patch(self, target: impl Into<HookTarget<'a>>, patch: Patch) -> Self {
        self.add(target, Action::Patch(Box::new(patch)))
    }

    /// Ends the flow of gradients at the points: backwards, what comes after a point does not depend on what comes before it,
    /// as far as that goes through the point. The values stay.
    ///
    /// ```
    /// use tch_lens::{hook, Hooks, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let hooks = Hooks::new().stop_gradient("pattern"); // attention patterns as constants
    /// assert_eq!(model.run_with_hooks("When Mary", hooks)?.size(), model.forward("When Mary")?.size());
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn stop_gradient(self, target: impl Into<HookTarget<'a>>) -> Self {
        self.add(target, Action::StopGradient)
    }

    /// Attention knockout (Geva et al. 2023, "Dissecting Recall of Factual Associations"): in these layers, no head looks from the
    /// positions `queries` at the positions `keys`. Their scores become −∞, so that the rest of the attention grows in their place.
    ///
    /// For some heads only, it is a patch: `hook::attn_scores(2).head(1).pos(-1).key(4)` with `Patch::set(f64::NEG_INFINITY)`. A query that
    /// may look at nothing any more ends the run with [`Error::Hook`](crate::Error::Hook).
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, Hooks};
    /// let model = HookedTransformer::toy()?;
    /// let prompt = "When Mary and John went to the shop, John gave a bag to";
    /// let hooks = Hooks::new().knock_out_attention(0..4, -1, 2); // the last token does not see " Mary"
    /// let logits = model.run_with_hooks(prompt, hooks)?;
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn knock_out_attention<L: Into<Layer>>(
        self,
        layers: impl IntoIterator<Item = L>,
        queries: impl Into<Positions>,
        keys: impl Into<Slice>,
    ) -> Self {
        let (queries, keys) = (queries.into(), keys.into());
        let part = |layer: L| hook::attn_scores(layer).pos(queries.clone()).key(keys.clone());
        let parts: Vec<HookPart> = layers.into_iter().map(part).collect();
        self.patch(parts, Patch::set(f64::NEG_INFINITY))
    }

    /// All hooks of `other`, after these.
    pub fn and(mut self, other: Hooks<'a>) -> Self {
        self.entries.extend(other.entries);
        self
    }

    /// The same hooks for one run, after which they can be used again. State that they hold goes on.
    ///
    /// ```
    /// use tch_lens::{hook, Hooks, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let mut count = 0;
    /// let mut hooks = Hooks::new().observe(hook::z(0), |_, _| count += 1);
    /// for prompt in ["When Mary", "When John"] {
    ///     model.run_with_hooks(prompt, hooks.by_ref())?;
    /// }
    /// drop(hooks);
    /// assert_eq!(count, 2);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn by_ref(&mut self) -> Hooks<'_> {
        Hooks { entries: self.entries.iter_mut().map(Entry::by_ref).collect() }
    }

    /// Adds a hook that looks at the gradient, in [`run_with_grad`](crate::HookedTransformer::run_with_grad): `f` gets the gradient of
    /// the scalar with respect to the activation, in the activation's shape, and the point. It returns nothing or a `Result`.
    ///
    /// Hooks on gradients run from the last point to the first; those at one point act in the order in which they were added. A gradient is
    /// complete when it is shown: all paths from the activation to the scalar count.
    pub fn observe_gradient<R: HookResult>(
        self,
        target: impl Into<HookTarget<'a>>,
        mut f: impl FnMut(&Tensor, HookPoint) -> R + 'a,
    ) -> Self {
        self.add(target, Action::ObserveGradient(Box::new(move |tensor, point| f(tensor, point).into_result())))
    }

    /// Adds a hook that returns what stands in the gradient's place: of the same shape, kind and device, without NaN. All that comes
    /// before the point gets its gradient from there. It returns a tensor, an `Option` of one (`None` leaves what is there), or a
    /// `Result` of either.
    ///
    /// ```
    /// use tch_lens::{hook, Hooks, HookedTransformer, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let hooks = Hooks::new().replace_gradient("mlp_out", |gradient, _| gradient * 0.0); // nothing flows back through MLPs
    /// let run = RunOptions::new().cache("resid_pre").hooks(hooks);
    /// let output = model.run_with_grad("When Mary and John", run, |output| Ok(output.logits()?.sum(None)))?;
    /// assert_eq!(output.gradients.keys().len(), 4);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn replace_gradient<R: HookReplacement>(
        self,
        target: impl Into<HookTarget<'a>>,
        mut f: impl FnMut(&Tensor, HookPoint) -> R + 'a,
    ) -> Self {
        self.add(target, Action::ReplaceGradient(Box::new(move |tensor, point| f(tensor, point).into_replacement())))
    }

    /// Whether nothing is done anywhere.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a hook is a function of the caller's.
    /// The hooks at points of a model of this shape, one of several.
    pub(crate) fn in_model(&mut self, config: &Config) -> Hooks<'_> {
        let mut hooks = Hooks::new();
        for entry in &mut self.entries {
            let Entry { target, action } = entry.by_ref();
            let entries = target.entries.into_iter();
            let entries = entries.filter_map(|(points, selection)| Some((points.in_model(config)?, selection)));
            let target = HookTarget { entries: entries.collect() };
            if !target.entries.is_empty() {
                hooks.entries.push(Entry { target, action });
            }
        }
        hooks
    }

    /// That every hook is at points of one of these models.
    pub(crate) fn check_in(&self, encoder: &Config, decoder: &Config) -> crate::Result<()> {
        let filters = self.entries.iter().flat_map(|entry| &entry.target.entries);
        filters.map(|(points, _)| points).try_for_each(|points| points.check_in(encoder, decoder))
    }

    pub(crate) fn has_closures(&self) -> bool {
        self.entries.iter().any(|entry| entry.action.is_closure())
    }

    /// Whether a hook may change attention scores or patterns.
    pub(crate) fn change_patterns(&self, config: &Config) -> crate::Result<bool> {
        for entry in self.entries.iter().filter(|entry| entry.action.changes()) {
            for (points, _) in &entry.target.entries {
                let points = points.resolve(config)?;
                if points.iter().any(|point| matches!(point.site(), Site::AttnScores | Site::Pattern)) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn add(mut self, target: impl Into<HookTarget<'a>>, action: Action<'a>) -> Self {
        self.entries.push(Entry { target: target.into(), action });
        self
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for () {}
    impl Sealed for tch::Tensor {}
    impl Sealed for Option<tch::Tensor> {}
    impl<T: Sealed, E> Sealed for Result<T, E> {}
}

/// What a hook returns that looks or edits: nothing, or a `Result` of nothing.
pub trait HookResult: sealed::Sealed {
    #[doc(hidden)]
    fn into_result(self) -> Result<(), HookError>;
}

impl HookResult for () {
    fn into_result(self) -> Result<(), HookError> {
        Ok(())
    }
}

impl<E: Into<HookError>> HookResult for Result<(), E> {
    fn into_result(self) -> Result<(), HookError> {
        self.map_err(Into::into)
    }
}

/// What a hook returns that replaces: a tensor, an `Option` of one, or a `Result` of either.
pub trait HookReplacement: sealed::Sealed {
    #[doc(hidden)]
    fn into_replacement(self) -> Result<Option<Tensor>, HookError>;
}

impl HookReplacement for Tensor {
    fn into_replacement(self) -> Result<Option<Tensor>, HookError> {
        Ok(Some(self))
    }
}

impl HookReplacement for Option<Tensor> {
    fn into_replacement(self) -> Result<Option<Tensor>, HookError> {
        Ok(self)
    }
}

impl<T: HookReplacement, E: Into<HookError>> HookReplacement for Result<T, E> {
    fn into_replacement(self) -> Result<Option<Tensor>, HookError> {
        self.map_err(Into::into)?.into_replacement()
    }
}
