//! Copies of a [`KeyValueStore`] that share its memory: clones, rows, prefixes.

use std::ops::Range;
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::layer_memory::LayerMemory;
use super::{shape, KeyValueStore};
use crate::error::KeyValueStoreError;
use crate::{Error, Result};

impl Clone for KeyValueStore {
    /// Another store on the same memory. What one of the two adds, the other does not see.
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
    /// A store of some rows of this one, in this order, each as often as it is named.
    ///
    /// Rows that are named several times in turn share the positions held, where these are 64 at least; all else is copied.
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
        let layers = self.layers.iter().map(|layer| layer.rows(rows, self.len, capacity, &self.sharing));
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
        let rows: Vec<usize> = (0..times * self.batch).map(|row| row % self.batch).collect();
        let numbers: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let index = Tensor::f_from_slice(&numbers)?.f_to_device(self.model.device())?;
        let of_layer = |(layer, memory): (usize, &LayerMemory)| match layers.contains(&layer) {
            true => memory.copied_rows(&rows, len, capacity),
            false => LayerMemory::new(&shape(&self.model, layer, rows.len())?, 0, None),
        };
        let ids = Tensor::f_empty([rows.len() as i64, capacity as i64], (Kind::Int64, self.model.device()))?;
        let held = len as i64;
        ids.f_narrow(1, 0, held)?.f_copy_(&self.ids.f_narrow(1, 0, held)?.f_index_select(0, &index)?)?;
        let tiled = |lengths: &Vec<usize>| rows.iter().map(|row| lengths[*row]).collect();
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

    /// The same store with room for `capacity` positions at least.
    pub(crate) fn with_capacity(mut self, capacity: usize) -> Result<Self> {
        if capacity > self.capacity {
            self.capacity = capacity;
            match Arc::get_mut(&mut self.sharing) {
                Some(()) => self.move_to(|layer, len, _| layer.grown(len, capacity))?,
                None => self.own()?,
            }
        }
        Ok(self)
    }

    /// Goes on with memory of its own, up to the capacity: what is held is shared from now on, or copied where it is little.
    pub(super) fn own(&mut self) -> Result<()> {
        let capacity = self.capacity;
        self.move_to(|layer, len, sharing| layer.continued(len, capacity, sharing))
    }

    /// Puts another memory in the place of each layer's.
    fn move_to(&mut self, moved: impl Fn(&LayerMemory, usize, &Arc<()>) -> Result<LayerMemory>) -> Result<()> {
        let (len, capacity) = (self.len, self.capacity);
        let layers = self.layers.iter().map(|layer| moved(layer, len, &self.sharing)).collect::<Result<_>>()?;
        let ids = Tensor::f_empty([self.batch as i64, capacity as i64], (Kind::Int64, self.model.device()))?;
        ids.f_narrow(1, 0, len as i64)?.f_copy_(&self.ids.f_narrow(1, 0, len as i64)?)?;
        (self.layers, self.ids, self.sharing) = (layers, ids, Arc::new(()));
        Ok(())
    }
}
