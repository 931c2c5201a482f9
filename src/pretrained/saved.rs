//! Folders that [`HookedTransformer::save_pretrained`](crate::HookedTransformer::save_pretrained) wrote.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use super::family::transformer_lens;
use super::processing::ProcessingOptions;
use super::{read_with_tokenizer, LoadOptions, Pretrained};
use crate::{Config, Error, Result};

/// The file that marks a folder in our own form.
pub(crate) const SAVED: &str = "tch_lens.json";

/// The contents of [`SAVED`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    /// Of this file.
    pub(crate) version: u32,
    pub(crate) config: Config,
    pub(crate) default_prepend_bos: bool,
}

pub(crate) const VERSION: u32 = 3;

impl LoadOptions {
    /// A folder that [`HookedTransformer::save_pretrained`](crate::HookedTransformer::save_pretrained) wrote: loaded as it is, since it was processed as wanted before.
    pub(super) fn read_saved(&self, folder: &Path) -> Result<Pretrained> {
        let path = folder.join(SAVED);
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let saved: Saved = serde_json::from_slice(&text).map_err(|error| Error::malformed(&path, error))?;
        if saved.version != VERSION {
            return Err(Error::malformed(
                path,
                format!("it is of version {}, and only {VERSION} is known", saved.version),
            ));
        }
        saved.config.validate()?;
        let checkpoint = Checkpoint::open(folder, self.access)?;
        let names = transformer_lens::names(&saved.config, |name| checkpoint.has(name));
        let load = LoadOptions { processing: ProcessingOptions::none(), ..self.clone() };
        let read =
            read_with_tokenizer(folder, |tokenizer| load.assemble(saved.config, &checkpoint, names, &[], tokenizer))?;
        Ok(Pretrained { default_prepend_bos: saved.default_prepend_bos, ..read })
    }
}
