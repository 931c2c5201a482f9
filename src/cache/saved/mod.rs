//! Caches in files.
//!
//! A file is a safetensors file: the activations under TransformerLens' names, sparse rows as three tensors (`sparse.rs`), `tokens`, `mask` where there is padding, and in its metadata
//! a [`Description`] of the run. [`FileSink`] writes it, from a cache or while a run goes on.

mod description;
mod open;
mod sparse;

use std::path::Path;

use self::description::Description;
use super::ActivationCache;
use crate::hook::PointSet;
use crate::model::Transformer;
use crate::run::kept::KeptPositions;
use crate::run::sink::failed;
use crate::run::{FileSink, RunDescription, Sink};
use crate::text::input::Tokens;
use crate::Result;

impl ActivationCache {
    /// Writes the cache to a safetensors file: its activations, bit for bit and in their own kinds, its tokens and padding, which positions
    /// and rows they are of, what hooks changed, and which model ran.
    ///
    /// Features that the cache holds as [sparse rows](ActivationCache::sparse) are written as such, in three tensors. A cache of a run with
    /// dictionaries is opened with a handle that has them.
    ///
    /// The file appears, in place of one of its name, once it is complete. One activation at a time is copied. A run that is to keep its
    /// activations in a file and not in memory has a [`FileSink`], which writes the same file.
    ///
    /// ```
    /// use tch_lens::{ActivationCache, HookedTransformer};
    /// let model = HookedTransformer::toy()?;
    /// let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// let folder = tempfile::tempdir().unwrap();
    /// let path = folder.path().join("cache.safetensors");
    /// cache.save(&path)?;
    /// let opened = model.open_cache(&path)?; // with the model, for every analysis
    /// assert_eq!(opened[("z", 1)], cache[("z", 1)]);
    /// let alone = ActivationCache::open(&path)?; // without
    /// assert_eq!(alone[("pattern", 0)].size(), [1, 4, 9, 9]); // [batch, head, query, key]
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// The model is named by its configuration and by [`Transformer::weights_hash`], which is computed once.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) if the file cannot be written; [`Error::NoWeights`](crate::Error::NoWeights) for a cache that was opened without
    /// its model.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut sink = FileSink::new(path.as_ref());
        let describe = || {
            let description = Description {
                rows: self.rows.clone(),
                has_batch_dim: self.has_batch_dim,
                ..Description::of_run(&self.model, &self.tokens, &self.kept, &self.changed)?
            };
            description.of_tokens(&self.tokens)
        };
        let mut planned = Vec::new();
        for (point, entry) in self.entries.iter() {
            match entry.rows() {
                Some(_) => planned.extend(sparse::names(&point.to_string()).map(|name| (name, 1))),
                None => planned.push((point.to_string(), entry.size().len())),
            }
        }
        sink.describe(&describe).map_err(|source| failed(None, source))?;
        sink.begin_tensors(&planned)?;
        for (point, entry) in self.entries.iter() {
            let name = point.to_string();
            match entry.rows() {
                Some(rows) => sparse::write(&mut sink, &name, rows)?,
                None => sink.put(name, &entry.formed()?)?,
            }
        }
        sink.finish().map_err(|source| failed(None, source))
    }
}

/// What a file says of a run of all rows.
///
/// # Errors
///
/// Those of [`Transformer::weights_hash`].
pub(crate) fn describe_run(
    model: &Transformer,
    tokens: &Tokens,
    kept: &KeptPositions,
    changed: &PointSet,
) -> Result<RunDescription> {
    Description::of_run(model, tokens, kept, changed)?.of_tokens(tokens)
}
