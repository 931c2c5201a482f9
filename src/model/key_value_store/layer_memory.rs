//! [`LayerMemory`]: the keys and values that one layer can still look at.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::Result;

/// How many positions a layer with a window holds beyond its window, so that a store can go back by as many.
pub(super) const REWIND: usize = 64;
/// A layer with a window moves what it holds to the front at most once in so many positions.
const SLACK: usize = 128;

/// The keys and values of a layer: `[batch, kv_head, column, d_head]` and `[batch, kv_head, column, d_value]`.
///
/// A layer that reaches all positions has memory for all. A layer with a window has memory for twice the window, or a little more. Where
/// that is full, it moves the columns within the window to the front and overwrites the others.
#[derive(Debug)]
pub(super) struct LayerMemory {
    keys: Tensor,
    values: Tensor,
    /// The position in the store of the first column.
    pub(super) first: usize,
    /// How many positions a query sees, itself included, if the layer forgets the others.
    pub(super) window: Option<usize>,
}

/// The size of a layer's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) batch: i64,
    pub(super) heads: i64,
    pub(super) d_head: i64,
    pub(super) d_value: i64,
    pub(super) options: (Kind, Device),
}

/// Memory for `columns` positions of `batch` rows, otherwise like `x`: `[batch, kv_head, column, width]`.
fn empty_like(x: &Tensor, batch: i64, columns: usize) -> Result<Tensor> {
    let size = x.size();
    let columns = i64::try_from(columns).unwrap_or(i64::MAX);
    Ok(Tensor::f_empty([batch, size[1], columns, size[3]], (x.f_kind()?, x.device()))?)
}

impl LayerMemory {
    /// Memory for `capacity` positions, or as many of them as a window needs.
    pub(super) fn new(shape: Shape, capacity: usize, window: Option<usize>) -> Result<Self> {
        let columns = i64::try_from(bound(window, capacity)).unwrap_or(i64::MAX);
        let empty = |width| Tensor::f_empty([shape.batch, shape.heads, columns, width], shape.options);
        Ok(LayerMemory { keys: empty(shape.d_head)?, values: empty(shape.d_value)?, first: 0, window })
    }

    /// Another handle on the same memory.
    pub(super) fn shallow_clone(&self) -> Self {
        let (keys, values) = (self.keys.shallow_clone(), self.values.shallow_clone());
        LayerMemory { keys, values, first: self.first, window: self.window }
    }

    /// How many columns there is memory for.
    fn columns(&self) -> usize {
        self.keys.size()[2] as usize
    }

    /// Whether there is room for all positions up to `end`.
    pub(super) fn has_room(&self, end: usize) -> bool {
        self.first + self.columns() >= end
    }

    /// Whether a layer with a window has no more memory than it needs.
    pub(super) fn is_bounded(&self, capacity: usize) -> bool {
        self.columns() <= bound(self.window, capacity)
    }

    /// The sizes of the keys and the values of `n` positions.
    pub(super) fn sizes(&self, n: usize) -> [[i64; 4]; 2] {
        [&self.keys, &self.values].map(|x| {
            let size = x.size();
            [size[0], size[1], n as i64, size[3]]
        })
    }

    /// The keys of the positions up to `len` that are held: `[batch, kv_head, key, d_head]`, a view.
    pub(super) fn keys(&self, len: usize) -> Result<Tensor> {
        held(&self.keys, self.first..len)
    }

    /// The values of the positions up to `len` that are held: `[batch, kv_head, key, d_value]`, a view.
    pub(super) fn values(&self, len: usize) -> Result<Tensor> {
        held(&self.values, self.first..len)
    }

    /// Memory of its own with the columns `from..len` of this one and room for all up to `end`.
    pub(super) fn moved(&self, from: usize, len: usize, end: usize, capacity: usize) -> Result<Self> {
        let from = from.clamp(self.first, len);
        let columns = bound(self.window, capacity).max(end - from);
        let moved = |x: &Tensor| -> Result<Tensor> {
            let to = empty_like(x, x.size()[0], columns)?;
            let part = x.f_narrow(2, (from - self.first) as i64, (len - from) as i64)?;
            write(&mut held(&to, 0..len - from)?, &part)?;
            Ok(to)
        };
        Ok(LayerMemory { keys: moved(&self.keys)?, values: moved(&self.values)?, first: from, window: self.window })
    }

