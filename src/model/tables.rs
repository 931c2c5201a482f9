//! [`Tables`]: masks and rotary angles, made once for a model and narrowed to the span of each run.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};

use super::layout::Layout;
use super::mask::MaskKind;
use super::rotary::{LengthClass, RotaryTable};
use crate::config::Rotary;
use crate::tensor::span::Span;
use crate::unchecked::threads::SharedTensor;
use crate::Result;

/// Masks and rotary angles from position 0 on. Each is made when it is first needed, grows by doubling, and is narrowed to the
/// positions of a run.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// Of all queries and keys up to a length: `[1, head or 1, len, len]`.
    masks: Mutex<Vec<(MaskKind, SharedTensor)>>,
    /// Of the last query of a length: `[1, head or 1, 1, len]`.
    rows: Mutex<Vec<(MaskKind, SharedTensor)>>,
    rotary: Mutex<Vec<Angles>>,
}

/// One rotation's angles for sequences of a class.
#[derive(Debug)]
struct Angles {
    rotary: Rotary,
    class: LengthClass,
    table: RotaryTable,
    /// What the last run took of it.
    last: (Span, RotaryTable),
}

/// The shortest table that is made.
const SHORTEST: usize = 64;
/// Masks of more entries than this are made for each run: 16 MB in fp32.
const LARGEST_MASK: i64 = 1 << 22;
/// Masks of no more kinds than this are kept.
const KEPT_MASKS: usize = 4;

impl Tables {
    /// What is added to the scores of these queries over these keys, where nothing is padded: `[1, head or 1, query, key]`.
    pub(crate) fn mask(
        &self,
        kind: MaskKind,
        queries: &Range<i64>,
        keys: &Range<i64>,
        options: (Kind, Device),
    ) -> Result<Tensor> {
        if kind.is_of_distance() && queries.end - queries.start == 1 {
            // What a query sees of a key depends on the distance between them, and no key comes after it.
            let query = queries.start;
            let row = kept(&self.rows, kind, queries.end, i64::MAX, |len| {
                kind.additive(&unpadded(len), &(len - 1..len), &(0..len), options)
            })?;
            if let Some(row) = row {
                let offset = row.size()[3] - 1 - query;
                return Ok(row.f_narrow(3, offset + keys.start, keys.end - keys.start)?);
            }
        }
        let n = queries.end.max(keys.end);
        let longest = ((LARGEST_MASK / kind.heads()) as f64).sqrt() as i64;
        let mask =
            kept(&self.masks, kind, n, longest, |len| kind.additive(&unpadded(len), &(0..len), &(0..len), options))?;
        match mask {
            Some(mask) => {
                let rows = mask.f_narrow(2, queries.start, queries.end - queries.start)?;
                Ok(rows.f_narrow(3, keys.start, keys.end - keys.start)?)
            }
            None => kind.additive(&unpadded(n), queries, keys, options),
        }
    }

    /// The angles of a rotation at the positions of a run.
    pub(crate) fn rotary(
        &self,
        rotary: &Rotary,
        layout: &Layout,
        n_ctx: usize,
        options: (Kind, Device),
    ) -> Result<RotaryTable> {
        let n_keys = layout.span.keys();
        let of_class = |class| self.angles((rotary, class), layout.span, n_ctx, options);
        let Some(positions) = layout.new_positions()? else {
            return of_class(LengthClass::of(rotary, n_keys)).map(|(_, narrowed)| narrowed);
        };
        if !LengthClass::varies(rotary) {
            return of_class(LengthClass::Trained)?.0.gather(&positions);
        }
        // Each row has the angles that it has alone.
        let of_row = |(row, length): (usize, usize)| {
            let (table, _) = of_class(LengthClass::of(rotary, length))?;
            table.gather(&positions.f_narrow(0, row as i64, 1)?)
        };
        let rows = layout.row_lengths()?.into_iter().enumerate().map(of_row).collect::<Result<Vec<_>>>()?;
        RotaryTable::stack(&rows)
    }

    /// The angles of all positions up to the end of a span at least, and those of the span.
    fn angles(
        &self,
        (rotary, class): (&Rotary, LengthClass),
        span: Span,
        n_ctx: usize,
        (kind, device): (Kind, Device),
    ) -> Result<(RotaryTable, RotaryTable)> {
        let mut kept = lock(&self.rotary);
        let found = kept.iter().position(|angles| angles.rotary == *rotary && angles.class == class);
        let index = match found {
            Some(index) if kept[index].table.len() >= span.keys() as i64 => index,
            found => {
                let len = doubled(span.keys(), n_ctx) as i64;
                let table = RotaryTable::new(rotary, class, len, kind, device)?;
                if let Some(index) = found {
                    kept.remove(index);
                }
                if let LengthClass::Exactly(_) = class {
                    // Every length has its own: only the last is kept.
                    kept.retain(|angles| angles.rotary != *rotary || !matches!(angles.class, LengthClass::Exactly(_)));
                }
                let last = (Span::whole(len as usize), table.clone());
                kept.push(Angles { rotary: rotary.clone(), class, table, last });
                kept.len() - 1
            }
        };
        let angles = &mut kept[index];
        if angles.last.0 != span {
            angles.last = (span, angles.table.narrow(span.past as i64, span.new as i64)?);
        }
        Ok((angles.table.clone(), angles.last.1.clone()))
    }
}

