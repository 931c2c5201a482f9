//! [`Tap`]: what the forward pass does at a hook point.

use indexmap::IndexMap;
use tch::Tensor;

use super::hooks::Hooks;
use super::kept::KeptPositions;
use super::plan::Plan;
use super::sink::Budget;
use crate::hook::HookPoint;
use crate::{Error, Result};

/// Why a forward pass ends early: nobody needs what would come next, or something failed.
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

/// Hooks, filter and cache of one run.
pub(crate) struct Tap<'r, 'h> {
    pub(crate) plan: &'r Plan,
    hooks: Hooks<'h>,
    /// Which positions the cache keeps.
    positions: &'r KeptPositions,
    cache: IndexMap<HookPoint, Tensor>,
    /// What the cache may take in memory.
    budget: Option<Budget>,
    /// Live points that have not fired yet.
    remaining: usize,
}

impl<'r, 'h> Tap<'r, 'h> {
    pub(crate) fn new(plan: &'r Plan, hooks: Hooks<'h>, positions: &'r KeptPositions, budget: Option<Budget>) -> Self {
        let cache = IndexMap::with_capacity(plan.cached.len());
        Tap { plan, hooks, positions, cache, budget, remaining: plan.n_live }
    }

    /// What the run has cached, in firing order.
    pub(crate) fn into_cache(self) -> IndexMap<HookPoint, Tensor> {
        if let Some(budget) = &self.budget {
            budget.finish();
        }
        self.cache
    }

    /// Whether somebody looks at `point`.
    #[inline]
    pub(crate) fn live(&self, point: HookPoint) -> bool {
        self.plan.live.contains(point)
    }

    /// Whether a hook stands at `point` that may replace what is there.
    #[inline]
    pub(crate) fn hooked(&self, point: HookPoint) -> bool {
        self.plan.hooked.contains(point)
    }

    /// Passes an activation through `point`: one look-up in a bit set where nobody looks at it.
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
        for (entry, points) in self.hooks.entries.iter_mut().zip(&self.plan.of_hook) {
            if points.contains(point) {
                let replacement =
                    (entry.hook)(&tensor, point).map_err(|source| Error::Hook { name: point.to_string(), source })?;
                if let Some(replacement) = replacement {
                    check(point, &tensor, &replacement)?;
                    tensor = replacement;
                }
            }
        }
        if self.plan.cached.contains(point) {
            if let Some(kept) = self.positions.keep(point, &tensor, indices)? {
                let kept = match &mut self.budget {
                    Some(budget) => budget.keep(point, kept)?,
                    None => kept,
                };
                self.cache.insert(point, kept);
            }
        }
        self.remaining = self.remaining.saturating_sub(1);
        if self.remaining == 0 && !self.plan.whole {
            return Err(Halt::Done);
        }
        Ok(tensor)
    }
}

/// A replacement must be what it replaces: shape, kind and device.
fn check(point: HookPoint, expected: &Tensor, found: &Tensor) -> Result<()> {
    if !found.defined() {
        return Err(Error::invalid(format!("the hook at `{point}` returned an undefined tensor")));
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
    use crate::hook::{all_points, HookFilter};
    use crate::unchecked::counting::allocations;
    use crate::Config;

    /// Passes a tensor through every point of a model, and gives the allocations that plan and points took together.
    fn allocated(select: Option<&HookFilter<'_>>) -> usize {
        let config = std::sync::Arc::new(Config::new(12, 8, 1, 1, 1));
        let points: Vec<HookPoint> = all_points(&config).collect();
        let mut tensor = Tensor::from(1.0);
        let before = allocations();
        let plan =
            Plan::new((&config, tch::Kind::Float), Default::default(), &Hooks::new(), select, None, true).unwrap();
        let positions = KeptPositions::everything(1);
        let mut tap = Tap::new(&plan, Hooks::new(), &positions, None);
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
