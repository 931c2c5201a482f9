//! Hooks of a generation in one of its runs, which computes some of the positions.

use super::hooks::{Action, Entry, Hooks};
use super::patch::PatchValue;
use crate::hook::{HookTarget, LastAxis, Selection};
use crate::tensor::slice::Slice;
use crate::tensor::span::Span;
use crate::text::positions::Positions;
use crate::{Error, Result};

/// Where the prompts of a generation end. Negative positions count from there, since nothing else is known before it ends.
#[derive(Clone, Debug)]
pub(crate) struct PromptEnd {
    /// How many columns the prompts have, padding and an earlier store included.
    pub(crate) columns: i64,
    /// The column of each prompt's last token.
    pub(crate) last: Vec<i64>,
}

/// Where positions are some of those meant: which of them, and of how many.
type Places = Option<(Vec<i64>, i64)>;

impl Hooks<'_> {
    /// The hooks for a run of some positions, limited to these positions. A hook that acts at other positions only is left out.
    ///
    /// # Errors
    ///
    /// A position before the first one; rows whose positions lie partly in this run; noise at positions that come one by one.
    pub(crate) fn in_span(&mut self, prompt: &PromptEnd, span: Span) -> Result<Hooks<'_>> {
        let mut hooks = Hooks::new();
        for entry in &mut self.entries {
            let Entry { target, action } = entry.by_ref();
            if let Action::Patch(patch) = action {
                for (points, selection) in target.entries {
                    // A selection that is made twice is the plan's error.
                    let Ok(selection) = selection.and(&patch.selection) else {
                        let target = HookTarget { entries: vec![(points, selection)] };
                        hooks.entries.push(Entry { target, action: Action::Patch(patch.clone()) });
                        continue;
                    };
                    let Some((selection, places)) = in_span(&selection, &patch.value, prompt, span)? else { continue };
                    let mut patch = patch.clone();
                    (patch.selection, patch.places) = (Selection::default(), places);
                    let target = HookTarget { entries: vec![(points, selection)] };
                    hooks.entries.push(Entry { target, action: Action::Patch(patch) });
                }
                continue;
            }
            let mut entries = Vec::new();
            for (points, selection) in target.entries {
                let number = PatchValue::Number(0.0);
                entries.extend(in_span(&selection, &number, prompt, span)?.map(|(selection, _)| (points, selection)));
            }
            if !entries.is_empty() {
                hooks.entries.push(Entry { target: HookTarget { entries }, action });
            }
        }
        Ok(hooks)
    }
}

/// What a selection means in a span; `None` where that is nothing.
fn in_span(
    selection: &Selection,
    value: &PatchValue,
    prompt: &PromptEnd,
    span: Span,
) -> Result<Option<(Selection, Places)>> {
    let (mut found, mut found_places) = (selection.clone(), None);
    if let Some(positions) = &selection.positions {
        let rows = selection.rows.as_ref().unwrap_or(&Slice::All);
        let Some((positions, places)) = positions_in_span(positions, rows, prompt, span)? else { return Ok(None) };
        (found.positions, found_places) = (Some(positions), places);
    }
    if let Some((LastAxis::Key, keys)) = &selection.last {
        let Some(keys) = keys_in_span(keys, value, prompt, span)? else { return Ok(None) };
        found.last = Some((LastAxis::Key, keys));
    }
    if matches!(value, PatchValue::Noise { .. }) && span.columns().end > prompt.columns {
        return Err(Error::setting(
            "hooks",
            "a patch of noise can be at positions of the prompt only: its numbers depend on which positions are computed together",
        ));
    }
    Ok(Some((found, found_places)))
}

/// The positions of a span that are meant.
fn positions_in_span(
    positions: &Positions,
    rows: &Slice,
    prompt: &PromptEnd,
    span: Span,
) -> Result<Option<(Positions, Places)>> {
    let columns = span.columns();
    // What is padding behind the prompt is a row that has ended.
    let with_padding = columns.end > prompt.columns;
    let wrapped = |positions: Positions| if with_padding { positions.with_padding() } else { positions };
    match positions {
        Positions::WithPadding(inner) => {
            let found = positions_in_span(inner, rows, prompt, span)?;
            Ok(found.map(|(positions, places)| (positions.with_padding(), places)))
        }
        Positions::LastToken => {
            let rows_meant = rows.indices(prompt.last.len() as i64, "batch")?;
            let last = rows_meant.iter().map(|row| prompt.last[*row as usize]).collect();
            positions_in_span(&Positions::PerRow(last), rows, prompt, span)
        }
        Positions::PerRow(places) => {
            let places = places.iter().map(|place| absolute(*place, prompt)).collect::<Result<Vec<_>>>()?;
            match places.iter().filter(|place| columns.contains(place)).count() {
                0 => Ok(None),
                n if n == places.len() => Ok(Some((wrapped(Positions::PerRow(places)), None))),
                _ => Err(Error::setting(
                    "hooks",
                    "a hook at one position for each row needs all of them in one step of a generation: hook the rows one by one",
                )),
            }
        }
        Positions::Slice(Slice::All) => Ok(Some((Positions::Slice(Slice::All), None))),
        Positions::Slice(Slice::Index(index)) => {
            let index = absolute(*index, prompt)?;
            Ok(columns.contains(&index).then(|| (wrapped(Positions::Slice(Slice::Index(index))), None)))
        }
        Positions::Slice(slice) => {
            let (meant, known) = listed(slice, prompt, columns.end)?;
            let here = |(_, column): &(i64, i64)| columns.contains(column);
            let (places, found): (Vec<i64>, Vec<i64>) = (0..).zip(meant.iter().copied()).filter(here).unzip();
            if found.is_empty() {
                return Ok(None);
            }
            let places = known.filter(|all| *all != places.len() as i64).map(|all| (places, all));
            Ok(Some((wrapped(Positions::Slice(Slice::List(found))), places)))
        }
    }
}

