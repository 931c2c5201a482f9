//! [`BackwardPass`]: from a scalar back to the activations that a run kept, through hooks on gradients.
//!
//! libtorch has no hooks on gradients in its C interface. So the graph is cut at the points with such hooks: what flows on is a new leaf
//! with the same value. The backward pass then runs in segments, from the last cut to the first: the gradient at a cut is complete once all
//! segments after it are done, the hooks act on it, and the next segment starts from there. The stream before each layer is cut as well,
//! so that no segment is longer than a layer.

use indexmap::IndexMap;
use tch::{Kind, Tensor};

use super::guard::{check, guarded, shown};
use super::hooks::{Action, Hooks};
use super::kept::KeptPositions;
use super::part::Part;
use crate::hook::HookPoint;
use crate::{Error, HookFailure, Result};

/// A point at which the graph is cut.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) point: HookPoint,
    /// The hooks that act on its gradient, and on which part; without one, on all of it.
    pub(crate) hooked: Vec<(usize, Option<Part>)>,
    /// What came to the point.
    pub(crate) before: Tensor,
    /// What flows on: a leaf of the same value.
    pub(crate) after: Tensor,
    /// The routing of an expert's rows.
    pub(crate) indices: Option<Tensor>,
    /// How many activations had been kept before.
    pub(crate) kept_before: usize,
}

/// What a recorded run leaves for its backward pass.
pub(crate) struct BackwardPass<'h> {
    pub(crate) hooks: Hooks<'h>,
    pub(crate) cuts: Vec<Cut>,
    pub(crate) positions: KeptPositions,
}

impl BackwardPass<'_> {
    /// The gradient of `scalar` at every activation of `kept`, which are in firing order: of those that have one, as whole numbers have
    /// none. The scalar does not depend on the parameters' own gradients, and nothing is added to these.
    ///
    /// # Errors
    ///
    /// A hook's: [`Error::Hook`].
    pub(crate) fn gradients(
        mut self,
        scalar: &Tensor,
        kept: &[(HookPoint, Tensor)],
    ) -> Result<IndexMap<HookPoint, Tensor>> {
        let inputs: Vec<Option<&Tensor>> = kept.iter().map(|(_, x)| x.requires_grad().then_some(x)).collect();
        let mut of_kept: Vec<Option<Tensor>> = kept.iter().map(|_| None).collect();
        let cuts = std::mem::take(&mut self.cuts);
        let mut of_cuts: Vec<Option<Tensor>> = cuts.iter().map(|_| None).collect();
        let mut root = Some(scalar.shallow_clone());
        for end in (0..=cuts.len()).rev() {
            // One segment: what comes before cut `end`, or the scalar.
            let n_kept = cuts.get(end).map_or(kept.len(), |cut| cut.kept_before);
            if let Some(root) = root.take() {
                let mut targets: Vec<&Tensor> = Vec::new();
                let mut sums: Vec<&mut Option<Tensor>> = Vec::new();
                for (input, sum) in inputs.iter().zip(&mut of_kept).take(n_kept) {
                    if let Some(input) = input {
                        targets.push(input);
                        sums.push(sum);
                    }
                }
                for (cut, sum) in cuts.iter().zip(&mut of_cuts).take(end) {
                    targets.push(&cut.after);
                    sums.push(sum);
                }
                add_gradients(&root, &targets, sums, end > 0)?;
            }
            let Some(start) = end.checked_sub(1) else { break };
            let cut = &cuts[start];
            let arriving = match of_cuts[start].take() {
                Some(gradient) => gradient,
                None => cut.after.f_detach()?.f_zeros_like()?,
            };
            let leaving = self.act(cut, arriving)?;
            // The kept activation, if it was kept here, has the gradient that leaves.
            let index = cut.kept_before;
            if kept.get(index).is_some_and(|(point, _)| *point == cut.point)
                && let Some(kept) = self.positions.keep(cut.point, &leaving, cut.indices.as_ref())?
            {
                of_kept[index] = Some(kept.kept);
            }
            if cut.before.requires_grad() {
                // The product's gradient with respect to `before` is `leaving`.
                root = Some(cut.before.f_mul(&leaving)?.f_sum(cut.before.f_kind()?)?);
            }
        }
        let mut gradients = IndexMap::with_capacity(kept.len());
        for (((point, tensor), input), gradient) in kept.iter().zip(inputs).zip(of_kept) {
            match (gradient, input) {
                (Some(gradient), _) => drop(gradients.insert(*point, gradient)),
                // Not on the path to the scalar.
                (None, Some(_)) => drop(gradients.insert(*point, tensor.f_detach()?.f_zeros_like()?)),
                (None, None) => {}
            }
        }
        Ok(gradients)
    }

    /// What the hooks at a cut make of its gradient.
    fn act(&mut self, cut: &Cut, mut gradient: Tensor) -> Result<Tensor> {
        let point = cut.point;
        let failed = |source| Error::hook(point, HookFailure::Failed(source));
        for (hook, part) in &cut.hooked {
            let found = match part {
                Some(part) => part.read(&gradient)?,
                None => gradient.shallow_clone(),
            };
            match &mut self.hooks.entries[*hook].action {
                Action::ObserveGradient(f) => {
                    shown(point, &gradient, || f(&found, point))?.map_err(failed)?;
                }
                Action::ReplaceGradient(f) => {
                    let Some(replacement) = shown(point, &gradient, || f(&found, point))?.map_err(failed)? else {
                        continue;
                    };
                    check(point, &found, &replacement)?;
                    let replacement = replacement.f_detach()?;
                    if has_nan(&replacement)? && !has_nan(&found)? {
                        return Err(Error::hook(point, HookFailure::NaN));
                    }
                    gradient = match part {
                        None => replacement,
                        Some(part) => {
                            let whole = gradient.f_alias_copy()?;
                            let replacement = replacement.f_reshape(part.lens())?;
                            part.write(&whole, |_| Ok(replacement.shallow_clone()))?;
                            whole
                        }
                    };
                }
                _ => {}
            }
        }
        Ok(gradient)
    }
}

fn has_nan(x: &Tensor) -> Result<bool> {
    Ok(x.f_isnan()?.f_any()?.f_int64_value(&[])? != 0)
}

/// Adds the gradients of `root` to sums.
fn add_gradients(root: &Tensor, inputs: &[&Tensor], sums: Vec<&mut Option<Tensor>>, keep_graph: bool) -> Result<()> {
    if inputs.is_empty() || !root.requires_grad() {
        return Ok(());
    }
    for (gradient, sum) in Tensor::f_run_backward(&[root], inputs, keep_graph, false)?.into_iter().zip(sums) {
        if gradient.defined() {
            *sum = Some(match sum.take() {
                Some(before) => before.f_add(&gradient)?,
                None => gradient,
            });
        }
    }
    Ok(())
}

/// Runs the caller's function that makes the scalar; a panic in it is an error.
pub(crate) fn guarded_scalar(f: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    guarded("the scalar whose gradient was asked for", f)?
}

/// Whether an activation of this kind can have a gradient.
pub(crate) fn is_differentiable(kind: Kind) -> bool {
    matches!(kind, Kind::Half | Kind::BFloat16 | Kind::Float | Kind::Double)
}
