//! A [`KeyValueStore`] in a file.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::layer_memory::{Form, LayerMemory};
use super::{full_shape, KeyValueStore};
use crate::error::KeyValueStoreError;
use crate::format::safetensors;
use crate::model::layout::Padding;
use crate::model::Transformer;
use crate::tensor::file::write_safetensors_with;
use crate::unchecked::mapped::{Access, FileBytes};
use crate::{Error, Result};

/// The field of the file's metadata that says what the tensors are.
const FIELD: &str = "key_value_store";

/// What a file says of its store beside the tensors.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    /// [`Transformer::weights_hash`].
    model: String,
    capacity: usize,
    held: (usize, usize),
    /// The first position of each layer.
    first: Vec<usize>,
    /// Whether layers with a window hold what is within it only.
    forgets: bool,
    rotated_for: Option<Vec<usize>>,
}

impl KeyValueStore {
    /// Writes the store to a safetensors file: keys and values, or latents, of each layer, keys of indexers, tokens and padding. The file appears once it is complete.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, KeyValueStore, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let folder = tempfile::tempdir().unwrap();
    /// let path = folder.path().join("prefix.safetensors");
    /// let mut prefix = KeyValueStore::new(&model, 1, 16)?;
    /// model.run([5, 17, 3], RunOptions::new().past(&mut prefix))?;
    /// prefix.save(&path)?;
    /// let mut loaded = KeyValueStore::load(&model, &path)?;
    /// let [first, second] = [&mut prefix, &mut loaded].map(|store| {
    ///     model.run([60, 9], RunOptions::new().past(store)).unwrap().logits.unwrap()
    /// });
    /// assert_eq!(first, second);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let forgets = self.layers.iter().any(|layer| layer.window.is_some());
        let description = Description {
            model: self.model.weights_hash()?,
            capacity: self.capacity,
            held: (self.held.start, self.held.end),
            first: self.layers.iter().map(|layer| layer.first).collect(),
            forgets,
            rotated_for: self.rotated_for.clone(),
        };
        let mut tensors = Vec::new();
        for layer in self.held.clone().filter(|layer| self.source(*layer) == *layer) {
            let memory = &self.layers[layer];
            let named = |(name, tensor): (&&str, Tensor)| (format!("layers.{layer}.{name}"), tensor);
            tensors.extend(names(memory.form).iter().zip(memory.joined(self.len)?).map(named));
        }
        tensors.push(("tokens".into(), self.ids.f_narrow(1, 0, self.len as i64)?));
        tensors.extend(self.mask().map(|mask| ("mask".into(), mask.shallow_clone())));
        let description = serde_json::to_string(&description).map_err(|_| Error::Internal("a store has no JSON"))?;
        write_safetensors_with(path.as_ref(), tensors, &[("format", "pt"), (FIELD, &description)])
    }

    /// Reads a store that [`KeyValueStore::save`] wrote, to be continued by the same model.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Malformed`] if it cannot be read; [`Error::KeyValueStore`] if it is the store of another model, or none.
    pub fn load(model: &Transformer, path: impl AsRef<Path>) -> Result<KeyValueStore> {
        let path = path.as_ref();
        let refused = |why: &str| {
            Error::from(KeyValueStoreError::File { path: path.display().to_string(), why: why.to_string() })
        };
        let file = FileBytes::open(path, Access::Read)?;
        let text = safetensors::metadata(file.as_slice(), FIELD).map_err(|error| Error::malformed(path, error))?;
        let text = text.ok_or_else(|| refused("its metadata does not describe one"))?;
        let said: Description = serde_json::from_str(&text).map_err(|error| refused(&error.to_string()))?;
        if said.model != model.weights_hash()? {
            return Err(refused("it was made with other weights"));
        }
        let entries = safetensors::entries(file.as_slice()).map_err(|error| Error::malformed(path, error))?;
        let read = |name: &str, kind: Kind| -> Result<Option<Tensor>> {
            let Some((_, place)) = entries.iter().find(|(found, _)| found == name) else { return Ok(None) };
            let tensor = file.tensor(place, path)?;
            match tensor.f_kind()? == kind {
                true => Ok(Some(tensor)),
                false => Err(refused(&format!("`{name}` is of another kind of numbers"))),
            }
        };
        let needed = |name: &str, kind| read(name, kind)?.ok_or_else(|| refused(&format!("it has no `{name}`")));
        let (config, kind, device) = (model.config(), model.kind(), model.device());
        let ids = needed("tokens", Kind::Int64)?;
        let [batch, len] = ids.size()[..] else { return Err(refused("`tokens` is not [batch, len]")) };
        let (batch, len) = (batch as usize, len as usize);
        let (held, n_layers) = (said.held.0..said.held.1, config.n_layers);
        let fits = len <= said.capacity
            && said.capacity <= config.n_ctx.max(len)
            && batch > 0
            && held.start <= held.end
            && held.end <= n_layers
            && said.first.len() == n_layers
            && said.first.iter().all(|first| *first <= len)
            && said.rotated_for.as_ref().is_none_or(|rows| rows.len() == batch);
        if !fits {
            return Err(refused("its sizes do not fit together"));
        }
        let mut store = KeyValueStore::of_columns(model, batch, said.capacity, said.forgets)?;
        for layer in held.clone().filter(|layer| config.shares_keys_of(*layer).is_none()) {
            let first = said.first[layer];
            let latents = entries.iter().any(|(name, _)| *name == format!("layers.{layer}.{LATENTS}"));
            if store.layers[layer].form == Form::Latents && !latents {
                let window = store.layers[layer].window;
                store.layers[layer] = LayerMemory::new(&full_shape(model, layer, batch), said.capacity, window)?;
            }
            let part = |(name, shape): (&&str, [i64; 4])| {
                let name = format!("layers.{layer}.{name}");
                let tensor = needed(&name, kind)?;
                match tensor.size() == shape {
                    true => Ok(tensor),
                    false => Err(refused(&format!("`{name}` is {:?}, expected {shape:?}", tensor.size()))),
                }
            };
            let memory = &store.layers[layer];
            let parts =
                names(memory.form).iter().zip(memory.sizes(len - first)).map(part).collect::<Result<Vec<_>>>()?;
            let memory = &mut store.layers[layer];
            memory.first = first;
            memory.make_room(first, first, len - first, said.capacity)?;
            memory.fill(first, len, &parts)?;
        }
        store.ids.f_narrow(1, 0, len as i64)?.f_copy_(&ids)?;
        store.padding = match read("mask", Kind::Bool)? {
            Some(mask) if mask.size() == ids.size() => Some(Padding::new(mask.f_alias_copy()?.f_to_device(device)?)?),
            Some(_) => return Err(refused("`mask` has not the size of `tokens`")),
            None => None,
        };
        (store.len, store.held, store.rotated_for) = (len, held, said.rotated_for);
        Ok(store)
    }
}

/// What a file calls latents.
const LATENTS: &str = "latents";

/// What a file calls the tensors of a layer, of which the last are those of an indexer, where the layer has one.
fn names(form: Form) -> &'static [&'static str] {
    match form {
        Form::KeysAndValues => &["keys", "values", "indexer_keys"],
        Form::Latents => &[LATENTS, "indexer_keys"],
    }
}
