//! What a run needs of a [`KeyValueStore`]: room, what is held, and what it adds.

use std::ops::Range;
use std::sync::Arc;

use tch::Tensor;

use super::held::{Held, HeldKeys, KeyValueBlock, NewKeys};
use super::layer_memory::{Form, LayerMemory};
use super::{full_shape, held_latent, needed, shape, Addition, KeyValueStore};
use crate::error::KeyValueStoreError;
use crate::model::layout::{Layout, Padding};
use crate::model::rotary::LengthClass;
use crate::model::Transformer;
use crate::{Error, Result};

impl KeyValueStore {
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
            return self.clear();
        }
        let padding = self.padding.as_ref().map(|padding| padding.narrow(len)).transpose()?;
        for layer in self.held.clone() {
            let (first, window) = (self.layers[layer].first, self.layers[layer].window);
            if first > 0 && needed(window, padding.as_ref(), len)? < first {
                return Err(KeyValueStoreError::Forgotten { layer, first, len }.into());
            }
        }
        for layer in &mut self.layers {
            layer.truncate(len)?;
        }
        (self.padding, self.len) = (padding, len);
        Ok(())
    }

    /// Forgets all positions.
    fn clear(&mut self) -> Result<()> {
        for layer in 0..self.layers.len() {
            let shape = shape(&self.model, layer, self.batch)?;
            let memory = &mut self.layers[layer];
            if memory.form != shape.form {
                *memory = LayerMemory::new(&shape, self.capacity, memory.window)?;
            }
            memory.first = 0;
            memory.truncate(0)?;
        }
        (self.held, self.rotated_for, self.padding) = (0..self.layers.len(), None, None);
        self.len = 0;
        Ok(())
    }

    /// Makes room for `new` positions of the layers `layers`. The positions held stay what they are.
    ///
    /// `changes_keys` is whether hooks may put other keys or values in place in a layer. Latents cannot say what these are, so such a layer
    /// holds keys and values from then on.
    pub(crate) fn make_room(
        &mut self,
        new: usize,
        layers: &Range<usize>,
        changes_keys: impl Fn(usize) -> bool,
    ) -> Result<()> {
        if Arc::get_mut(&mut self.sharing).is_none() {
            self.own()?;
        }
        let (len, capacity) = (self.len, self.capacity);
        for layer in layers.clone().filter(|layer| changes_keys(*layer)) {
            if self.layers[layer].form == Form::Latents
                && let Some(latent) = held_latent(&self.model, layer)?
            {
                let shape = full_shape(&self.model, layer, self.batch);
                self.layers[layer] = self.layers[layer].expanded(latent, len, capacity, &shape)?;
            }
        }
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
        self.layers.get(self.source(layer)).map_or(0, |layer| layer.first)
    }

    /// The layer that holds the keys and values which a layer looks at.
    pub(super) fn source(&self, layer: usize) -> usize {
        self.model.config().shares_keys_of(layer).unwrap_or(layer)
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

    /// Writes what a run computes in a layer behind what is held, and gives all of it. It counts once the run
    /// [succeeds](KeyValueStore::commit).
    pub(crate) fn extend(&self, layer: usize, new: &NewKeys<'_>) -> Result<Held> {
        let Some(memory) = self.layers.get(layer) else {
            return Err(Error::Internal("a run passes a layer that its key-value store lacks"));
        };
        let is_latent = memory.form == Form::Latents;
        let mut parts = match is_latent {
            true => {
                let latents = new.latents.ok_or(Error::Internal("a run has no latents for its key-value store"))?;
                vec![latents.f_unsqueeze(1)?]
            }
            false => vec![new.keys.f_transpose(1, 2)?, new.values.f_transpose(1, 2)?],
        };
        parts.extend(new.index_keys()?);
        let mut blocks = memory.extend(self.len, &parts, new.records && !is_latent)?;
        let index = match new.index {
            Some(_) => blocks.iter_mut().filter_map(Vec::pop).collect(),
            None => Vec::new(),
        };
        let keys = match is_latent {
            true => HeldKeys::Latents(blocks.into_iter().flatten().collect()),
            false => HeldKeys::KeysAndValues(blocks.into_iter().map(key_value_block).collect::<Result<_>>()?),
        };
        Ok(Held { keys, index })
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

/// Keys, then values.
fn key_value_block(parts: Vec<Tensor>) -> Result<KeyValueBlock> {
    let [keys, values] = <[Tensor; 2]>::try_from(parts).map_err(|_| Error::Internal("keys lack values"))?;
    Ok(KeyValueBlock { keys, values })
}