    /// Some rows of it, in memory of their own for `capacity` positions.
    pub(super) fn rows(&self, rows: &Tensor, len: usize, capacity: usize) -> Result<Self> {
        let columns = bound(self.window, capacity).max(len - self.first);
        let chosen = |x: &Tensor| -> Result<Tensor> {
            let to = empty_like(x, rows.numel() as i64, columns)?;
            write(&mut held(&to, self.first..len)?, &held(x, self.first..len)?.f_index_select(0, rows)?)?;
            Ok(to)
        };
        let (keys, values) = (chosen(&self.keys)?, chosen(&self.values)?);
        Ok(LayerMemory { keys, values, first: self.first, window: self.window })
    }

    /// Makes room for the positions `len..len + new`, where those before `needed` are not looked at any more.
    pub(super) fn make_room(&mut self, needed: usize, len: usize, new: usize, capacity: usize) -> Result<()> {
        if self.has_room(len + new) {
            return Ok(());
        }
        let keep = needed.saturating_sub(REWIND).max(self.first);
        if len - keep + new > self.columns() {
            *self = self.moved(keep, len, len + new, capacity)?;
            return Ok(());
        }
        for x in [&self.keys, &self.values] {
            let kept = x.f_narrow(2, (keep - self.first) as i64, (len - keep) as i64)?.f_alias_copy()?;
            write(&mut held(x, keep..len)?, &kept)?;
        }
        self.first = keep;
        Ok(())
    }

    /// Gives back what a long run took beyond the window's memory.
    pub(super) fn shrink(&mut self, needed: usize, len: usize, capacity: usize) -> Result<()> {
        let keep = needed.saturating_sub(REWIND).max(self.first);
        if self.columns() > bound(self.window, capacity).max(len - keep) {
            *self = self.moved(keep, len, len, capacity)?;
        }
        Ok(())
    }

    /// Writes new keys and values, `[batch, kv_head, pos, width]`, behind those of the positions up to `len`, and gives all that are held.
    pub(super) fn extend(&self, len: usize, k: &Tensor, v: &Tensor, records: bool) -> Result<(Tensor, Tensor)> {
        let past = (len - self.first) as i64;
        let extended = |memory: &Tensor, new: &Tensor| -> Result<Tensor> {
            let n = new.size()[2];
            write(&mut memory.f_narrow(2, past, n)?, &new.f_detach()?)?;
            match records {
                // Later runs write into the same memory, which a record of a gradient must not hold.
                true => Ok(Tensor::f_cat(&[&memory.f_narrow(2, 0, past)?, new], 2)?),
                false => Ok(memory.f_narrow(2, 0, past + n)?),
            }
        };
        Ok((extended(&self.keys, k)?, extended(&self.values, v)?))
    }

    /// Fills in keys and values of `first..len`, `[batch, kv_head, key, width]`.
    pub(super) fn fill(&mut self, first: usize, len: usize, k: &Tensor, v: &Tensor) -> Result<()> {
        self.first = first;
        write(&mut self.keys(len)?, k)?;
        write(&mut self.values(len)?, v)
    }
}

/// How many columns a layer has memory for.
fn bound(window: Option<usize>, capacity: usize) -> usize {
    match window {
        Some(window) => capacity.min(window.saturating_add(window.max(SLACK)).saturating_add(REWIND)),
        None => capacity,
    }
}

/// The columns of some positions, of which the first is the memory's first.
fn held(x: &Tensor, positions: Range<usize>) -> Result<Tensor> {
    Ok(x.f_narrow(2, 0, positions.len() as i64)?)
}

/// Copies `from` into `to`'s memory.
fn write(to: &mut Tensor, from: &Tensor) -> Result<()> {
    tch::no_grad(|| to.f_copy_(from))?;
    Ok(())
}
