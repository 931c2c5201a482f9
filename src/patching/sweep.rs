//! [`sweep`]: the metric of many patches of one run, whose runs share their work.

use std::collections::BTreeMap;

use tch::Tensor;

use super::base::{aligned, shape, Base};
use super::groups::{chunks, Resume};
use super::map::Swept;
use super::PatchingOptions;
use crate::cache::ActivationCache;
use crate::hook::{HookName, HookPart, HookPoint, Site};
use crate::hooked_transformer::HookedTransformer;
use crate::metric::{Metric, ResolvedMetric};
use crate::run::Selected;
use crate::tensor::columns::Columns;
use crate::text::input::Tokens;
use crate::{Error, HookFailure, Result};

/// The metric of the corrupted run with each of the patches, whose values are those of the clean cache.
pub(super) fn sweep(
    model: &HookedTransformer,
    tokens: &Tokens,
    clean: &ActivationCache,
    metric: &Metric<'_>,
    parts: &[HookPart],
    options: &PatchingOptions,
) -> Result<Swept> {
    if parts.is_empty() {
        return Err(Error::NothingSelected { what: "the index of patches".into(), hint: String::new() });
    }
    let parts = parts.iter().map(|part| resolved(part, model)).collect::<Result<Vec<_>>>()?;
    let points: Vec<HookPoint> = parts.iter().map(HookPart::point).collect();
    let sweep = Sweep::new(model, tokens, metric, &points, &[])?;
    let values = aligned(clean, &sweep.base, &points)?;
    let patches = parts.into_iter().map(|part| {
        let value = values.get(&part.point).ok_or(Error::Internal("a patch has no clean value"))?;
        Ok(vec![Write { value: value.shallow_clone(), part }])
    });
    sweep.run(&patches.collect::<Result<Vec<_>>>()?, Budget { bytes: options.budget, reserved: 0 })
}

/// The part at a point of this model.
pub(super) fn resolved(part: &HookPart, model: &HookedTransformer) -> Result<HookPart> {
    let point = part.point.resolve(model.config())?;
    let failed = |what| Error::hook(point, HookFailure::Part { why: what });
    if point.expert().is_some() {
        return Err(failed("a sweep patches rows of the batch, which the activations of an expert do not have".into()));
    }
    part.selection.check(point, model.config()).map_err(failed)?;
    Ok(HookPart { point, ..part.clone() })
}

/// The memory that a batch of patches may take, and how much of it something else takes already.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    pub(super) bytes: u64,
    pub(super) reserved: u64,
}

/// Entries that a patch sets.
pub(super) struct Write {
    pub(super) part: HookPart,
    /// The activation from which the entries are taken, as large as that of the base run.
    pub(super) value: Tensor,
}

/// A patch, and the first column at which it changes anything.
pub(super) struct Item<'s> {
    index: usize,
    pub(super) writes: Vec<(Selected<'s>, &'s Write)>,
    first: i64,
}

/// A run that is patched, and what is measured of it.
pub(super) struct Sweep<'s, 'm, 'a> {
    pub(super) model: &'s HookedTransformer,
    pub(super) tokens: &'s Tokens,
    pub(super) metric: ResolvedMetric<'m, 'a>,
    pub(super) needs: Vec<HookPoint>,
    pub(super) base: Base,
}

impl<'s, 'm, 'a> Sweep<'s, 'm, 'a> {
    /// The base run, for patches at these points. It keeps `others` as well.
    pub(super) fn new(
        model: &'s HookedTransformer,
        tokens: &'s Tokens,
        metric: &'m Metric<'a>,
        points: &[HookPoint],
        others: &[HookPoint],
    ) -> Result<Self> {
        let config = model.config();
        let needs = metric.needs(config)?;
        let resolved = metric.resolve(model, model.tokenizer().ok(), tokens, 0)?;
        let terms = points.iter().flat_map(|point| {
            let hooked = Resume::hooked(*point, config).terms(config).into_iter();
            hooked.chain(Resume::of(*point, config).terms(config))
        });
        let kept = points.iter().chain(others).chain(&needs).copied().chain(terms);
        let kept = kept.map(|point| point.resolve(config)).collect::<Result<Vec<_>>>()?;
        let base = Base::run(model, tokens, metric, kept, needs.is_empty())?;
        Ok(Sweep { model, tokens, metric: resolved, needs, base })
    }

