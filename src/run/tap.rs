//! [`Tap`]: what the forward pass does at a hook point.

use std::panic::{catch_unwind, AssertUnwindSafe};

use indexmap::IndexMap;
use tch::Tensor;

use super::hooks::{Action, Entry, Hooks};
use super::kept::{Kept, KeptPositions};
use super::patch::Prepared;
use super::plan::Plan;
use super::sink::{self, Sink, SinkEntry};
use crate::hook::{End, HookPoint, PointSet};
use crate::text::input::Tokens;
use crate::{Error, Result};

/// Why a forward pass ends early: what would come next is not wanted, or something failed.
///
/// As an error, it lets `?` unwind a run from wherever its last live point fired.
#[derive(Debug)]
pub(crate) enum Halt {
    Done,
    Failed(Error),
}

/// A result within the forward pass.
pub(crate) type Flow<T> = std::result::Result<T, Halt>;

impl<E: Into<Error>> From<E> for Halt {
    fn from(error: E) -> Self {
        Halt::Failed(error.into())
    }
}

/// What a run does at hook points, and what has come of it.
pub(crate) struct Tap<'r, 'h> {
    pub(crate) plan: &'r Plan,
    hooks: Hooks<'h>,
    /// Each hook's patch for this input.
    patches: Vec<Option<Prepared>>,
    /// Which positions the run computes and keeps.
    positions: &'r KeptPositions,
    cache: IndexMap<HookPoint, Tensor>,
    /// The versions of cached tensors, where hooks could change them.
    versions: Vec<i64>,
    /// The points at which a hook put something else in place.
    changed: PointSet,
    /// Where kept activations go, if not to the cache's memory.
    sink: Option<Box<dyn Sink + 'h>>,
    /// Live points that have not fired yet.
    remaining: usize,
}

/// What a run leaves.
pub(crate) struct Recording {
    /// What was kept, in firing order.
    pub(crate) entries: IndexMap<HookPoint, Tensor>,
    /// The points at which something else was put in place of what the model computed.
    pub(crate) changed: PointSet,
}

impl<'r, 'h> Tap<'r, 'h> {
    /// The tap of a run on `input`: tokens, and how many positions come before them.
    pub(crate) fn new(
        plan: &'r Plan,
        hooks: Hooks<'h>,
        input: (&Tokens, i64),
        positions: &'r KeptPositions,
        mut sink: Option<Box<dyn Sink + 'h>>,
    ) -> Result<Self> {
        let prepare = |(entry, points): (&Entry, &PointSet)| match &entry.action {
            Action::Patch(patch) => patch.prepare(points, plan.config(), positions, input).map(Some),
            _ => Ok(None),
        };
        let patches = hooks.entries.iter().zip(&plan.hook_points).map(prepare).collect::<Result<_>>()?;
        if let Some(sink) = &mut sink {
            let size = input.0.ids.size();
            let planned = plan.planned(size[0] as usize, size[1] as usize, positions);
            guarded(None, || sink.begin(&planned))?.map_err(|source| sink::failed(None, source))?;
        }
        let cache = IndexMap::with_capacity(plan.cached.len());
        let (versions, changed, remaining) = (Vec::new(), PointSet::default(), plan.n_live);
        Ok(Tap { plan, hooks, patches, positions, cache, versions, changed, sink, remaining })
    }

    /// What the run has kept.
    ///
    /// # Errors
    ///
    /// [`Error::EditedInPlace`] where a hook changed a kept activation that it was shown before; the sink's.
    pub(crate) fn finish(mut self) -> Result<Recording> {
        if let Some(sink) = &mut self.sink {
            guarded(None, || sink.finish())?.map_err(|source| sink::failed(None, source))?;
        }
        for ((point, tensor), version) in self.cache.iter().zip(&self.versions) {
            if tensor.f_internal_version()? != *version {
                return Err(Error::EditedInPlace { name: point.to_string() });
            }
        }
        Ok(Recording { entries: self.cache, changed: self.changed })
    }

    /// That the run has something to do.
    pub(crate) fn begin(&self) -> Flow<()> {
        match self.remaining == 0 && self.plan.section.end == End::LastPoint {
            true => Err(Halt::Done),
            false => Ok(()),
        }
    }

    /// Whether something is done at `point`.
    #[inline]
    pub(crate) fn live(&self, point: HookPoint) -> bool {
        self.plan.live.contains(point)
    }

    /// Whether what `point` shows must be what flows on: a hook may change it, or it records a gradient, as `from`, which it is made
    /// of, does. Elsewhere it may be shown beside what flows on.
    #[inline]
    pub(crate) fn carries(&self, point: HookPoint, from: &Tensor) -> bool {
        self.live(point) && (self.plan.changed.contains(point) || from.requires_grad())
    }

    /// Passes an activation through `point`: one look-up in a bit set where nothing is done there.
    #[inline]
    pub(crate) fn at(&mut self, point: HookPoint, tensor: Tensor) -> Flow<Tensor> {
        if self.plan.live.contains(point) {
            self.fire(point, tensor, None)
        } else {
            Ok(tensor)
        }
    }

    /// [`Tap::at`] for an expert's rows, `[hit, d]`, of the tokens that `indices`, `[batch, pos, chosen]`, routes to it.
    #[inline]
    pub(crate) fn at_expert(&mut self, point: HookPoint, tensor: Tensor, indices: &Tensor) -> Flow<Tensor> {
        if self.plan.live.contains(point) {
            self.fire(point, tensor, Some(indices))
        } else {
            Ok(tensor)
        }
    }

