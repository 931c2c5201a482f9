//! GGUF files as models: their metadata as a family's `config.json` and as a tokenizer, their tensors under the family's names.

mod architecture;
mod config;
mod names;
pub(super) mod split;
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
    let files: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    let models = split::models(files.iter().map(String::as_str));
    match &models[..] {
        [] => Ok(None),
        [model] => Ok(Some(folder.join(model))),
        _ => {
            let (count, listed) = (models.len(), split::listed(&models));
            Err(Error::malformed(folder, format!("{count} GGUF files are here: choose one with `gguf_file`: {listed}")))
        }
    }
}

impl LoadOptions {
    /// The model of a GGUF file, and of the other parts beside it where it is one of several, with the tokenizer of its folder's `tokenizer.json`, or else its own.
    pub(super) fn read_gguf(&self, path: &Path) -> Result<Pretrained> {
        let parts = split::parts(path)?;
        let open = |path: PathBuf| -> Result<(PathBuf, FileBytes)> {
            let bytes = FileBytes::open(&path, self.access)?;
            Ok((path, bytes))
        };
        let parts = parts.into_iter().map(open).collect::<Result<Vec<_>>>()?;
        let [(path, bytes), ..] = &parts[..] else { return Err(Error::Internal("a model has a file at least")) };
        let malformed = |what| Error::malformed(path, what);
        let (fields, tokenizer, architecture) = {
            let gguf = Gguf::read(bytes.as_slice()).map_err(malformed)?;
            let architecture = architecture::find(&gguf)?;
            let fields = config::fields(architecture, &gguf, bytes.as_slice(), parts.len())?;
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
                let mut named = Vec::new();
                for (path, bytes) in &parts {
                    let gguf = Gguf::read(bytes.as_slice()).map_err(|what| Error::malformed(path, what))?;
                    named.push(names::named(architecture, &gguf, config, table));
                }
                let mut checkpoint = Checkpoint::of_files(parts);
                for (file, named) in named.into_iter().enumerate() {
                    named.into_iter().try_for_each(|tensor| tensor.put(&mut checkpoint, file))?;
                }
                Ok(checkpoint)
            },
        )
    }
}