/// The keys of a span that are meant.
fn keys_in_span(keys: &Slice, value: &PatchValue, prompt: &PromptEnd, span: Span) -> Result<Option<Slice>> {
    let n_keys = span.columns().end;
    Ok(match keys {
        Slice::All => Some(Slice::All),
        Slice::Index(index) => {
            let index = absolute(*index, prompt)?;
            (index < n_keys).then_some(Slice::Index(index))
        }
        slice => {
            let (meant, known) = listed(slice, prompt, n_keys)?;
            let found: Vec<i64> = meant.iter().copied().filter(|key| *key < n_keys).collect();
            let short = known.is_some_and(|all| all != found.len() as i64);
            if short && !found.is_empty() && matches!(value, PatchValue::Tensor(_)) {
                return Err(Error::setting(
                    "hooks",
                    format!("a patch with a tensor for keys {slice} needs all of them at once, and a run of a generation has {n_keys}"),
                ));
            }
            (!found.is_empty()).then_some(Slice::List(found))
        }
    })
}

/// A position counted from the start.
fn absolute(position: i64, prompt: &PromptEnd) -> Result<i64> {
    let absolute = if position < 0 { position.saturating_add(prompt.columns) } else { position };
    match absolute < 0 {
        true => {
            Err(Error::SliceOutOfRange { slice: format!("index {position}"), axis: "position", len: prompt.columns })
        }
        false => Ok(absolute),
    }
}

