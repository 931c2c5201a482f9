//! [`Record`]: the activations of all steps as the cache of one run.

use indexmap::IndexMap;
use tch::Tensor;

use crate::cache::ActivationCache;
use crate::hook::{self, Extent, HookFilter, HookPoint, Name, PointSet, Site};
use crate::hooked_transformer::HookedTransformer;
use crate::run::kept::KeptPositions;
use crate::run::{Entry, Recording};
use crate::tensor::columns::Columns;
use crate::tensor::routed::{hits, rows_at};
use crate::tensor::scalar::full;
use crate::text::input::Tokens;
use crate::text::positions::{PositionAxis, Positions};
use crate::{Error, Result};

/// The activations of the runs of a generation, each with how many of its columns count.
#[derive(Debug)]
pub(super) struct Record {
    /// What is kept of each run: also the experts to which tokens are routed, which order the experts' rows.
    points: Vec<HookPoint>,
    /// What was asked for.
    asked: PointSet,
    parts: Vec<(ActivationCache, usize)>,
}

impl Record {
    /// A record of the points that a filter selects.
    pub(super) fn new(select: &HookFilter<'_>, model: &HookedTransformer) -> Result<Self> {
        let mut points = select.resolve(model.config())?;
        let mut asked = PointSet::default();
        points.iter().for_each(|point| asked.insert(*point));
        for layer in 0..model.config().n_layers {
            let indices = hook::expert_indices(layer);
            if points.iter().any(|point| point.expert().is_some() && point.layer() == Some(layer))
                && !asked.contains(indices)
            {
                points.push(indices);
            }
        }
        Ok(Record { points, asked, parts: Vec::new() })
    }

    /// What the cache of a run must keep.
    pub(super) fn filter(&self) -> HookFilter<'static> {
        HookFilter::These(self.points.iter().map(|point| Name::Point(*point)).collect())
    }

    /// Adds what a run kept, of its first `columns` columns.
    pub(super) fn push(&mut self, cache: ActivationCache, columns: usize) {
        self.parts.push((cache, columns));
    }

    /// Changes how many columns of the last run count.
    pub(super) fn keep(&mut self, columns: usize) {
        if let Some((_, kept)) = self.parts.last_mut() {
            *kept = columns;
        }
    }

    /// Forgets all runs.
    pub(super) fn clear(&mut self) {
        self.parts.clear();
    }

    /// The first column.
    pub(super) fn first(&self) -> usize {
        self.parts.first().map_or(0, |(cache, _)| cache.past() as usize)
    }

    /// The cache of one run over all columns, whose tokens these are.
    pub(super) fn finish(self, model: &HookedTransformer, tokens: Tokens) -> Result<ActivationCache> {
        let first = self.first() as i64;
        let columns = first..first + tokens.ids.size()[1];
        let mut entries = IndexMap::new();
        let mut changed = PointSet::default();
        self.parts.iter().flat_map(|(cache, _)| cache.changed()).for_each(|point| changed.insert(point));
        let Some((start, _)) = self.parts.first() else { return Err(Error::Internal("a generation has no run")) };
        for point in start.keys().filter(|point| self.asked.contains(*point)) {
            let whole = match point.expert() {
                Some(expert) => self.expert_rows(point, expert, columns.end - columns.start)?.into(),
                None => self.joined(point, columns.end)?,
            };
            entries.insert(point, whole);
        }
        let axis = PositionAxis::new(&tokens, first, (0..tokens.ids.size()[0]).collect())?;
        let kept = KeptPositions::new(&Positions::default(), &Positions::default(), &axis)?;
        let tokens = tokens.to_device(model.device())?;
        let recording = Recording { entries, changed };
        Ok(ActivationCache::new(recording, model.transformer().clone(), model.tokenizer().ok().cloned(), tokens, kept))
    }

    /// The activation of all runs along the position axis. Keys that came after a run's queries are hidden from these.
    fn joined(&self, point: HookPoint, n_keys: i64) -> Result<Entry> {
        let Some(axis) = point.axes().position.map(|axis| axis as i64) else {
            // Keys and values of an encoder's output, which are the same in all runs.
            let last = self.parts.last().ok_or(Error::Internal("a generation has no run"))?;
            return Ok(last.0.entry(point)?.clone());
        };
        let [(only, columns)] = &self.parts[..] else {
            let parts = self.parts.iter().map(|(cache, columns)| {
                let part = cache.entry(point)?.narrowed(axis, *columns as i64)?;
                if point.extents(cache.model().config()).last() != Some(&Extent::Key) {
                    return Ok(part);
                }
                let part = part.formed()?;
                let mut size = part.size();
                let last = size.len() - 1;
                if size[last] >= n_keys {
                    return Ok(part.f_narrow(-1, 0, n_keys)?.into());
                }
                size[last] = n_keys - size[last];
                let hidden = if point.site() == Site::AttnScores { f64::NEG_INFINITY } else { 0.0 };
                let hidden = full(&size, hidden, (part.f_kind()?, part.device()))?;
                Ok(Tensor::f_cat(&[part, hidden], -1)?.into())
            });
            return Entry::joined(&parts.collect::<Result<Vec<_>>>()?, axis);
        };
        only.entry(point)?.narrowed(axis, *columns as i64)
    }

    /// An expert's rows of all runs, in the order in which one run has them: by the rank of the choice, and then by the token.
    fn expert_rows(&self, point: HookPoint, expert: usize, n_columns: i64) -> Result<Tensor> {
        let layer = point.layer().ok_or(Error::Internal("an expert has no layer"))?;
        let (mut rows, mut places) = (Vec::new(), Vec::new());
        for (cache, columns) in &self.parts {
            let indices = cache.get(hook::expert_indices(layer))?; // [batch, pos, chosen]
            let [batch, pos] = [indices.size()[0], indices.size()[1]];
            let kept = Columns::range(0, *columns as i64);
            let tensor = rows_at(cache.get(point)?, indices, expert, &Columns::range(0, batch), &kept)?;
            let before = cache.past() - self.first() as i64;
            let (rank, row) = hits(&indices.f_narrow(1, 0, (*columns as i64).min(pos))?, expert)?;
            let (rank, row) = (Vec::<i64>::try_from(rank)?, Vec::<i64>::try_from(row)?);
            let columns = *columns as i64;
            places.extend(
                rank.into_iter()
                    .zip(row)
                    .map(|(rank, row)| (rank * batch + row / columns) * n_columns + before + row % columns),
            );
            rows.push(tensor);
        }
        let mut order: Vec<i64> = (0..places.len() as i64).collect();
        order.sort_by_key(|nth| places[*nth as usize]);
        let rows = Tensor::f_cat(&rows, 0)?;
        Ok(rows.f_index_select(0, &Tensor::f_from_slice(&order)?.f_to_device(rows.device())?)?)
    }
}
