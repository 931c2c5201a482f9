//! Folders that [`HookedTransformer::save_pretrained`](crate::HookedTransformer::save_pretrained) wrote.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::checkpoint::Checkpoint;
use super::family::transformer_lens;
use super::processing::Wanted;
use super::{while_reading, Load, Pretrained};
use crate::{Config, Error, Result};

/// The file that makes a folder one of ours.
pub(crate) const OWN: &str = "tch_lens.json";

/// The contents of [`OWN`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Own {
    /// Of this file: 1.
    pub(crate) version: u32,
    pub(crate) config: Config,
    pub(crate) default_prepend_bos: bool,
    /// Matrices that the model keeps the other way round in memory than the file: a product takes both, but rounds differently.
    pub(crate) turned: Vec<String>,
}

pub(crate) const VERSION: u32 = 1;

impl Load {
    /// A folder that [`HookedTransformer::save_pretrained`](crate::HookedTransformer::save_pretrained) wrote: loaded as it is, since it was processed as wanted before.
    pub(super) fn read_saved(&self, folder: &Path) -> Result<Pretrained> {
        let path = folder.join(OWN);
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let own: Own = serde_json::from_slice(&text).map_err(|error| Error::malformed(&path, error))?;
        if own.version != VERSION {
            return Err(Error::malformed(
                path,
                format!("it is of version {}, and only {VERSION} is known", own.version),
            ));
        }
        own.config.validate()?;
        let checkpoint = Checkpoint::open(folder, self.access)?;
        let mut names = transformer_lens::names(&own.config, |name| checkpoint.has(name));
        for entry in &mut names {
            let first = entry.name.replace("{l}", "0").replace("{e}", "0");
            if own.turned.contains(&first) {
                entry.view = entry.view.turned();
            }
        }
        let load = Load { wanted: Wanted::none(), ..self.clone() };
        let read = while_reading(folder, |tokenizer| load.assemble(own.config, &checkpoint, names, &[], tokenizer))?;
        Ok(Pretrained { default_prepend_bos: own.default_prepend_bos, ..read })
    }
}