    /// The metric of the base run with each of the patches, each of which sets some entries.
    pub(super) fn run(&self, patches: &[Vec<Write>], budget: Budget) -> Result<Swept> {
        let (batch, pos) = shape(self.tokens);
        let baseline = self.metric.values(&self.base.logits, 1, Some(&self.base.cache))?;
        let mut groups: BTreeMap<Resume, Vec<Item>> = BTreeMap::new();
        for item in self.items(patches)? {
            groups.entry(self.resume(&item)).or_default().push(item);
        }
        // The order in which patches run, and their values; a patch that changes nothing has the value without one.
        let mut places: Vec<i64> = vec![0; patches.len()];
        let mut values = vec![baseline.by_run().shallow_clone()]; // [1, batch or 1]
        let mut done = 1;
        for (resume, mut items) in groups {
            // The last column first, so that patches of late positions run together.
            items.sort_by_key(|item| (-item.first, item.index));
            let n_layers = self.model.config().n_layers;
            let starts_late = self.base.store.is_some() && resume.layer.is_none_or(|layer| layer < n_layers);
            let firsts: Vec<i64> = items.iter().map(|item| if starts_late { item.first } else { 0 }).collect();
            let earliest = firsts.last().copied().unwrap_or(0);
            let most = self.most_patches(&resume, pos - earliest, budget)?;
            let mut start = 0;
            for size in chunks(&firsts, pos, batch, most) {
                let chunk = &items[start..start + size];
                values.push(self.run_chunk(&resume, chunk, firsts[start + size - 1])?.by_run().shallow_clone());
                for (i, item) in chunk.iter().enumerate() {
                    places[item.index] = done + i as i64;
                }
                done += size as i64;
                start += size;
            }
        }
        let places = Tensor::f_from_slice(&places)?.f_to_device(self.base.logits.device())?;
        let values = Tensor::f_cat(&values, 0)?.f_index_select(0, &places)?; // [patch, batch or 1]
        Ok(Swept { values, baseline: baseline.by_run().f_select(0, 0)?, batch })
    }

    /// From where the run of a patch starts.
    fn resume(&self, item: &Item) -> Resume {
        let config = self.model.config();
        let points = || item.writes.iter().map(|(_, write)| write.part.point);
        let resume = match item.writes.len() {
            1 => points().map(|point| Resume::of(point, config)).next(),
            _ => points().map(|point| Resume::hooked(point, config)).min_by_key(|resume| resume.layer),
        };
        let otherwise = points().filter_map(|point| Resume::of(point, config).otherwise).max();
        match resume {
            Some(resume) if self.needs.is_empty() => Resume { otherwise, ..resume },
            // The metric may need any activation.
            _ => Resume { layer: None, direct: None, otherwise },
        }
    }

