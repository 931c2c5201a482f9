//! [`KeyValueStore`]: the keys and values of positions that earlier runs computed.

mod file;
mod layer_memory;

use std::ops::Range;
use std::sync::Arc;

use tch::{Kind, Tensor};

use self::layer_memory::{LayerMemory, Shape};
use super::layout::{Layout, Padding};
use super::rotary::LengthClass;
use super::Transformer;
use crate::config::AttentionDir;
use crate::error::KeyValueStoreError;
use crate::text::input::Tokens;
use crate::{Error, Result};

/// What attention needs of positions that earlier runs computed: their keys, rotated, and their values.
///
/// A run that [continues](crate::RunOptions::past) a store computes its new positions only, and afterwards the store holds these as well.
/// So a sequence can be run in parts, token by token or behind a prefix that is run once, and gives what it gives whole. The
/// store belongs to one model and has memory for `capacity` positions from the start: a run copies its new entries, and nothing
/// else. A layer with a window holds the positions within it, and some before them.
///
/// ```
/// use tch_lens::{HookedTransformer, KeyValueStore, RunOptions};
/// let model = HookedTransformer::toy()?;
/// let whole = model.forward([5, 17, 3, 60, 9])?; // [1, 5, d_vocab]
/// let mut store = KeyValueStore::new(&model, 1, 8)?;
/// model.run([5, 17, 3], RunOptions::new().past(&mut store))?;
/// let rest = model.run([60, 9], RunOptions::new().past(&mut store))?.logits.unwrap(); // [1, 2, d_vocab]
/// assert!(rest.allclose(&whole.narrow(1, 3, 2), 1e-4, 1e-4, false));
/// assert_eq!(store.len(), 5);
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// Padding may stand anywhere, in every part: a token's position is the number of real tokens before it in its row. What is held
/// is constant: gradients end there.
///
/// A clone shares the memory until one of the two is continued, which then copies what is held. So a prefix can be run once, kept, and
/// continued many times; [`KeyValueStore::save`] writes it to a file.
#[derive(Debug)]
pub struct KeyValueStore {
    model: Transformer,
    layers: Vec<LayerMemory>,
    /// The ids of the positions: `[batch, capacity]`. What lies past `len` is scratch.
    ids: Tensor,
    batch: usize,
    capacity: usize,
    len: usize,
    /// The layers that hold the `len` positions.
    held: Range<usize>,
    /// Of the `len` positions; absent where all are real.
    padding: Option<Padding>,
    /// The length of each row for which its keys are rotated, where rotations depend on it.
    rotated_for: Option<Vec<usize>>,
    /// Shared with the stores that use the same memory.
    sharing: Arc<()>,
}

/// What a run adds to a store once it has succeeded.
pub(crate) struct Addition {
    pub(crate) new: usize,
    /// Of all positions, the new ones included.
    pub(crate) padding: Option<Padding>,
    pub(crate) layers: Range<usize>,
    pub(crate) rotated_for: Option<Vec<usize>>,
}

impl Clone for KeyValueStore {
    /// Another store that shares the memory until one of the two is continued.
    fn clone(&self) -> Self {
        KeyValueStore {
            model: self.model.clone(),
            layers: self.layers.iter().map(LayerMemory::shallow_clone).collect(),
            ids: self.ids.shallow_clone(),
            held: self.held.clone(),
            padding: self.padding.clone(),
            rotated_for: self.rotated_for.clone(),
            sharing: Arc::clone(&self.sharing),
            ..*self
        }
    }
}

impl KeyValueStore {
    /// An empty store for `batch` rows of up to `capacity` positions.
    ///
    /// It takes `n_layers · batch · n_key_value_heads · capacity · (d_head + d_value)` numbers of the model's kind, on its device. A layer
    /// with a window takes at most as many as for twice the window, or for the window and 192 positions if that is more.
    ///
    /// # Errors
    ///
    /// [`Error::KeyValueStore`] for a batch or capacity of zero, a capacity beyond the model's context, and a bidirectional model,
    /// in which earlier positions depend on later ones.
    pub fn new(model: &Transformer, batch: usize, capacity: usize) -> Result<Self> {
        let n_ctx = model.config().n_ctx;
        match capacity > n_ctx {
            true => Err(KeyValueStoreError::Size { batch, capacity, n_ctx }.into()),
            false => Self::of_columns(model, batch, capacity, true),
        }
    }