/// The positions up to `end` that a slice of several means, and how many it means if that does not depend on `end`.
fn listed(slice: &Slice, prompt: &PromptEnd, end: i64) -> Result<(Vec<i64>, Option<i64>)> {
    match slice {
        Slice::Range { start, end: stop, step } => {
            if *step < 1 {
                return Err(Error::wrong_input(format!("the step of a slice must be at least 1, but is {step}")));
            }
            let bound = |at: i64| if at < 0 { at.saturating_add(prompt.columns).max(0) } else { at };
            let start = bound(start.unwrap_or(0));
            let stop = stop.map(bound);
            let meant = (start..stop.unwrap_or(end).min(end)).step_by(*step as usize).collect();
            let count = |stop: i64| (stop - start).max(0).saturating_add(step - 1) / step;
            Ok((meant, stop.map(count)))
        }
        Slice::Mask(mask) => {
            let meant: Vec<i64> = (0..).zip(mask).filter(|(_, meant)| **meant).map(|(place, _)| place).collect();
            let count = meant.len() as i64;
            Ok((meant, Some(count)))
        }
        Slice::Tensor(tensor) => listed(&Slice::from_tensor(tensor)?, prompt, end),
        Slice::List(list) => {
            let meant = list.iter().map(|place| absolute(*place, prompt)).collect::<Result<Vec<_>>>()?;
            let count = meant.len() as i64;
            Ok((meant, Some(count)))
        }
        Slice::Index(index) => Ok((vec![absolute(*index, prompt)?], Some(1))),
        Slice::All => Ok(((0..end).collect(), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Patch;

    /// The positions of a span that are meant, for a prompt of five columns.
    fn meant(patch: Patch, past: usize, new: usize) -> Option<String> {
        let prompt = PromptEnd { columns: 5, last: vec![4, 2] };
        let (selection, places) = of_patch(&patch, &prompt, Span { past, new }).unwrap()?;
        Some(format!("{} {:?}", selection.positions.unwrap(), places))
    }

    fn of_patch(patch: &Patch, prompt: &PromptEnd, span: Span) -> Result<Option<(Selection, Places)>> {
        in_span(&patch.selection, &patch.value, prompt, span)
    }

    #[test]
    fn positions_are_absolute_and_negative_ones_count_from_the_prompt_s_end() {
        let at = |positions: Positions| move |past, new| meant(Patch::zero().pos(positions.clone()), past, new);
        let index = at((-1).into());
        assert_eq!((index(0, 5).unwrap(), index(5, 1)), (format!("{} None", Slice::Index(4)), None));
        let later = at(6.into());
        assert_eq!((later(0, 5), later(5, 1)), (None, None));
        assert_eq!(later(6, 1).unwrap(), format!("{} None", Slice::Index(6)));
        let open = at((-2..).into());
        assert_eq!(open(0, 5).unwrap(), format!("{} None", Slice::List(vec![3, 4])));
        assert_eq!(open(7, 1).unwrap(), format!("{} None", Slice::List(vec![7])));
        let across = at((4..7).into());
        assert_eq!(across(0, 5).unwrap(), format!("{} Some(([0], 3))", Slice::List(vec![4])));
        assert_eq!(across(6, 1).unwrap(), format!("{} Some(([2], 3))", Slice::List(vec![6])));
        assert_eq!(across(7, 1), None);
        assert_eq!(at(Positions::LastToken)(0, 5).unwrap(), "one position for each row None");
        assert_eq!(at(Positions::LastToken)(5, 1), None);
        let prompt = PromptEnd { columns: 5, last: vec![4, 2] };
        assert!(of_patch(&Patch::zero().pos(-6), &prompt, Span::whole(5)).is_err());
        let mixed = Patch::zero().pos(Positions::PerRow(vec![1, 5]));
        assert!(of_patch(&mixed, &prompt, Span::whole(5)).unwrap_err().to_string().contains("one by one"));
    }

    /// The columns up to `end` that a slice means, and how many it means, for a prompt of five columns.
    fn columns(slice: impl Into<Slice>, end: i64) -> (Vec<i64>, Option<i64>) {
        listed(&slice.into(), &PromptEnd { columns: 5, last: vec![4] }, end).unwrap()
    }

    #[test]
    fn listed_columns_keep_their_bounds() {
        let every = |start, end, step| Slice::Range { start, end, step };
        // Negative bounds count from the prompt's end, not from that of what has been run, and end at the first column.
        assert_eq!(columns(-2..-1, 9), (vec![3], Some(1)));
        assert_eq!(columns(-9..2, 9), (vec![0, 1], Some(2)));
        assert_eq!(columns(-9..-5, 9), (vec![], Some(0)));
        assert_eq!(columns(..-4, 9), (vec![0], Some(1)));
        // What is not run yet is counted and not listed; an open end has no count.
        assert_eq!(columns(3..8, 6), (vec![3, 4, 5], Some(5)));
        assert_eq!(columns(3..6, 6), (vec![3, 4, 5], Some(3)));
        assert_eq!(columns(4.., 6), (vec![4, 5], None));
        assert_eq!(columns(7.., 6), (vec![], None));
        assert_eq!(columns(8..10, 6), (vec![], Some(2)));
        // A step counts its last place, and not one beyond.
        assert_eq!(columns(every(Some(1), Some(7), 3), 9), (vec![1, 4], Some(2)));
        assert_eq!(columns(every(Some(1), Some(8), 3), 9), (vec![1, 4, 7], Some(3)));
        assert_eq!(columns(every(Some(1), Some(8), 3), 7), (vec![1, 4], Some(3)));
        assert_eq!(columns(every(Some(6), Some(2), 1), 9), (vec![], Some(0)));
        assert_eq!(columns(every(None, None, 2), 5), (vec![0, 2, 4], None));
        // Lists, masks and tensors name columns of the whole.
        assert_eq!(columns([7, -1, 0], 6), (vec![7, 4, 0], Some(3)));
        assert_eq!(columns(Slice::Mask(vec![true, false, true]), 2), (vec![0, 2], Some(2)));
        assert_eq!(columns(Slice::Tensor(tch::Tensor::from_slice(&[-5i64, 3])), 6), (vec![0, 3], Some(2)));
        assert_eq!(columns(Slice::Index(-5), 6), (vec![0], Some(1)));
        assert_eq!(columns(.., 3), (vec![0, 1, 2], None));
        let prompt = PromptEnd { columns: 5, last: vec![4] };
        for slice in [Slice::List(vec![1, -6]), Slice::Index(-6), every(None, None, 0)] {
            assert!(listed(&slice, &prompt, 9).is_err(), "{slice}");
        }
    }

    #[test]
    fn keys_that_are_not_there_yet_are_left_out() {
        let prompt = PromptEnd { columns: 5, last: vec![4, 4] };
        let keys = |patch: Patch, past, new| {
            let (selection, _) = of_patch(&patch, &prompt, Span { past, new }).unwrap()?;
            Some(selection.last.unwrap().1.to_string())
        };
        assert_eq!(keys(Patch::zero().key(-1), 0, 5), Some(Slice::Index(4).to_string()));
        assert_eq!(keys(Patch::zero().key(5), 0, 5), None);
        assert_eq!(keys(Patch::zero().key([2, 5]), 0, 5), Some(Slice::List(vec![2]).to_string()));
        assert_eq!(keys(Patch::zero().key(6..), 0, 5), None);
        let tensor = Patch::set(tch::Tensor::from_slice(&[1.0, 2.0])).key([2, 5]);
        assert!(of_patch(&tensor, &prompt, Span::whole(5)).is_err());
        let noise = Patch::noise(1.0, 3).pos(..);
        assert!(of_patch(&noise, &prompt, Span::whole(5)).is_ok());
        assert!(of_patch(&noise, &prompt, Span { past: 5, new: 1 }).is_err());
    }
}
