//! [`KeyValueStore`]: the keys and values of positions that earlier runs computed.

mod copies;
mod file;
mod frozen;
pub(crate) mod held;
mod layer_memory;
mod runs;

use std::ops::Range;
use std::sync::Arc;

use tch::{Kind, Tensor};

use self::layer_memory::{Form, LayerMemory, Shape};
use super::latent::Latent;
use super::layout::Padding;
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
/// A clone uses the same memory. Where one of the two is continued, the positions that both hold stay shared, and only the new ones have
/// memory of their own; the same is true of [rows](KeyValueStore::rows) that are named several times. So a prefix is run once, kept, and
/// continued many times; [`KeyValueStore::save`] writes it to a file. Attention to a shared prefix reads it once for all rows of a batch.
/// Positions up to 63 are copied, which costs less than attention to one block more.
///
/// Where keys and values are made of latents (multi-head latent attention), the store holds the latents, and attention reads these. A
/// layer in which a hook changes keys or values holds keys and values from that run on. A layer that has an
/// [indexer](crate::config::Indexer) also holds its keys.
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

impl KeyValueStore {
    /// An empty store for `batch` rows of up to `capacity` positions.
    ///
    /// It takes `n_layers · batch · n_key_value_heads · capacity · (d_head + d_value)` numbers of the model's kind, on its device; with latent
    /// attention `n_layers · batch · capacity · (rank + rotated)`, the rank of the latents and the dimensions of a key that rotate. An
    /// indexer's keys take `batch · capacity · d_head` of its own. A layer with a window takes at most as many as for twice the window, or for the window and 192 positions if that is more.
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
            (0..config.n_layers).map(|layer| LayerMemory::new(&shape(model, layer, batch)?, capacity, window(layer)));
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
        let layer = self.source(layer.into().resolve(self.layers.len())?);
        Ok(self.layers[layer].first..self.len)
    }

    /// A copy of the keys of a layer at the positions [held](KeyValueStore::held), after their rotation: `[batch, kv_head, key, d_head]`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`]; [`Error::KeyValueStore`] for a layer that the runs so far did not pass.
    pub fn keys(&self, layer: impl Into<crate::Layer>) -> Result<Tensor> {
        let [keys, _] = self.keys_and_values(layer.into())?;
        Ok(keys.f_alias_copy()?)
    }

    /// A copy of the values of a layer at the positions [held](KeyValueStore::held): `[batch, kv_head, key, d_value]`.
    ///
    /// # Errors
    ///
    /// Those of [`KeyValueStore::keys`].
    pub fn values(&self, layer: impl Into<crate::Layer>) -> Result<Tensor> {
        let [_, values] = self.keys_and_values(layer.into())?;
        Ok(values.f_alias_copy()?)
    }

    /// A copy of the latents of a layer at the positions [held](KeyValueStore::held), after their norm, and of the rotated part of the keys
    /// that all heads share: `[batch, key, rank + rotated]`. `None` for a layer that holds keys and values.
    ///
    /// # Errors
    ///
    /// Those of [`KeyValueStore::keys`].
    pub fn latents(&self, layer: impl Into<crate::Layer>) -> Result<Option<Tensor>> {
        let (_, memory) = self.passed(layer.into())?;
        match memory.form {
            Form::KeysAndValues => Ok(None),
            Form::Latents => Ok(Some(memory.joined(self.len)?[0].f_squeeze_dim(1)?.f_alias_copy()?)),
        }
    }

    /// The bytes of memory for keys, values and latents that belong to this store alone. Room that is not used yet counts.
    pub fn bytes(&self) -> u64 {
        match self.is_shared() {
            true => 0,
            false => self.layers.iter().map(LayerMemory::own_bytes).sum(),
        }
    }

    /// The bytes of memory that this store shares with others, or among its rows.
    pub fn shared_bytes(&self) -> u64 {
        let frozen: u64 = self.layers.iter().map(LayerMemory::frozen_bytes).sum();
        match self.is_shared() {
            true => frozen + self.layers.iter().map(LayerMemory::own_bytes).sum::<u64>(),
            false => frozen,
        }
    }

    /// Whether another store uses this one's memory.
    fn is_shared(&self) -> bool {
        Arc::strong_count(&self.sharing) > 1
    }

    /// Keys and values of a layer: `[batch, kv_head, key, width]` each, views where nothing is shared or expanded.
    fn keys_and_values(&self, layer: crate::Layer) -> Result<[Tensor; 2]> {
        let (layer, memory) = self.passed(layer)?;
        let mut held = memory.joined(self.len)?;
        if memory.form == Form::KeysAndValues {
            held.truncate(2); // without the keys of an indexer
            return held.try_into().map_err(|_| Error::Internal("keys lack values"));
        }
        match held_latent(&self.model, layer)? {
            Some(latent) => Ok(latent.keys_and_values(&held[0])?.into()),
            None => Err(Error::Internal("a layer without latents holds some")),
        }
    }

    fn passed(&self, layer: crate::Layer) -> Result<(usize, &LayerMemory)> {
        let layer = self.source(layer.resolve(self.layers.len())?);
        if self.len > 0 && !self.held.contains(&layer) {
            return Err(KeyValueStoreError::Layers { held: self.held.clone(), asked: layer..layer + 1 }.into());
        }
        Ok((layer, &self.layers[layer]))
    }
}

/// The size of a layer's memory.
fn shape(model: &Transformer, layer: usize, batch: usize) -> Result<Shape> {
    let full = full_shape(model, layer, batch);
    Ok(match held_latent(model, layer)? {
        Some(latent) => {
            let index = full.parts.get(2).copied();
            let parts = std::iter::once([1, latent.held_width()]).chain(index).collect();
            Shape { form: Form::Latents, parts, ..full }
        }
        None => full,
    })
}

/// What a layer's latents are held by, where it holds latents.
fn held_latent(model: &Transformer, layer: usize) -> Result<Option<&Latent>> {
    Ok(model.weights()?.blocks.get(layer).and_then(|block| block.attn.held_latent()))
}

/// The size of a layer's memory for keys and values.
fn full_shape(model: &Transformer, layer: usize, batch: usize) -> Shape {
    let config = model.config();
    // A layer that looks at the keys of another one holds none.
    let heads = config.shares_keys_of(layer).map_or(config.heads(layer).key_value as i64, |_| 0);
    Shape {
        form: Form::KeysAndValues,
        batch: i64::try_from(batch).unwrap_or(i64::MAX),
        parts: [[heads, config.d_head_of(layer) as i64], [heads, config.d_value_of(layer) as i64]]
            .into_iter()
            .chain(config.indexer_of(layer).map(|indexer| [1, indexer.d_head as i64]))
            .collect(),
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
