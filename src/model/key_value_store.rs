//! [`KeyValueStore`]: the keys and values of positions that earlier runs computed.

use std::ops::Range;

use tch::Tensor;

use super::layout::{Layout, Padding};
use super::rotary::LengthClass;
use super::Transformer;
use crate::config::AttentionDir;
use crate::error::KeyValueStoreError;
use crate::{Error, Result};

/// What attention needs of positions that earlier runs computed: their keys, rotated, and their values.
///
/// A run that [continues](crate::RunOptions::past) a store computes its new positions only, and afterwards the store holds these as well.
/// So a sequence can be run in parts, token by token or behind a prefix that is run once, and gives what it gives whole. The
/// store belongs to one model and has memory for `capacity` positions from the start: a run copies its new entries, and nothing
/// else. Layers with a window read only the positions within it, but all are held.
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
#[derive(Debug)]
pub struct KeyValueStore {
    model: Transformer,
    /// Keys and values of each layer: `[batch, kv_head, capacity, d_head]`. What lies past `len` is scratch.
    layers: Vec<(Tensor, Tensor)>,
    batch: usize,
    capacity: usize,
    len: usize,
    /// The layers that hold all of the `len` positions.
    held: Range<usize>,
    /// Of the `len` positions; absent where all are real.
    padding: Option<Padding>,
    /// The length of each row for which its keys are rotated, where rotations depend on it.
    rotated_for: Option<Vec<usize>>,
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
    /// It takes `2 · n_layers · batch · n_key_value_heads · capacity · d_head` numbers of the model's kind, on its device.
    ///
    /// # Errors
    ///
    /// [`Error::KeyValueStore`] for a batch or capacity of zero, a capacity beyond the model's context, and a bidirectional model,
    /// in which earlier positions depend on later ones.
    pub fn new(model: &Transformer, batch: usize, capacity: usize) -> Result<Self> {
        let config = model.config();
        if config.attention_dir() == AttentionDir::Bidirectional {
            return Err(KeyValueStoreError::Bidirectional.into());
        }
        if batch == 0 || capacity == 0 || capacity > config.n_ctx {
            return Err(KeyValueStoreError::Size { batch, capacity, n_ctx: config.n_ctx }.into());
        }
        let rows = i64::try_from(batch).unwrap_or(i64::MAX);
        let shape = [rows, config.n_key_value_heads as i64, capacity as i64, config.d_head as i64];
        let empty = || Ok::<_, Error>(Tensor::f_empty(shape, (model.kind(), model.device()))?);
        let layers = (0..config.n_layers).map(|_| Ok((empty()?, empty()?))).collect::<Result<Vec<_>>>()?;
        let held = 0..config.n_layers;
        Ok(KeyValueStore {
            model: model.clone(),
            layers,
            batch,
            capacity,
            len: 0,
            held,
            padding: None,
            rotated_for: None,
        })
    }

    /// How many positions are held, padding included.
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

    /// A copy of the keys of a layer, after their rotation: `[batch, kv_head, len, d_head]`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOutOfRange`]; [`Error::KeyValueStore`] for a layer that the runs so far did not pass.
    pub fn keys(&self, layer: impl Into<crate::Layer>) -> Result<Tensor> {
        self.copy_of(layer.into(), |(keys, _)| keys)
    }

