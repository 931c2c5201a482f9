//! [`Tap`]: what the forward pass does at a hook point.

use indexmap::IndexMap;
use tch::{Kind, Tensor};

use super::backward::{is_differentiable, BackwardPass, Cut};
use super::entry::Entry;
use super::guard::{check, guarded, shown};
use super::hooks::{Action, Hooks};
use super::kept::{Kept, KeptPositions};
use super::part::Part;
use super::plan::{HookedPart, Plan};
use super::selected::Selected;
use super::sink::{self, RunDescription, Sink, SinkEntry};
use super::splicing::Spliced;
use crate::hook::{End, HookPoint, PointSet, Site};
use crate::text::input::Tokens;
use crate::{Error, HookFailure, Result};

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
    /// What each hooked part is in this input; absent where a function gets whole activations.
    selected: Vec<Option<Selected<'r>>>,
    /// Which positions the run computes and keeps.
    pub(super) positions: &'r KeptPositions,
    cache: IndexMap<HookPoint, Entry>,
    /// The versions of cached tensors, where hooks could change them.
    versions: Vec<i64>,
    /// The points at which a hook put something else in place.
    pub(super) changed: PointSet,
    /// The largest entry of what hooks got and of what they left, which is NaN where an entry is: compared at the end, so that no
    /// hook waits for its device.
    largest: Vec<(HookPoint, Tensor, Tensor)>,
    /// Where kept activations go, if not to the cache's memory.
    sink: Option<Box<dyn Sink + 'h>>,
    /// Where the graph is cut, for hooks on gradients.
    cuts: Vec<Cut>,
    /// What dictionaries have read, and features that write to later layers.
    pub(super) spliced: Spliced,
    /// The tokens: `[batch, pos]`.
    pub(super) ids: &'r Tensor,
    /// Live points that have not fired yet.
    remaining: usize,
}

/// What a run leaves.
pub(crate) struct Recording {
    /// What was kept, in firing order.
    pub(crate) entries: IndexMap<HookPoint, Entry>,
    /// The points at which something else was put in place of what the model computed.
    pub(crate) changed: PointSet,
}

impl<'r, 'h> Tap<'r, 'h> {
    /// The tap of a run on `input`: tokens, and how many positions come before them. `describe` makes a description of the run, whose hooks
    /// changed these points.
    pub(crate) fn new(
        plan: &'r Plan,
        hooks: Hooks<'h>,
        input: (&'r Tokens, i64),
        positions: &'r KeptPositions,
        mut sink: Option<Box<dyn Sink + 'h>>,
        describe: impl Fn(&PointSet) -> Result<RunDescription>,
    ) -> Result<Self> {
        let select = |part: &'r HookedPart| {
            let action = &hooks.entries[part.hook].action;
            if !matches!(action, Action::Patch(_)) && part.selection.is_all() {
                return Ok(None);
            }
            let selected = Selected::new(&part.selection, input.0, input.1)?;
            if let Action::Patch(patch) = action {
                patch.check_input(&selected, &part.points, plan, positions, input)?;
            }
            Ok(Some(selected))
        };
        let selected = plan.hooked.iter().map(select).collect::<Result<_>>()?;
        if let Some(sink) = &mut sink {
            let size = input.0.ids.size();
            let planned = plan.planned(size[0] as usize, size[1] as usize, positions);
            // Hooks can change so much at most.
            let describe = || describe(&plan.changed);
            guarded(SINK, || sink.describe(&describe))?.map_err(|source| sink::failed(None, source))?;
            guarded(SINK, || sink.begin(&planned))?.map_err(|source| sink::failed(None, source))?;
        }
        let cache = IndexMap::with_capacity(plan.cached.len());
        let (versions, changed, cuts, remaining) = (Vec::new(), PointSet::default(), Vec::new(), plan.n_live);
        let largest = Vec::new();
        let (spliced, ids) = (Spliced::default(), &input.0.ids);
        Ok(Tap {
            plan,
            hooks,
            selected,
            positions,
            cache,
            versions,
            changed,
            largest,
            sink,
            cuts,
            spliced,
            ids,
            remaining,
        })
    }

