//! [`LayerMemory`]: the keys and values that one layer can still look at.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::frozen::{for_each_row, repeats, Frozen};
use crate::model::latent::Latent;
use crate::Result;

/// How many positions a layer with a window holds beyond its window, so that a store can go back by as many.
pub(super) const REWIND: usize = 64;
/// A layer with a window moves what it holds to the front at most once in so many positions.
const SLACK: usize = 128;
/// So many columns are shared at least. Fewer are copied: a step that looks at two blocks does several small operations more in each layer
/// than one that looks at a single block.
pub(super) const SHARED: usize = 64;
/// Where a store has so many shared blocks, it copies them into one.
const MOST_BLOCKS: usize = 8;

/// What a layer holds of each position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Two tensors: `[batch, kv_head, column, d_head]` and `[batch, kv_head, column, d_value]`. The keys of an indexer, where the layer
    /// has one, are a tensor more in both forms: `[batch, 1, column, width]`.
    KeysAndValues,
    /// One tensor, `[batch, 1, column, rank + rotated]`: the latents of keys and values after their norm, and the part of the keys that
    /// rotates and that all heads share.
    Latents,
}

/// What a layer holds: columns that it may share with other stores and among rows, and then those of its own.
///
/// A layer that reaches all positions has memory for all. A layer with a window has memory for twice the window, or a little more. Where
/// that is full, it moves the columns within the window to the front and overwrites the others.
#[derive(Debug)]
pub(super) struct LayerMemory {
    pub(super) form: Form,
    frozen: Vec<Frozen>,
    /// `[batch, head, column, width]` each.
    own: Vec<Tensor>,
    /// The position in the store of the first column.
    pub(super) first: usize,
    /// How many positions a query sees, itself included, if the layer forgets the others.
    pub(super) window: Option<usize>,
}

/// The size of a layer's memory.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) form: Form,
    pub(super) batch: i64,
    /// The heads and the width of each tensor.
    pub(super) parts: Vec<[i64; 2]>,
    pub(super) options: (Kind, Device),
}

impl LayerMemory {
    /// Memory for `capacity` positions, or as many of them as a window needs.
    pub(super) fn new(shape: &Shape, capacity: usize, window: Option<usize>) -> Result<Self> {
        let columns = i64::try_from(bound(window, capacity)).unwrap_or(i64::MAX);
        let empty =
            |[heads, width]: &[i64; 2]| Ok(Tensor::f_empty([shape.batch, *heads, columns, *width], shape.options)?);
        let own = shape.parts.iter().map(empty).collect::<Result<_>>()?;
        Ok(LayerMemory { form: shape.form, frozen: Vec::new(), own, first: 0, window })
    }

    /// Another handle on the same memory.
    pub(super) fn shallow_clone(&self) -> Self {
        let own = self.own.iter().map(Tensor::shallow_clone).collect();
        LayerMemory { form: self.form, frozen: self.frozen.clone(), own, first: self.first, window: self.window }
    }

    /// How many columns of its own there is memory for.
    fn columns(&self) -> usize {
        self.own[0].size()[2] as usize
    }

    fn batch(&self) -> usize {
        self.own[0].size()[0] as usize
    }

    /// The position of the first column of its own.
    fn own_first(&self) -> usize {
        self.first + self.frozen.iter().map(Frozen::columns).sum::<usize>()
    }

    /// The bytes of its own memory.
    pub(super) fn own_bytes(&self) -> u64 {
        bytes(&self.own)
    }

    /// The bytes of the columns that are frozen.
    pub(super) fn frozen_bytes(&self) -> u64 {
        self.frozen.iter().map(|block| bytes(&block.parts)).sum()
    }

    /// Whether there is room for all positions up to `end`.
    pub(super) fn has_room(&self, end: usize) -> bool {
        self.own_first() + self.columns() >= end
    }

    /// Whether a layer with a window has no more memory than it needs.
    pub(super) fn is_bounded(&self, capacity: usize) -> bool {
        self.columns() <= bound(self.window, capacity)
    }

