//! Caches that were saved, with the model that ran.

use std::path::Path;

use super::HookedTransformer;
use crate::cache::ActivationCache;
use crate::Result;

impl HookedTransformer {
    /// Opens the file of a cache that this model made: what [`ActivationCache::save`] or a [`FileSink`](crate::FileSink) wrote.
    ///
    /// The file is mapped into memory: an activation is read when it is used, or at once where the model is not on the CPU. Every analysis
    /// gives what it gives on the cache that was saved.
    ///
    /// ```
    /// use tch_lens::{HookedTransformer, LensOptions, RunOptions};
    /// let model = HookedTransformer::toy()?;
    /// let folder = tempfile::tempdir().unwrap();
    /// let path = folder.path().join("cache.safetensors");
    /// let (_, cache) = model.run_with_cache("When Mary and John went to the shop")?;
    /// cache.save(&path)?;
    /// let opened = model.open_cache(&path)?;
    /// let [now, then] = [&opened, &cache].map(|cache| cache.logit_lens(LensOptions::new().pos(-1)).unwrap());
    /// assert_eq!(now.tensor(), then.tensor());
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`ActivationCache::open`]; [`Error::CacheOfOtherModel`](crate::Error::CacheOfOtherModel), which says what differs, where another model, or
    /// other weights of it, ran.
    pub fn open_cache(&self, path: impl AsRef<Path>) -> Result<ActivationCache> {
        ActivationCache::open_with(path.as_ref(), &self.model, self.tokenizer.clone())
    }
}