    /// What the run has kept.
    ///
    /// # Errors
    ///
    /// [`Error::Hook`] where a hook changed a kept activation that it was shown before; the sink's.
    ///
    /// `describe` makes a description of the run, whose hooks changed these points.
    pub(crate) fn finish(
        mut self,
        describe: impl Fn(&PointSet) -> Result<RunDescription>,
    ) -> Result<(Recording, BackwardPass<'h>)> {
        if let Some(sink) = &mut self.sink {
            let changed = &self.changed;
            guarded(SINK, || sink.describe(&|| describe(changed)))?.map_err(|source| sink::failed(None, source))?;
            guarded(SINK, || sink.finish())?.map_err(|source| sink::failed(None, source))?;
        }
        for ((point, entry), version) in self.cache.iter().zip(&self.versions) {
            if entry.shown().f_internal_version()? != *version {
                return Err(Error::hook(point, HookFailure::EditedInPlace));
            }
        }
        self.refuse_nan()?;
        let backward = BackwardPass { hooks: self.hooks, cuts: self.cuts, positions: self.positions.clone() };
        Ok((Recording { entries: self.cache, changed: self.changed }, backward))
    }

    /// An error where a hook left NaN and got none.
    fn refuse_nan(&self) -> Result<()> {
        if self.largest.is_empty() {
            return Ok(());
        }
        let isnan = |side: fn(&(HookPoint, Tensor, Tensor)) -> &Tensor| -> Result<Tensor> {
            let flags = self.largest.iter().map(|entry| Ok(side(entry).f_isnan()?)).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::f_stack(&flags, 0)?)
        };
        let caused = isnan(|(_, _, after)| after)?.f_logical_and(&isnan(|(_, before, _)| before)?.f_logical_not()?)?;
        let caused = Vec::<bool>::try_from(caused)?;
        match self.largest.iter().zip(caused).find(|(_, caused)| *caused) {
            Some(((point, ..), _)) => Err(Error::hook(point, HookFailure::NaN)),
            None => Ok(()),
        }
    }

    /// Remembers what a hook got and what it left.
    fn compare(&mut self, point: HookPoint, before: &Tensor, after: &Tensor) -> Result<()> {
        let kind = after.f_kind()?;
        if after.numel() > 0 && matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double) {
            let largest = |x: &Tensor| Ok::<_, Error>(x.f_detach()?.f_max()?);
            self.largest.push((point, largest(before)?, largest(after)?));
        }
        Ok(())
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
        self.live(point) && (self.plan.changed.contains(point) || from.requires_grad() || self.plan.records(point))
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
        let point = point.with_stack(self.plan.config().stack);
        if point.site().is_alias() {
            tensor = tensor.f_alias_copy()?;
        }
        if self.plan.spliced.contains(point) {
            tensor = self.splice(point, tensor)?;
        }
        let before = tensor.shallow_clone();
        for (nth, part) in self.plan.hooked.iter().enumerate() {
            if part.points.contains(point) {
                tensor = self.act(nth, point, tensor)?;
            }
        }
        if matches!(point.site(), Site::AttnScores | Site::CrossAttnScores) && self.plan.changed.contains(point) {
            self.compare_scores(point, &before, &tensor)?;
        }
        if self.plan.records(point) && is_differentiable(tensor.f_kind()?) {
            tensor = self.recorded(point, tensor, indices)?;
        }
        if self.plan.cached.contains(point)
            && let Some(Kept { kept, flowing }) = self.positions.keep(point, &tensor, indices)?
        {
            tensor = flowing.unwrap_or(tensor);
            let kept = match &self.sink {
                None => Some(Entry::kept(point, kept)?),
                Some(_) => self.sunk(point, kept)?.map(Entry::from),
            };
            if let Some(kept) = kept {
                self.hold(point, kept)?;
            }
        }
        self.read(point, &tensor);
        if self.plan.dictionary_only.contains(point) {
            return Ok(tensor);
        }
        self.fired()?;
        Ok(tensor)
    }

    /// Counts a live point as fired, and ends the run where it was the last one that the run is for.
    fn fired(&mut self) -> Flow<()> {
        self.remaining = self.remaining.saturating_sub(1);
        match self.remaining == 0 && self.plan.section.end == End::LastPoint {
            true => Err(Halt::Done),
            false => Ok(()),
        }
    }

    /// Puts an entry into the cache.
    fn hold(&mut self, point: HookPoint, entry: Entry) -> Result<()> {
        if self.plan.has_closures {
            self.versions.push(entry.shown().f_internal_version()?);
        }
        self.cache.insert(point, entry);
        Ok(())
    }

    /// Whether nothing needs the whole activation of a point: nothing is done there, or the cache keeps it in its own memory and nothing
    /// else is done.
    pub(super) fn is_only_kept(&self, point: HookPoint) -> bool {
        let plan = self.plan;
        !plan.live.contains(point)
            || (plan.cached.contains(point)
                && self.sink.is_none()
                && !plan.records(point)
                && !plan.hooked.iter().any(|part| part.points.contains(point)))
    }

    /// Keeps an activation of which only the cache wants anything: `entry` makes what is kept of it from what `of` is at the positions that are
    /// kept, which has the axes of batch and positions. Nothing happens at a point that is not live.
    pub(super) fn keep_late(
        &mut self,
        point: HookPoint,
        of: &Tensor,
        entry: impl FnOnce(Tensor) -> Result<Entry>,
    ) -> Flow<()> {
        if !self.plan.live.contains(point) {
            return Ok(());
        }
        if let Some(Kept { kept, .. }) = self.positions.keep(point, of, None)? {
            self.hold(point, entry(kept)?)?;
        }
        self.fired()
    }

    /// Remembers whether a query that could look at something can no longer look at anything: its pattern would be NaN.
    fn compare_scores(&mut self, point: HookPoint, before: &Tensor, after: &Tensor) -> Result<()> {
        // The difference of a row's two largest scores is −∞ where it is blind now, and NaN where it was before.
        let largest = |x: &Tensor| Ok::<_, Error>(x.f_detach()?.f_amax([-1i64].as_slice(), false)?);
        let difference = largest(after)?.f_sub(&largest(before)?)?;
        let blind = difference.f_isneginf()?.f_any()?.f_to_kind(Kind::Float)?;
        // 0 ÷ 0 is NaN.
        let none = blind.f_logical_not()?.f_to_kind(Kind::Float)?;
        let mark = none.f_div(&none)?;
        self.largest.push((point, blind, mark));
        Ok(())
    }

    /// An activation that has a gradient: itself, or a leaf of the same value where nothing before it is recorded, or where the graph is cut.
    fn recorded(&mut self, point: HookPoint, tensor: Tensor, indices: Option<&Tensor>) -> Result<Tensor> {
        if self.plan.cuts.contains(point) {
            let mut hooked = Vec::new();
            for (part, selected) in self.plan.hooked.iter().zip(&self.selected) {
                if part.points.contains(point) && self.hooks.entries[part.hook].action.is_backward() {
                    let of_hook = selected
                        .as_ref()
                        .map(|selected| selected.part(point, self.plan.config(), self.positions, &tensor.size()));
                    hooked.push((part.hook, of_hook.transpose()?));
                }
            }
            let after = leaf(&tensor)?;
            self.cuts.push(Cut {
                point,
                hooked,
                before: tensor,
                after: after.shallow_clone(),
                indices: indices.map(Tensor::shallow_clone),
                kept_before: self.cache.len(),
            });
            return Ok(after);
        }
        if tensor.requires_grad() {
            Ok(tensor)
        } else {
            leaf(&tensor)
        }
    }

    /// What the cache holds of an activation that is kept.
    fn sunk(&mut self, point: HookPoint, tensor: Tensor) -> Result<Option<Tensor>> {
        let (Some(sink), Some(positions)) = (&mut self.sink, self.positions.at(point)) else { return Ok(Some(tensor)) };
        let entry = SinkEntry { point, tensor: tensor.shallow_clone(), positions };
        shown(point, &tensor, || sink.keep(entry))?.map_err(|source| sink::failed(Some(point), source))
    }

    /// What a hook makes of an activation.
    fn act(&mut self, nth: usize, point: HookPoint, tensor: Tensor) -> Result<Tensor> {
        let (plan, positions) = (self.plan, self.positions);
        let failed = |source| Error::hook(point, HookFailure::Failed(source));
        let part = match &self.selected[nth] {
            Some(selected) => Some(selected.part(point, plan.config(), positions, &tensor.size())?),
            None => None,
        };
        let shown_part = |part: &Option<Part>| match part {
            Some(part) => part.read(&tensor),
            None => Ok(tensor.shallow_clone()),
        };
        let after = match &mut self.hooks.entries[plan.hooked[nth].hook].action {
            Action::Observe(f) => {
                let part = shown_part(&part)?;
                shown(point, &tensor, || f(&part, point))?.map_err(failed)?;
                return Ok(tensor);
            }
            Action::Replace(f) => {
                let part = shown_part(&part)?;
                let Some(replacement) = shown(point, &tensor, || f(&part, point))?.map_err(failed)? else {
                    return Ok(tensor);
                };
                check(point, &part, &replacement)?;
                replacement
            }
            Action::Edit(f) => {
                let mut edited = shown_part(&part)?.f_alias_copy()?;
                shown(point, &tensor, || f(&mut edited, point))?.map_err(failed)?;
                check(point, &shown_part(&part)?, &edited)?;
                edited
            }
            Action::Patch(patch) => {
                let Some(selected) = &self.selected[nth] else { return Ok(tensor) };
                let (patched, value) = patch.apply(selected, point, plan.config(), positions, &tensor)?;
                if !patch.is_number() {
                    self.compare(point, &tensor, &value)?;
                }
                self.changed.insert(point);
                return Ok(patched);
            }
            Action::StopGradient => match &part {
                None => return Ok(tensor.f_detach()?),
                Some(part) => {
                    let stopped = tensor.f_alias_copy()?;
                    part.write(&stopped, |found| Ok(found.f_detach()?))?;
                    return Ok(stopped);
                }
            },
            // They act on the way back.
            Action::ObserveGradient(_) | Action::ReplaceGradient(_) => return Ok(tensor),
        };
        self.changed.insert(point);
        let before = shown_part(&part)?;
        self.compare(point, &before, &after)?;
        match &part {
            None => Ok(after),
            Some(part) => {
                let whole = tensor.f_alias_copy()?;
                let after = after.f_reshape(part.lens())?;
                part.write(&whole, |_| Ok(after.shallow_clone()))?;
                Ok(whole)
            }
        }
    }
}

/// The same values, where a record of gradients begins.
fn leaf(tensor: &Tensor) -> Result<Tensor> {
    Ok(tensor.f_detach()?.f_set_requires_grad(true)?)
}

const SINK: &str = "the run's sink";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::Section;
    use crate::hook::{all_points, HookFilter};
    use crate::run::Differentiation;
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
            (&config, tch::Kind::Float, &Default::default()),
            Default::default(),
            &Hooks::new(),
            select,
            Section::whole(&config),
            None,
            Differentiation::default(),
        )
        .unwrap();
        let positions = KeptPositions::everything(1);
        let mut tap = Tap::new(&plan, Hooks::new(), (&tokens, 0), &positions, None, |_| Err(Error::NoWeights)).unwrap();
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