    /// Whether a layer forgets positions before the capacity is reached.
    fn forgets(&self, capacity: usize) -> bool {
        bound(self.window, capacity) < capacity
    }

    /// The sizes of the tensors of `n` positions.
    pub(super) fn sizes(&self, n: usize) -> Vec<[i64; 4]> {
        let size = |x: &Tensor| {
            let size = x.size();
            [size[0], size[1], n as i64, size[3]]
        };
        self.own.iter().map(size).collect()
    }

    /// The blocks of columns of the positions up to `len`: `[row, head, key, width]` each, views.
    fn blocks(&self, len: usize) -> Result<Vec<Vec<Tensor>>> {
        let mut start = self.first;
        let mut blocks = Vec::with_capacity(self.frozen.len() + 1);
        for parts in self.frozen.iter().map(|block| &block.parts).chain([&self.own]) {
            let n = (parts[0].size()[2] as usize).min(len.saturating_sub(start));
            blocks.push(narrowed(parts, 0, n)?);
            start += n;
        }
        Ok(blocks)
    }

    /// The columns of the positions up to `len`, each row's own: `[batch, head, key, width]`, views where nothing is shared.
    pub(super) fn joined(&self, len: usize) -> Result<Vec<Tensor>> {
        if self.frozen.is_empty() {
            return narrowed(&self.own, 0, len - self.first);
        }
        let blocks = self.blocks(len)?;
        let part = |nth: usize| {
            let parts = blocks.iter().map(|block| for_each_row(&block[nth], self.batch()));
            Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 2)?)
        };
        (0..self.own.len()).map(part).collect()
    }

    /// Empty memory otherwise like this one.
    fn empty(&self, batch: usize, columns: usize) -> Result<Vec<Tensor>> {
        let columns = i64::try_from(columns).unwrap_or(i64::MAX);
        let empty = |x: &Tensor| {
            let size = x.size();
            Ok(Tensor::f_empty([batch as i64, size[1], columns, size[3]], (x.f_kind()?, x.device()))?)
        };
        self.own.iter().map(empty).collect()
    }

    /// Memory of its own with the columns `from..len` of this one and room for all up to `end`.
    pub(super) fn moved(&self, from: usize, len: usize, end: usize, capacity: usize) -> Result<Self> {
        let from = from.clamp(self.first, len);
        let own = self.empty(self.batch(), bound(self.window, capacity).max(end - from))?;
        let mut start = self.first;
        for block in self.blocks(len)? {
            let end = start + block[0].size()[2] as usize;
            let kept = from.max(start)..end;
            if !kept.is_empty() {
                let (to, found) = ((kept.start - from) as i64, (kept.start - start) as i64);
                let n = kept.len() as i64;
                for (to_all, part) in own.iter().zip(&block) {
                    let part = part.f_narrow(2, found, n)?;
                    let size = part.size();
                    let to = to_all.f_narrow(2, to, n)?;
                    let mut to = to.f_view([size[0], self.batch() as i64 / size[0], size[1], n, size[3]])?;
                    write(&mut to, &part.f_unsqueeze(1)?)?;
                }
            }
            start = end;
        }
        Ok(LayerMemory { form: self.form, frozen: Vec::new(), own, first: from, window: self.window })
    }

    /// What a store goes on with that must not write where this one's columns are: these are shared, where there are enough of them.
    pub(super) fn continued(&self, len: usize, capacity: usize, sharing: &Arc<()>) -> Result<Self> {
        if self.forgets(capacity) || self.frozen.len() >= MOST_BLOCKS {
            return self.moved(self.first, len, len, capacity);
        }
        let n_own = len - self.own_first();
        if n_own < SHARED {
            return self.with_room(len, capacity);
        }
        let mut frozen = self.frozen.clone();
        frozen.push(Frozen { parts: narrowed(&self.own, 0, n_own)?, sharing: Arc::clone(sharing) });
        let own = self.empty(self.batch(), capacity - len)?;
        Ok(LayerMemory { form: self.form, frozen, own, first: self.first, window: self.window })
    }

    /// The same with memory for `capacity` positions.
    pub(super) fn grown(&self, len: usize, capacity: usize) -> Result<Self> {
        match self.forgets(capacity) {
            true => self.moved(self.first, len, len, capacity),
            false => self.with_room(len, capacity),
        }
    }

    /// The same shared columns, and a copy of the others with room up to `capacity`.
    fn with_room(&self, len: usize, capacity: usize) -> Result<Self> {
        let own_first = self.own_first();
        let own = self.empty(self.batch(), capacity - own_first)?;
        for (to, from) in own.iter().zip(narrowed(&self.own, 0, len - own_first)?) {
            write(&mut to.f_narrow(2, 0, (len - own_first) as i64)?, &from)?;
        }
        Ok(LayerMemory { form: self.form, frozen: self.frozen.clone(), own, first: self.first, window: self.window })
    }

    /// Some rows of it with room for `capacity` positions. Rows that are named several times in turn share their columns, where there are
    /// enough of them.
    pub(super) fn rows(&self, rows: &[usize], len: usize, capacity: usize, sharing: &Arc<()>) -> Result<Self> {
        if self.forgets(capacity) {
            return self.copied_rows(rows, len, capacity);
        }
        let mut frozen = Vec::with_capacity(self.frozen.len() + 1);
        for block in &self.frozen {
            let group = self.batch() / block.rows();
            frozen.push(block.chosen(&rows.iter().map(|row| row / group).collect::<Vec<_>>())?);
        }
        let own_first = self.own_first();
        let n_own = len - own_first;
        let parts = narrowed(&self.own, 0, n_own)?;
        let own = if repeats(rows) > 1 && n_own >= SHARED {
            frozen.push(Frozen { parts, sharing: Arc::clone(sharing) }.chosen(rows)?);
            self.empty(rows.len(), capacity - len)?
        } else {
            let own = self.empty(rows.len(), capacity - own_first)?;
            fill_rows(&own, &parts, rows)?;
            own
        };
        Ok(LayerMemory { form: self.form, frozen, own, first: self.first, window: self.window })
    }

    /// Some rows of it, in memory of their own for `capacity` positions.
    pub(super) fn copied_rows(&self, rows: &[usize], len: usize, capacity: usize) -> Result<Self> {
        let own = self.empty(rows.len(), bound(self.window, capacity).max(len - self.first))?;
        fill_rows(&own, &self.joined(len)?, rows)?;
        Ok(LayerMemory { form: self.form, frozen: Vec::new(), own, first: self.first, window: self.window })
    }

    /// Keys and values in place of latents, in memory of their own for `capacity` positions.
    pub(super) fn expanded(&self, latent: &Latent, len: usize, capacity: usize, shape: &Shape) -> Result<Self> {
        let columns = bound(self.window, capacity).max(len - self.first);
        let mut memory = LayerMemory::new(shape, columns, None)?;
        (memory.first, memory.window) = (self.first, self.window);
        if len > self.first {
            let held = self.joined(len)?;
            let (keys, values) = latent.keys_and_values(&held[0])?;
            let index = held[1..].iter().map(Tensor::shallow_clone);
            memory.fill(self.first, len, &[keys, values].into_iter().chain(index).collect::<Vec<_>>())?;
        }
        Ok(memory)
    }

    /// Forgets the columns from position `len` on.
    pub(super) fn truncate(&mut self, len: usize) -> Result<()> {
        let mut start = self.first;
        let mut frozen = Vec::with_capacity(self.frozen.len());
        for block in &self.frozen {
            let n = block.columns().min(len.saturating_sub(start));
            if n > 0 {
                frozen.push(Frozen { parts: narrowed(&block.parts, 0, n)?, sharing: Arc::clone(&block.sharing) });
            }
            start += n;
        }
        self.frozen = frozen;
        Ok(())
    }

    /// Makes room for the positions `len..len + new`, where those before `needed` are not looked at any more.
    pub(super) fn make_room(&mut self, needed: usize, len: usize, new: usize, capacity: usize) -> Result<()> {
        if self.has_room(len + new) {
            return Ok(());
        }
        if !self.forgets(capacity) && len + new <= capacity {
            *self = self.with_room(len, capacity)?;
            return Ok(());
        }
        let keep = needed.saturating_sub(REWIND).max(self.first);
        if !self.frozen.is_empty() || len - keep + new > self.columns() {
            *self = self.moved(keep, len, len + new, capacity)?;
            return Ok(());
        }
        for x in &self.own {
            let kept = x.f_narrow(2, (keep - self.first) as i64, (len - keep) as i64)?.f_alias_copy()?;
            write(&mut x.f_narrow(2, 0, (len - keep) as i64)?, &kept)?;
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

    /// Writes new columns, `[batch, head, pos, width]`, behind those of the positions up to `len`, and gives all that are held, block by
    /// block.
    pub(super) fn extend(&self, len: usize, new: &[Tensor], records: bool) -> Result<Vec<Vec<Tensor>>> {
        if new.len() != self.own.len() {
            return Err(crate::Error::Internal("a run lacks something that its key-value store holds"));
        }
        let past = (len - self.own_first()) as i64;
        let extended = |(memory, new): (&Tensor, &Tensor)| -> Result<Tensor> {
            let n = new.size()[2];
            write(&mut memory.f_narrow(2, past, n)?, &new.f_detach()?)?;
            match records {
                // Later runs write into the same memory, which a record of a gradient must not hold.
                true => Ok(Tensor::f_cat(&[&memory.f_narrow(2, 0, past)?, new], 2)?),
                false => Ok(memory.f_narrow(2, 0, past + n)?),
            }
        };
        let own = self.own.iter().zip(new).map(extended).collect::<Result<_>>()?;
        let handles = |block: &Frozen| block.parts.iter().map(Tensor::shallow_clone).collect();
        Ok(self.frozen.iter().map(handles).chain([own]).collect())
    }

    /// Fills in the columns of `first..len`, `[batch, head, key, width]`.
    pub(super) fn fill(&mut self, first: usize, len: usize, parts: &[Tensor]) -> Result<()> {
        self.first = first;
        for (to, from) in self.own.iter().zip(parts) {
            write(&mut to.f_narrow(2, 0, (len - first) as i64)?, from)?;
        }
        Ok(())
    }
}

/// How many columns a layer has memory for.
fn bound(window: Option<usize>, capacity: usize) -> usize {
    match window {
        Some(window) => capacity.min(window.saturating_add(window.max(SLACK)).saturating_add(REWIND)),
        None => capacity,
    }
}

/// Some columns of each: `[row, head, column, width]`.
fn narrowed(parts: &[Tensor], start: usize, n: usize) -> Result<Vec<Tensor>> {
    parts.iter().map(|x| Ok(x.f_narrow(2, start as i64, n as i64)?)).collect()
}

/// Copies some rows of `parts` to the first columns of `own`.
fn fill_rows(own: &[Tensor], parts: &[Tensor], rows: &[usize]) -> Result<()> {
    let numbers: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
    for (to, from) in own.iter().zip(parts) {
        let index = Tensor::f_from_slice(&numbers)?.f_to_device(from.device())?;
        write(&mut to.f_narrow(2, 0, from.size()[2])?, &from.f_index_select(0, &index)?)?;
    }
    Ok(())
}

fn bytes(parts: &[Tensor]) -> u64 {
    parts.iter().map(|x| x.numel() as u64 * x.kind().elt_size_in_bytes() as u64).sum()
}

/// Copies `from` into `to`'s memory.
fn write(to: &mut Tensor, from: &Tensor) -> Result<()> {
    tch::no_grad(|| to.f_copy_(from))?;
    Ok(())
}