/// Where the tokens of one row without padding stand.
fn unpadded(len: i64) -> Layout {
    Layout { batch: 1, span: Span::whole(len as usize), padding: None }
}

/// A mask of at least `n` keys, made anew where the one that is kept is shorter. Absent where that would be of more than `longest`,
/// or of too many kinds.
fn kept(
    masks: &Mutex<Vec<(MaskKind, SharedTensor)>>,
    kind: MaskKind,
    n: i64,
    longest: i64,
    make: impl FnOnce(i64) -> Result<Tensor>,
) -> Result<Option<Tensor>> {
    let mut masks = lock(masks);
    let found = masks.iter().position(|(of, _)| *of == kind);
    if let Some(index) = found.filter(|index| masks[*index].1.size()[3] >= n) {
        return Ok(Some(masks[index].1.shallow_clone()));
    }
    if n > longest || (found.is_none() && masks.len() >= KEPT_MASKS) {
        return Ok(None);
    }
    let mask = make(doubled(n as usize, longest as usize) as i64)?;
    if let Some(index) = found {
        masks.remove(index);
    }
    masks.push((kind, mask.shallow_clone().into()));
    Ok(Some(mask))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The next power of two, but at most `longest` where that suffices for `n`.
fn doubled(n: usize, longest: usize) -> usize {
    n.next_power_of_two().max(SHORTEST).min(longest.max(n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Positions, RopeScaling};
    use crate::Config;

    const OPTIONS: (Kind, Device) = (Kind::Double, Device::Cpu);

    fn behind(past: usize, new: usize) -> Layout {
        Layout { batch: 1, span: Span { past, new }, padding: None }
    }

    #[test]
    fn a_narrowed_mask_is_the_mask_of_the_span() {
        let local = Config {
            attention: crate::config::AttentionConfig {
                reach: crate::config::PerLayer::All(crate::config::Reach::Window(5)),
                ..Default::default()
            },
            ..Config::new(1, 8, 3, 10, 4096)
        };
        let alibi = Config { positions: Positions::alibi(8.0), ..local.clone() };
        let rounded = Config { positions: Positions::Alibi { bias_max: 8.0, rounded: true }, ..local.clone() };
        for config in [Config::new(1, 8, 3, 10, 4096), local, alibi, rounded] {
            let tables = Tables::default();
            for (past, new) in [(0, 7), (3, 4), (90, 1), (60, 10), (1200, 9), (4000, 1), (0, 1300)] {
                let span = Span { past, new };
                let kind = MaskKind::of(&config, 0, span.keys());
                let keys = 0..span.keys() as i64;
                let found = tables.mask(kind, &span.columns(), &keys, OPTIONS).unwrap();
                let expected = kind.additive(&behind(past, new), &span.columns(), &keys, OPTIONS).unwrap();
                assert_eq!(found, expected, "{past} + {new}");
                // The keys within a window's reach, as the fused kernel takes them.
                let near = kind.keys(&span.columns(), keys.end);
                let found = tables.mask(kind, &span.columns(), &near, OPTIONS).unwrap();
                assert_eq!(found, expected.narrow(3, near.start, near.end - near.start), "{past} + {new}");
            }
            let kept = tables.masks.lock().unwrap();
            assert!(kept.iter().all(|(_, mask)| (mask.numel() as i64) <= LARGEST_MASK));
        }
    }

    #[test]
    fn angles_are_made_when_a_table_doubles_and_not_for_each_step() {
        let rotary = Rotary::new(4, 100.0);
        let tables = Tables::default();
        let mut lengths = Vec::new();
        for past in 0..500 {
            let table = tables.rotary(&rotary, &behind(past, 1), 500, OPTIONS).unwrap();
            let kept = tables.rotary.lock().unwrap();
            assert_eq!((kept.len(), table.len()), (1, 1));
            lengths.push(kept[0].table.len());
        }
        lengths.dedup();
        assert_eq!(lengths, [64, 128, 256, 500]);
    }

    #[test]
    fn angles_are_those_of_the_class_of_the_length() {
        let trained = 8;
        let dynamic = RopeScaling::Dynamic { factor: 2.0, original_max_position_embeddings: trained };
        let long = RopeScaling::LongRope {
            short_factor: vec![1.0, 1.0],
            long_factor: vec![2.0, 4.0],
            attention_factor: 1.0,
            original_max_position_embeddings: trained,
        };
        for (scaling, kept_in_the_end) in [(dynamic, 2), (long, 2), (RopeScaling::None, 1)] {
            let rotary = Rotary { scaling, ..Rotary::new(4, 100.0) };
            let tables = Tables::default();
            for len in [3, 8, 9, 20, 9, 4] {
                let found = tables.rotary(&rotary, &behind(0, len), 500, OPTIONS).unwrap();
                let class = LengthClass::of(&rotary, len);
                let expected = RotaryTable::new(&rotary, class, len as i64, OPTIONS.0, OPTIONS.1).unwrap();
                let x = Tensor::randn([1, len as i64, 2, 4], OPTIONS);
                assert_eq!(found.rotate(&x, 0).unwrap(), expected.rotate(&x, 0).unwrap(), "{rotary:?}, {len}");
            }
            assert_eq!(tables.rotary.lock().unwrap().len(), kept_in_the_end, "{rotary:?}");
        }
    }
}