    /// As [`KeyValueStore::new`], but layers with a window hold all positions too. It is needed to change attention scores or patterns of
    /// such layers with hooks, and to go back further than 64 positions with [`KeyValueStore::truncate`].
    ///
    /// # Errors
    ///
    /// Those of [`KeyValueStore::new`].
    pub fn with_all_positions(model: &Transformer, batch: usize, capacity: usize) -> Result<Self> {
        let n_ctx = model.config().n_ctx;
        match capacity > n_ctx {
            true => Err(KeyValueStoreError::Size { batch, capacity, n_ctx }.into()),
            false => Self::of_columns(model, batch, capacity, false),
        }
    }

    /// A store whose rows together with their padding may be longer than the model's context. `forgets` is whether layers with a window
    /// hold what is within it only.
    pub(crate) fn of_columns(model: &Transformer, batch: usize, capacity: usize, forgets: bool) -> Result<Self> {
        let config = model.config();
        if config.attention_dir() == AttentionDir::Bidirectional {
            return Err(KeyValueStoreError::Bidirectional.into());
        }
        if batch == 0 || capacity == 0 {
            return Err(KeyValueStoreError::Size { batch, capacity, n_ctx: config.n_ctx }.into());
        }
        let window = |layer| if forgets { config.window(layer) } else { None };
        let layers =
            (0..config.n_layers).map(|layer| LayerMemory::new(shape(model, layer, batch), capacity, window(layer)));
        let ids = [batch, capacity].map(|n| i64::try_from(n).unwrap_or(i64::MAX));
        Ok(KeyValueStore {
            layers: layers.collect::<Result<_>>()?,
            ids: Tensor::f_empty(ids, (Kind::Int64, model.device()))?,
            model: model.clone(),
            batch,
            capacity,
            len: 0,
            held: 0..config.n_layers,
            padding: None,
            rotated_for: None,
            sharing: Arc::new(()),
        })
    }

    /// How many positions were run, padding included.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no positions are held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many positions there is memory for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many rows the batch has.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Which of the positions are real tokens, `[batch, len]`, bool; absent where all are.
    pub fn mask(&self) -> Option<&Tensor> {
        self.padding.as_ref().map(|padding| &padding.real)
    }

    /// The tokens that were run: a copy, `[batch, len]`. The ids are −1 for a run that started from a stream of unknown tokens.
    ///
    /// # Errors
    ///
    /// libtorch's own.
    pub fn tokens(&self) -> Result<Tokens> {
        let ids = self.ids.f_narrow(1, 0, self.len as i64)?.f_alias_copy()?;
        Ok(Tokens { ids, mask: self.mask().map(Tensor::shallow_clone), types: None })
    }

    /// The positions of a layer that are held: all, or those that its window can reach.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`].
    pub fn held(&self, layer: impl Into<crate::Layer>) -> Result<Range<usize>> {
        let layer = layer.into().resolve(self.layers.len())?;
        Ok(self.layers[layer].first..self.len)
    }

    /// A copy of the keys of a layer at the positions [held](KeyValueStore::held), after their rotation: `[batch, kv_head, key, d_head]`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`]; [`Error::KeyValueStore`] for a layer that the runs so far did not pass.
    pub fn keys(&self, layer: impl Into<crate::Layer>) -> Result<Tensor> {
        Ok(self.passed(layer.into())?.keys(self.len)?.f_alias_copy()?)
    }

