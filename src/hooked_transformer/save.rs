//! Models to folders in a form of our own, which loads as exactly the same model.
//!
//! The form is `model.safetensors` by TransformerLens' names, `tch_lens.json` with the [`Config`], and the tokenizer's two
//! files. Every file is written beside its place and then renamed, so that a folder never holds half of one.

use std::path::Path;

use serde::Serialize;

use super::HookedTransformer;
use crate::format::PartFile;
use crate::pretrained::checkpoint::SAFETENSORS;
use crate::pretrained::saved::{Saved, SAVED, VERSION};
use crate::tensor::file::write_safetensors;
use crate::{Config, Error, Result};

impl HookedTransformer {
    /// Writes a folder that [`LoadOptions::open`](crate::LoadOptions::open) loads as the same model: the same weights and logits, bit for bit, if it is
    /// loaded as the same kind. Weights that were processed stay so, and are not processed again.
    ///
    /// `model.safetensors` has TransformerLens' names, so its `load_state_dict` reads it, too.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let folder = tempfile::tempdir().unwrap();
    /// model.save_pretrained(folder.path())?;
    /// let again = HookedTransformer::from_pretrained(folder.path())?;
    /// assert_eq!(again.forward("Mary and John")?, model.forward("Mary and John")?);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Tokenizer`] if the tokenizer cannot be written.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.check_no_saes()?;
        let folder = folder.as_ref();
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut tensors = self.state_dict()?;
        if self.is_tied() {
            tensors.retain(|(name, _)| name != "unembed.W_U");
        }
        let config = Config { tie_word_embeddings: self.is_tied(), ..self.config().clone() };
        write_safetensors(&folder.join(SAFETENSORS), tensors)?;
        self.write_tokenizer(folder)?;
        write_json(
            &folder.join(SAVED),
            &Saved { version: VERSION, config, default_prepend_bos: self.default_prepend_bos() },
        )
    }

    pub(crate) fn write_tokenizer(&self, folder: &Path) -> Result<()> {
        let Some(tokenizer) = self.tokenizer.as_ref() else { return Ok(()) };
        for (name, text) in [("tokenizer.json", tokenizer.json()?), ("tokenizer_config.json", tokenizer.config_json())]
        {
            let path = folder.join(name);
            PartFile::write(&path, text.as_bytes()).map_err(Error::io(path))?;
        }
        Ok(())
    }
}

/// Writes a JSON file, which appears when it is whole.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| Error::malformed(path, error))?;
    text.push(b'\n');
    PartFile::write(path, &text).map_err(Error::io(path))
}