    /// A copy of the values of a layer: `[batch, kv_head, len, d_head]`.
    ///
    /// # Errors
    ///
    /// Those of [`KeyValueStore::keys`].
    pub fn values(&self, layer: impl Into<crate::Layer>) -> Result<Tensor> {
        self.copy_of(layer.into(), |(_, values)| values)
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
    /// libtorch's own.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        if len >= self.len {
            return Ok(());
        }
        if let Some(padding) = &self.padding {
            let padding = padding.narrow(len)?;
            self.padding = if len == 0 { None } else { Some(padding) };
        }
        if len == 0 {
            (self.held, self.rotated_for) = (0..self.layers.len(), None);
        }
        self.len = len;
        Ok(())
    }

    /// A store of some rows of this one, in this order, each as often as it is named: copies.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`]; [`Error::KeyValueStore`] for no rows at all.
    pub fn rows(&self, rows: &[usize]) -> Result<KeyValueStore> {
        if let Some(row) = rows.iter().find(|row| **row >= self.batch) {
            let len = self.batch as i64;
            return Err(Error::SliceOutOfRange { slice: format!("index {row}"), axis: "batch", len });
        }
        let mut store = KeyValueStore::new(&self.model, rows.len(), self.capacity)?;
        let numbers: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let index = Tensor::f_from_slice(&numbers)?.f_to_device(self.model.device())?;
        let held = |x: &Tensor| Ok::<_, Error>(x.f_narrow(2, 0, self.len as i64)?);
        for ((from_k, from_v), (to_k, to_v)) in self.layers.iter().zip(&store.layers) {
            for (from, to) in [(from_k, to_k), (from_v, to_v)] {
                write(&mut held(to)?, &held(from)?.f_index_select(0, &index)?)?;
            }
        }
        store.rotated_for = self.rotated_for.as_ref().map(|all| rows.iter().map(|row| all[*row]).collect());
        store.padding = self.padding.as_ref().map(|padding| padding.rows(&index)).transpose()?;
        (store.len, store.held) = (self.len, self.held.clone());
        Ok(store)
    }

    /// A store with room for `capacity` positions that holds the first `len` of this one in these layers, each row `times` times, all
    /// rows together: copies.
    pub(crate) fn prefix(
        &self,
        len: usize,
        capacity: usize,
        times: usize,
        layers: Range<usize>,
    ) -> Result<KeyValueStore> {
        let rows: Vec<i64> = (0..times * self.batch).map(|row| (row % self.batch) as i64).collect();
        let index = Tensor::f_from_slice(&rows)?.f_to_device(self.model.device())?;
        let copied = |(layer, x): (usize, &Tensor)| -> Result<Tensor> {
            let mut size = x.size();
            (size[0], size[2]) = (rows.len() as i64, if layers.contains(&layer) { capacity as i64 } else { 0 });
            let to = Tensor::f_empty(&size, (x.f_kind()?, x.device()))?;
            if layers.contains(&layer) {
                let held = x.f_narrow(2, 0, len as i64)?.f_index_select(0, &index)?;
                write(&mut to.f_narrow(2, 0, len as i64)?, &held)?;
            }
            Ok(to)
        };
        let of_layer = |(layer, (k, v)): (usize, &(Tensor, Tensor))| Ok((copied((layer, k))?, copied((layer, v))?));
        let tensors = self.layers.iter().enumerate().map(of_layer).collect::<Result<Vec<_>>>()?;
        let tiled = |lengths: &Vec<usize>| rows.iter().map(|row| lengths[*row as usize]).collect();
        Ok(KeyValueStore {
            model: self.model.clone(),
            layers: tensors,
            batch: rows.len(),
            capacity,
            len,
            held: layers,
            padding: None,
            rotated_for: self.rotated_for.as_ref().map(tiled),
        })
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

    /// Writes the new keys and values of a layer behind those held, and gives all: `[batch, pos, kv_head, d_head]` to
    /// `[batch, kv_head, key, d_head]`. They count once the run [succeeds](KeyValueStore::commit).
    pub(crate) fn extend(&self, layer: usize, k: &Tensor, v: &Tensor, records: bool) -> Result<(Tensor, Tensor)> {
        let Some((keys, values)) = self.layers.get(layer) else {
            return Err(Error::Internal("a run passes a layer that its key-value store lacks"));
        };
        Ok((self.extended(keys, k, records)?, self.extended(values, v, records)?))
    }

    fn extended(&self, held: &Tensor, new: &Tensor, records: bool) -> Result<Tensor> {
        let new = new.f_transpose(1, 2)?; // [batch, kv_head, pos, d_head]
        let (past, n) = (self.len as i64, new.size()[2]);
        write(&mut held.f_narrow(2, past, n)?, &new.f_detach()?)?;
        match records {
            // Later runs write into the same memory, which a record of a gradient must not hold.
            true => Ok(Tensor::f_cat(&[held.f_narrow(2, 0, past)?, new], 2)?),
            false => Ok(held.f_narrow(2, 0, past + n)?),
        }
    }

    /// Counts what a run has added.
    pub(crate) fn commit(&mut self, addition: Addition) {
        self.len += addition.new;
        self.padding = addition.padding;
        self.held = addition.layers;
        self.rotated_for = addition.rotated_for;
    }

    fn copy_of(&self, layer: crate::Layer, part: fn(&(Tensor, Tensor)) -> &Tensor) -> Result<Tensor> {
        let layer = layer.resolve(self.layers.len())?;
        if self.len > 0 && !self.held.contains(&layer) {
            return Err(KeyValueStoreError::Layers { held: self.held.clone(), asked: layer..layer + 1 }.into());
        }
        Ok(part(&self.layers[layer]).f_narrow(2, 0, self.len as i64)?.f_alias_copy()?)
    }
}

/// Copies `from` into `to`'s memory.
fn write(to: &mut Tensor, from: &Tensor) -> Result<()> {
    tch::no_grad(|| to.f_copy_(from))?;
    Ok(())
}