    /// A copy of the values of a layer at the positions [held](KeyValueStore::held): `[batch, kv_head, key, d_value]`.
    ///
    /// # Errors
    ///
    /// Those of [`KeyValueStore::keys`].
    pub fn values(&self, layer: impl Into<crate::Layer>) -> Result<Tensor> {
        Ok(self.passed(layer.into())?.values(self.len)?.f_alias_copy()?)
    }

    fn passed(&self, layer: crate::Layer) -> Result<&LayerMemory> {
        let layer = layer.resolve(self.layers.len())?;
        if self.len > 0 && !self.held.contains(&layer) {
            return Err(KeyValueStoreError::Layers { held: self.held.clone(), asked: layer..layer + 1 }.into());
        }
        Ok(&self.layers[layer])
    }

    /// Forgets all positions from `len` on, so that the next run continues from there.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, KeyValueStore, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let mut store = KeyValueStore::new(&model, 1, 16)?;
    /// model.run([5, 17, 3], RunOptions::new().past(&mut store))?; // a prefix that all runs share
    /// for ending in [[60, 9], [60, 4], [2, 7]] {
    ///     let logits = model.run(ending, RunOptions::new().past(&mut store))?.logits.unwrap();
    ///     assert_eq!(logits.size()[1], 2);
    ///     store.truncate(3)?;
    /// }
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::KeyValueStore`] where a layer with a window holds too little for that: it can go back by 64 positions, and by all that it
    /// has not overwritten. A clone that is made before keeps them.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len >= self.len {
            return Ok(());
        }
        if len == 0 {
            (self.held, self.rotated_for, self.padding) = (0..self.layers.len(), None, None);
            self.layers.iter_mut().for_each(|layer| layer.first = 0);
            self.len = 0;
            return Ok(());
        }
        let padding = self.padding.as_ref().map(|padding| padding.narrow(len)).transpose()?;
        for layer in self.held.clone() {
            let LayerMemory { first, window, .. } = self.layers[layer];
            if first > 0 && needed(window, padding.as_ref(), len)? < first {
                return Err(KeyValueStoreError::Forgotten { layer, first, len }.into());
            }
        }
        (self.padding, self.len) = (padding, len);
        Ok(())
    }

    /// A store of some rows of this one, in this order, each as often as it is named: copies.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`]; [`Error::KeyValueStore`] for no rows at all.
    pub fn rows(&self, rows: &[usize]) -> Result<KeyValueStore> {
        self.rows_for(rows, self.capacity)
    }

    /// [`KeyValueStore::rows`] with memory for `capacity` positions at least.
    pub(crate) fn rows_for(&self, rows: &[usize], capacity: usize) -> Result<KeyValueStore> {
        let capacity = capacity.max(self.capacity);
        if let Some(row) = rows.iter().find(|row| **row >= self.batch) {
            let len = self.batch as i64;
            return Err(Error::SliceOutOfRange { slice: format!("index {row}"), axis: "batch", len });
        }
        if rows.is_empty() {
            let n_ctx = self.model.config().n_ctx;
            return Err(KeyValueStoreError::Size { batch: 0, capacity: self.capacity, n_ctx }.into());
        }
        let numbers: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let index = Tensor::f_from_slice(&numbers)?.f_to_device(self.model.device())?;
        let layers = self.layers.iter().map(|layer| layer.rows(&index, self.len, capacity));
        let ids = Tensor::f_empty([rows.len() as i64, capacity as i64], (Kind::Int64, self.model.device()))?;
        let len = self.len as i64;
        ids.f_narrow(1, 0, len)?.f_copy_(&self.ids.f_narrow(1, 0, len)?.f_index_select(0, &index)?)?;
        Ok(KeyValueStore {
            layers: layers.collect::<Result<_>>()?,
            ids,
            batch: rows.len(),
            capacity,
            rotated_for: self.rotated_for.as_ref().map(|all| rows.iter().map(|row| all[*row]).collect()),
            padding: self.padding.as_ref().map(|padding| padding.rows(&index)).transpose()?,
            sharing: Arc::new(()),
            model: self.model.clone(),
            held: self.held.clone(),
            ..*self
        })
    }

    /// A store with room for `capacity` positions that holds the first `len` of this one in these layers, each row `times` times, all
    /// rows together: copies. The layers hold all positions.
    pub(crate) fn prefix(
        &self,
        len: usize,
        capacity: usize,
        times: usize,
        layers: Range<usize>,
    ) -> Result<KeyValueStore> {
        if let Some(layer) = layers.clone().find(|layer| self.first(*layer) > 0) {
            return Err(KeyValueStoreError::Forgotten { layer, first: self.first(layer), len }.into());
        }
        let rows: Vec<i64> = (0..times * self.batch).map(|row| (row % self.batch) as i64).collect();
        let index = Tensor::f_from_slice(&rows)?.f_to_device(self.model.device())?;
        let of_layer = |(layer, memory): (usize, &LayerMemory)| match layers.contains(&layer) {
            true => memory.rows(&index, len, capacity),
            false => LayerMemory::new(shape(&self.model, layer, rows.len()), 0, None),
        };
        let ids = Tensor::f_empty([rows.len() as i64, capacity as i64], (Kind::Int64, self.model.device()))?;
        let held = len as i64;
        ids.f_narrow(1, 0, held)?.f_copy_(&self.ids.f_narrow(1, 0, held)?.f_index_select(0, &index)?)?;
        let tiled = |lengths: &Vec<usize>| rows.iter().map(|row| lengths[*row as usize]).collect();
        Ok(KeyValueStore {
            model: self.model.clone(),
            layers: self.layers.iter().enumerate().map(of_layer).collect::<Result<_>>()?,
            ids,
            batch: rows.len(),
            capacity,
            len,
            held: layers,
            padding: None,
            rotated_for: self.rotated_for.as_ref().map(tiled),
            sharing: Arc::new(()),
        })
    }

    /// The same store with memory for `capacity` positions: copies, where there is less.
    pub(crate) fn with_capacity(mut self, capacity: usize) -> Result<Self> {
        if capacity > self.capacity {
            self.capacity = capacity;
            self.own()?;
        }
        Ok(self)
    }

    /// Moves what is held to memory of this store alone, of the capacity's size.
    fn own(&mut self) -> Result<()> {
        let (len, capacity) = (self.len, self.capacity);
        let layers = self.layers.iter().map(|layer| layer.moved(layer.first, len, len, capacity));
        let layers = layers.collect::<Result<_>>()?;
        let ids = Tensor::f_empty([self.batch as i64, capacity as i64], (Kind::Int64, self.model.device()))?;
        ids.f_narrow(1, 0, len as i64)?.f_copy_(&self.ids.f_narrow(1, 0, len as i64)?)?;
        (self.layers, self.ids, self.sharing) = (layers, ids, Arc::new(()));
        Ok(())
    }

    /// Makes room for `new` positions of the layers `layers`. The positions held stay what they are.
    pub(crate) fn make_room(&mut self, new: usize, layers: &Range<usize>) -> Result<()> {
        if Arc::get_mut(&mut self.sharing).is_none() {
            self.own()?;
        }
        let (len, capacity) = (self.len, self.capacity);
        for layer in &mut self.layers[layers.clone()] {
            let needed = match layer.window {
                Some(window) if !layer.has_room(len + new) => needed(Some(window), self.padding.as_ref(), len)?,
                _ => 0,
            };
            layer.make_room(needed, len, new, capacity)?;
        }
        Ok(())
    }

    /// The first position of a layer that is held.
    pub(crate) fn first(&self, layer: usize) -> usize {
        self.layers.get(layer).map_or(0, |layer| layer.first)
    }

    /// The padding of the positions held.
    pub(crate) fn padding(&self) -> Option<&Padding> {
        self.padding.as_ref()
    }

    /// That a run of this model through these layers can continue the store.
    pub(crate) fn check(&self, model: &Transformer, batch: usize, new: usize, layers: &Range<usize>) -> Result<()> {
        if !self.model.has_weights_of(model) {
            return Err(KeyValueStoreError::OtherModel.into());
        }
        if batch != self.batch {
            return Err(KeyValueStoreError::Batch { rows: self.batch, found: batch }.into());
        }
        if self.len.saturating_add(new) > self.capacity {
            return Err(KeyValueStoreError::Full { len: self.len, new, capacity: self.capacity }.into());
        }
        if self.len > 0 && (layers.start < self.held.start || layers.end > self.held.end) {
            return Err(KeyValueStoreError::Layers { held: self.held.clone(), asked: layers.clone() }.into());
        }
        Ok(())
    }

    /// What a run through these layers, whose tokens stand like this, will add.
    ///
    /// # Errors
    ///
    /// Where a row grows to a length at which the model rotates its keys otherwise than those held.
    pub(crate) fn addition(&self, layout: &Layout, layers: Range<usize>) -> Result<Addition> {
        let (new, padding) = (layout.span.new, layout.padding.clone());
        let mut varying = self.model.config().rotations().filter(|rotary| LengthClass::varies(rotary)).peekable();
        if varying.peek().is_none() {
            return Ok(Addition { new, padding, layers, rotated_for: None });
        }
        let lengths = layout.row_lengths()?;
        let held = self.rotated_for.iter().flatten();
        for rotary in varying {
            for (row, (held, grown)) in held.clone().zip(&lengths).enumerate() {
                if LengthClass::of(rotary, *held) != LengthClass::of(rotary, *grown) {
                    return Err(KeyValueStoreError::Rotation { row, held: *held, grown: *grown }.into());
                }
            }
        }
        Ok(Addition { new, padding, layers, rotated_for: Some(lengths) })
    }

    /// Writes the new keys and values of a layer behind those held, and gives all that are held: `[batch, pos, kv_head, width]` to
    /// `[batch, kv_head, key, width]`. They count once the run [succeeds](KeyValueStore::commit).
    pub(crate) fn extend(&self, layer: usize, k: &Tensor, v: &Tensor, records: bool) -> Result<(Tensor, Tensor)> {
        let Some(memory) = self.layers.get(layer) else {
            return Err(Error::Internal("a run passes a layer that its key-value store lacks"));
        };
        memory.extend(self.len, &k.f_transpose(1, 2)?, &v.f_transpose(1, 2)?, records)
    }

    /// Counts what a run of these ids, `[batch, new]`, has added.
    pub(crate) fn commit(&mut self, addition: Addition, ids: &Tensor) -> Result<()> {
        let len = self.len + addition.new;
        self.ids.f_narrow(1, self.len as i64, addition.new as i64)?.f_copy_(ids)?;
        let capacity = self.capacity;
        for layer in &mut self.layers[addition.layers.clone()] {
            if let (Some(window), false) = (layer.window, layer.is_bounded(capacity)) {
                layer.shrink(needed(Some(window), addition.padding.as_ref(), len)?, len, capacity)?;
            }
        }
        self.len = len;
        self.padding = addition.padding;
        self.held = addition.layers;
        self.rotated_for = addition.rotated_for;
        Ok(())
    }
}

/// The size of a layer's memory.
fn shape(model: &Transformer, layer: usize, batch: usize) -> Shape {
    let config = model.config();
    Shape {
        batch: i64::try_from(batch).unwrap_or(i64::MAX),
        heads: config.heads(layer).key_value as i64,
        d_head: config.d_head as i64,
        d_value: config.d_value() as i64,
        options: (model.kind(), model.device()),
    }
}

/// The first position that a query at position `len` or later can see.
fn needed(window: Option<usize>, padding: Option<&Padding>, len: usize) -> Result<usize> {
    let Some(window) = window else { return Ok(0) };
    match padding {
        None => Ok((len + 1).saturating_sub(window)),
        // Windows are of positions, which padding holds up.
        Some(padding) => padding.column_of_last(window - 1, len),
    }
}