    /// The patches that change anything, as far as the metric can see.
    fn items<'p>(&self, patches: &'p [Vec<Write>]) -> Result<Vec<Item<'p>>> {
        // Whether a write changes anything, by column.
        let (mut items, mut flags, mut columns) = (Vec::new(), Vec::new(), Vec::new());
        for (index, writes) in patches.iter().enumerate() {
            let mut item = Item { index, writes: Vec::new(), first: 0 };
            let mut of_item = Vec::new();
            for write in writes {
                let (part, point) = (&write.part, write.part.point);
                let held = self.base.cache.positions_of(point)?;
                // A position at which the run forms no logits has no effect after the last layer.
                let Some(selected) = Selected::new(&part.selection, self.tokens, 0)?.within(held) else { continue };
                let own = held.of_rows(selected.rows());
                let chosen = selected.part_of(point, self.model.config(), &own, &write.value.size())?;
                let before = chosen.read_undropped(self.base.cache.get(point)?)?;
                let differs = chosen.read_undropped(&write.value)?.f_ne_tensor(&before)?;
                // By position; of a column for each row, of all of them together.
                let of_rows = selected.columns().is_some_and(Columns::is_per_row);
                let axis = point.axes().position.filter(|_| !of_rows);
                flags.push(match axis {
                    Some(axis) => differs.f_transpose(0, axis as i64)?.f_flatten(1, -1)?.f_any_dim(1, false)?,
                    None => differs.f_any()?.f_view([1])?,
                });
                let own = selected.columns().unwrap_or(held);
                of_item.extend(match (axis, of_rows) {
                    (Some(_), _) => own.of_row(0),
                    // The first column that can change.
                    (None, true) => {
                        (0..selected.rows().len()).flat_map(|row| own.of_row(row)).min().into_iter().collect()
                    }
                    (None, false) => vec![0],
                });
                item.writes.push((selected, write));
            }
            if !item.writes.is_empty() {
                items.push(item);
                columns.push(of_item);
            }
        }
        if flags.is_empty() {
            return Ok(Vec::new());
        }
        // The only values that a sweep copies from its device.
        let mut flags = Vec::<bool>::try_from(Tensor::f_cat(&flags, 0)?)?.into_iter();
        let last = self.last_column();
        let mut changing = Vec::with_capacity(items.len());
        for (mut item, columns) in items.into_iter().zip(columns) {
            let changed = columns.iter().filter(|_| flags.next().unwrap_or(true)).min().copied();
            // What comes after the last position of the metric does not reach it in a causal model.
            if let Some(first) = changed.filter(|first| self.base.store.is_none() || *first <= last) {
                item.first = first;
                changing.push(item);
            }
        }
        Ok(changing)
    }

    /// The last column at which the metric reads logits.
    fn last_column(&self) -> i64 {
        let columns = self.base.cache.logit_positions();
        (0..shape(self.tokens).0 as usize).flat_map(|row| columns.of_row(row)).max().unwrap_or(0)
    }

    /// How many patches a batch may have.
    pub(super) fn most_patches(&self, resume: &Resume, new: i64, budget: Budget) -> Result<usize> {
        let config = self.model.config();
        let (batch, pos) = shape(self.tokens);
        let heads = (0..config.n_layers).map(|layer| config.heads(layer));
        let n_heads = heads.clone().map(|heads| heads.query).max().unwrap_or(0);
        let n_key_value_heads = heads.map(|heads| heads.key_value).max().unwrap_or(0);
        let width = config.d_head.max(config.d_value());
        let d_head = width * (n_heads + 2 * n_key_value_heads);
        let experts = config.experts().map_or(1, |moe| moe.experts_per_token);
        // What is in memory at once: the stream and what is added to it, attention's or the MLP's tensors.
        let per_position = 6 * config.d_model + (3 * d_head).max(4 * experts * config.d_mlp());
        let n_layers = config.n_layers - resume.layer.unwrap_or(0);
        let store = 2 * n_layers * n_key_value_heads * width * pos as usize;
        let extra = match resume.otherwise {
            Some(Site::Pattern) => 4 * n_heads * (new * pos) as usize,
            Some(_) => 4 * n_heads * config.d_model * new as usize,
            None => 0,
        };
        let logits = 4 * self.base.logits.size()[1] as usize * config.d_vocab_out;
        let numbers = per_position * new as usize + store + extra + logits;
        let bytes_each = self.model.kind().elt_size_in_bytes().max(4) as u64;
        let bytes = (numbers as u64).saturating_mul(bytes_each).saturating_mul(batch as u64);
        let Budget { bytes: budget, reserved } = budget;
        match usize::try_from(budget.saturating_sub(reserved) / bytes.max(1)).unwrap_or(usize::MAX) {
            0 => {
                let needed = bytes.saturating_add(reserved);
                Err(Error::option_value("budget", budget, format!("one patch of this batch takes {needed} bytes")))
            }
            most => Ok(most),
        }
    }
}
