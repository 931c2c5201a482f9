//! One batch of patches: a run of as many copies of the corrupted prompt, of which each has its own patch.

use std::collections::BTreeMap;

use tch::Tensor;

use super::base::shape;
use super::groups::Resume;
use super::sweep::{Item, Sweep, Write};
use crate::hook::{HookName, HookPoint, Place};
use crate::hooked_transformer::{HookedTransformer, RunOptions};
use crate::metric::MetricValues;
use crate::run::{Hooks, Part};
use crate::tensor::columns::Columns;
use crate::text::input::Tokens;
use crate::text::positions::Positions;
use crate::Result;

impl Sweep<'_, '_, '_> {
    /// The metric of each of some patches, which all change only columns from `from` on.
    pub(super) fn run_chunk(&self, resume: &Resume, items: &[Item], from: i64) -> Result<MetricValues> {
        let (model, config) = (self.model, self.model.config());
        let (batch, pos) = shape(self.tokens);
        let n = items.len() as i64;
        let columns = Columns::range(from, pos);
        let layers = resume.layer.unwrap_or(0)..config.n_layers;
        let mut store = match &self.base.store {
            Some(store) if from > 0 => Some(store.prefix(from as usize, pos as usize, n as usize, layers)?),
            _ => None,
        };
        let new = |x: &Tensor, point: HookPoint| -> Result<Tensor> {
            match point.axes().position {
                Some(axis) if point.place() != Place::After => Ok(x.f_narrow(axis as i64, from, pos - from)?),
                _ => Ok(x.shallow_clone()),
            }
        };
        // Of each point, the entries to write and their values, by patch.
        let mut writes: BTreeMap<HookPoint, Vec<(i64, Part, Tensor)>> = BTreeMap::new();
        for (i, item) in items.iter().enumerate() {
            for (selected, Write { part, value }) in &item.writes {
                let (point, value) = (part.point, new(value, part.point)?);
                let held = match point.place() {
                    Place::After => self.base.cache.logit_positions(),
                    _ => &columns,
                };
                let Some(selected) = selected.within(held) else { continue };
                let part = selected.part_of(point, config, &held.of_rows(selected.rows()), &value.size())?;
                let value = part.read_undropped(&value)?;
                writes.entry(point).or_default().push((i as i64 * batch, part, value));
            }
        }
        let write = |activation: &Tensor, writes: &[(i64, Part, Tensor)]| -> Result<()> {
            for (row, part, value) in writes {
                part.write(&activation.f_narrow(0, *row, batch)?, |_| Ok(value.shallow_clone()))?;
            }
            Ok(())
        };

        let mut stream: Option<Tensor> = None;
        for term in resume.terms(config) {
            let term = term.resolve(config)?;
            let mut activation = tiled(&new(self.base.cache.get(term)?, term)?, n)?;
            if resume.direct == Some(term) {
                // Rows that are repeated, or one patch alone, may be views of the corrupted run.
                let mut own = Tensor::f_empty(activation.size(), (activation.f_kind()?, activation.device()))?;
                own.f_copy_(&activation)?;
                activation = own;
                write(&activation, writes.get(&term).map_or(&[], Vec::as_slice))?;
            }
            stream = Some(match stream {
                Some(sum) => sum.f_add(&activation)?,
                None => activation,
            });
        }
        let mut hooks = Hooks::new();
        if resume.direct.is_none() {
            for (point, writes) in &writes {
                hooks = hooks.edit(*point, move |activation, _| write(activation, writes));
            }
        }
        let tokens = Tokens {
            ids: tiled(&self.tokens.ids.f_narrow(1, from, pos - from)?, n)?,
            mask: self.tokens.mask.as_ref().map(|mask| tiled(mask, n)).transpose()?,
            types: self
                .tokens
                .types
                .as_ref()
                .map(|types| tiled(&types.f_narrow(1, from, pos - from)?, n))
                .transpose()?,
        };
        let logit_columns = self.base.cache.logit_positions();
        let (fresh, places) = fresh_columns(logit_columns, from);
        let at = match logit_columns.row_count() {
            Some(_) => {
                let of_rows = (0..n * batch).flat_map(|row| logit_columns.of_row((row % batch) as usize));
                Positions::PerRow(of_rows.collect())
            }
            None => Positions::from(fresh),
        };
        let mut run = RunOptions::new().hooks(hooks).logits_at(at.with_padding());
        if !self.needs.is_empty() {
            run = run.cache(self.needs.clone());
        }
        if let Some(store) = &mut store {
            run = run.past(store);
        }
        let model = repeated(model, n)?;
        let mut output = match (stream, resume.layer) {
            (Some(stream), Some(layer)) => model.run(stream, run.start_at_layer(layer).tokens(&tokens))?,
            _ => model.run(tokens, run)?,
        };
        let logits = output.take_logits()?;
        let logits = match places {
            None => logits,
            // The logits before the first column are those of the corrupted run.
            Some(places) => {
                let index = Tensor::f_from_slice(&places)?.f_to_device(logits.device())?;
                tiled(&self.base.logits, n)?.f_index_copy(1, &index, &logits)?
            }
        };
        self.metric.values(&logits, n, Some(&output.cache))
    }
}

/// The columns from `from` on, and their places among all columns where there are others.
fn fresh_columns(columns: &Columns, from: i64) -> (Vec<i64>, Option<Vec<i64>>) {
    let all = columns.of_row(0);
    let fresh: Vec<(i64, i64)> =
        (0i64..).zip(&all).filter(|(_, column)| **column >= from).map(|(i, c)| (i, *c)).collect();
    let places = (fresh.len() < all.len()).then(|| fresh.iter().map(|(place, _)| *place).collect());
    (fresh.into_iter().map(|(_, column)| column).collect(), places)
}

/// The model for runs of `n` copies of a batch: a decoder reads what it reads of an encoder as many times.
pub(super) fn repeated(model: &HookedTransformer, n: i64) -> Result<HookedTransformer> {
    let Some(output) = model.encoder_output() else { return Ok(model.clone()) };
    let rows = output.stream().size()[0] as usize;
    match rows {
        1 => Ok(model.clone()),
        rows => {
            model.with_encoder_output(output.rows(&(0..rows * n as usize).map(|row| row % rows).collect::<Vec<_>>())?)
        }
    }
}

/// All rows, `n` times: `[batch, …]` to `[n · batch, …]`.
pub(super) fn tiled(x: &Tensor, n: i64) -> Result<Tensor> {
    let size = x.size();
    let expanded: Vec<i64> = std::iter::once(n).chain(size.iter().copied()).collect();
    let merged: Vec<i64> = std::iter::once(n * size[0]).chain(size[1..].iter().copied()).collect();
    Ok(x.f_unsqueeze(0)?.f_expand(&expanded, false)?.f_reshape(&merged)?)
}
