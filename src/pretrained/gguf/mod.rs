//! GGUF files as models: their metadata as a family's `config.json` and as a tokenizer, their tensors under the family's names.

mod architecture;
mod config;
mod names;
mod tokenizer;

use std::path::{Path, PathBuf};

use super::checkpoint::{Checkpoint, SAFETENSORS, TORCH};
use super::Pretrained;
use crate::format::gguf::Gguf;
use crate::text::tokenizer::Tokenizer;
use crate::unchecked::mapped::FileBytes;
use crate::{Error, LoadOptions, Result};

/// Whether this is a file, and GGUF by its name.
pub(super) fn is_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) && path.is_file()
}

/// The GGUF file of a folder without weights of another kind.
///
/// # Errors
///
/// [`Error::Malformed`] where there are several.
pub(super) fn find(folder: &Path) -> Result<Option<PathBuf>> {
    let others = [SAFETENSORS, TORCH].iter().flat_map(|name| [name.to_string(), format!("{name}.index.json")]);
    if others.into_iter().any(|name| folder.join(name).is_file()) {
        return Ok(None);
    }
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| is_file(path)).collect();
    files.sort();
    match files.len() {
        0 | 1 => Ok(files.pop()),
        count => {
            let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let first = files.first().map(name).unwrap_or_default();
            Err(Error::malformed(folder, format!("{count} GGUF files are here: open one of them, such as `{first}`")))
        }
    }
}

impl LoadOptions {
    /// The model of a GGUF file, with the tokenizer of its folder's `tokenizer.json`, or else its own.
    pub(super) fn read_gguf(&self, path: &Path) -> Result<Pretrained> {
        let malformed = |what| Error::malformed(path, what);
        let bytes = FileBytes::open(path, self.access)?;
        let (fields, tokenizer, architecture) = {
            let gguf = Gguf::read(bytes.as_slice()).map_err(malformed)?;
            let architecture = architecture::find(&gguf)?;
            let fields = config::fields(architecture, &gguf, bytes.as_slice())?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let tokenizer = match Tokenizer::from_folder(folder)? {
                Some(tokenizer) => Some(tokenizer),
                None => tokenizer::read(&gguf)?,
            };
            (fields, tokenizer, architecture)
        };
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
        self.hugging_face(
            fields,
            name,
            || Ok(tokenizer),
            |config, table| {
                let named = {
                    let gguf = Gguf::read(bytes.as_slice()).map_err(malformed)?;
                    names::named(architecture, &gguf, config, table)
                };
                let mut checkpoint = Checkpoint::of_file(path.into(), bytes);
                named.into_iter().try_for_each(|tensor| tensor.put(&mut checkpoint))?;
                Ok(checkpoint)
            },
        )
    }
}