    #[cold]
    fn fire(&mut self, point: HookPoint, mut tensor: Tensor, indices: Option<&Tensor>) -> Flow<Tensor> {
        if point.site().is_alias() {
            tensor = tensor.f_alias_copy()?;
        }
        for (nth, points) in self.plan.hook_points.iter().enumerate() {
            if points.contains(point) {
                tensor = self.act(nth, point, tensor)?;
            }
        }
        if self.plan.cached.contains(point)
            && let Some(Kept { kept, flowing }) = self.positions.keep(point, &tensor, indices)?
        {
            tensor = flowing.unwrap_or(tensor);
            if let Some(kept) = self.sunk(point, kept)? {
                if self.plan.has_closures {
                    self.versions.push(kept.f_internal_version()?);
                }
                self.cache.insert(point, kept);
            }
        }
        self.remaining = self.remaining.saturating_sub(1);
        if self.remaining == 0 && self.plan.section.end == End::LastPoint {
            return Err(Halt::Done);
        }
        Ok(tensor)
    }

    /// What the cache holds of an activation that is kept.
    fn sunk(&mut self, point: HookPoint, tensor: Tensor) -> Result<Option<Tensor>> {
        let (Some(sink), Some(positions)) = (&mut self.sink, self.positions.at(point)) else { return Ok(Some(tensor)) };
        let entry = SinkEntry { point, tensor: tensor.shallow_clone(), positions };
        shown(point, &tensor, || sink.keep(entry))?.map_err(|source| sink::failed(Some(point), source))
    }

    /// What a hook makes of an activation.
    fn act(&mut self, nth: usize, point: HookPoint, tensor: Tensor) -> Result<Tensor> {
        let failed = |source| Error::Hook { name: point.to_string(), source };
        let after = match &mut self.hooks.entries[nth].action {
            Action::Observe(f) => {
                shown(point, &tensor, || f(&tensor, point))?.map_err(failed)?;
                None
            }
            Action::Replace(f) => {
                let replacement = shown(point, &tensor, || f(&tensor, point))?.map_err(failed)?;
                if let Some(replacement) = &replacement {
                    check(point, &tensor, replacement)?;
                }
                replacement
            }
            Action::Edit(f) => {
                let mut edited = tensor.f_alias_copy()?;
                shown(point, &tensor, || f(&mut edited, point))?.map_err(failed)?;
                check(point, &tensor, &edited)?;
                Some(edited)
            }
            Action::Patch(patch) => match &self.patches[nth] {
                Some(prepared) => Some(patch.apply(prepared, point, self.plan.config(), self.positions, &tensor)?),
                None => None,
            },
            Action::StopGradient => return Ok(tensor.f_detach()?),
        };
        if after.is_some() {
            self.changed.insert(point);
        }
        Ok(after.unwrap_or(tensor))
    }
}

/// Runs a function of the caller's that must not change `tensor` in place.
fn shown<T>(point: HookPoint, tensor: &Tensor, f: impl FnOnce() -> T) -> Result<T> {
    // Views share their version, so a change through any of them counts.
    let before = tensor.f_internal_version()?;
    let result = guarded(Some(point), f)?;
    match tensor.f_internal_version()? == before {
        true => Ok(result),
        false => Err(Error::EditedInPlace { name: point.to_string() }),
    }
}

/// Runs a function of the caller's; a panic in it is an error that names the point.
fn guarded<T>(point: Option<HookPoint>, f: impl FnOnce() -> T) -> Result<T> {
    // What the function may have left half done is the caller's, who gets the error.
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let name = point.map_or("the run's sink".into(), |point| point.to_string());
        Error::HookPanicked { name, message: text.unwrap_or("it did not say why").into() }
    })
}

/// A replacement must be what it replaces: shape, kind and device.
fn check(point: HookPoint, expected: &Tensor, found: &Tensor) -> Result<()> {
    if !found.defined() {
        return Err(Error::wrong_input(format!("the hook at `{point}` returned an undefined tensor")));
    }
    let same =
        expected.size() == found.size() && expected.f_kind()? == found.f_kind()? && expected.device() == found.device();
    if same {
        return Ok(());
    }
    Err(Error::Replacement {
        name: point.to_string(),
        expected: expected.size(),
        expected_kind: expected.f_kind()?,
        found: found.size(),
        found_kind: found.f_kind()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::Section;
    use crate::hook::{all_points, HookFilter};
    use crate::unchecked::counting::allocations;
    use crate::Config;

    /// Passes a tensor through every point of a model, and gives the allocations that plan and points took together.
    fn allocated(select: Option<&HookFilter<'_>>) -> usize {
        let config = std::sync::Arc::new(Config::new(12, 8, 1, 1, 1));
        let points: Vec<HookPoint> = all_points(&config).collect();
        let mut tensor = Tensor::from(1.0);
        let tokens = Tokens::new(&Tensor::zeros([1, 1], (tch::Kind::Int64, tch::Device::Cpu))).unwrap();
        let before = allocations();
        let plan = Plan::new(
            (&config, tch::Kind::Float),
            Default::default(),
            &Hooks::new(),
            select,
            Section::whole(&config),
            None,
        )
        .unwrap();
        let positions = KeptPositions::everything(1);
        let mut tap = Tap::new(&plan, Hooks::new(), (&tokens, 0), &positions, None).unwrap();
        for point in points {
            tensor = tap.at(point, tensor).unwrap_or_else(|halt| panic!("{halt:?}"));
        }
        allocations() - before
    }

    #[test]
    fn a_run_without_hooks_allocates_nothing_for_them() {
        assert_eq!(allocated(None), 0);
        assert!(allocated(Some(&HookFilter::All)) > 0); // it does count
    }
}
