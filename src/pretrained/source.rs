//! [`Source`]: from what a user calls a model to the folder where it lies.

use std::path::{Path, PathBuf};

#[cfg(feature = "hub")]
use super::hub::Hub;
use super::steps::Checkpoint;
use super::{aliases, LoadOptions};
use crate::{Error, Result};

/// Where a model comes from, as far as its name does not say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    revision: Option<String>,
    checkpoint: Option<Checkpoint>,
    gguf_file: Option<String>,
    #[cfg(feature = "hub")]
    hub: Hub,
}

/// A model's folder, or its GGUF file, and what it is called.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) folder: PathBuf,
    pub(crate) name: Option<String>,
}

impl LoadOptions {
    /// The revision on the hub: a branch, tag or commit; `main`, unless said otherwise.
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.source.revision = Some(revision.into());
        self
    }

    /// The model as it was after so many steps of its training, where the hub has that: TransformerLens'
    /// `checkpoint_value`. Pythia's models have steps 0, 1, 2, 4, … 512, 1000, 2000, … 143000; Stanford's GPT-2s 0 to 400000.
    pub fn checkpoint_step(mut self, step: usize) -> Self {
        self.source.checkpoint = Some(Checkpoint::Step(step));
        self
    }

    /// The n-th of the model's checkpoints, negative ones from the end: TransformerLens' `checkpoint_index`.
    pub fn checkpoint_index(mut self, index: i64) -> Self {
        self.source.checkpoint = Some(Checkpoint::Index(index));
        self
    }

    /// The GGUF file to load of a folder or a repository that has several: transformers' `gguf_file`. Of a model in parts, any of
    /// them.
    pub fn gguf_file(mut self, name: impl Into<String>) -> Self {
        self.source.gguf_file = Some(name.into());
        self
    }

    /// Which hub, with which cache and token, where it should be others than the environment says.
    #[cfg(feature = "hub")]
    pub fn hub(mut self, hub: Hub) -> Self {
        self.source.hub = hub;
        self
    }
}

impl Source {
    /// The folder of a model: itself, where it is a folder, else the hub's cache.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for what is neither; [`Error::Setting`] for a revision of a folder; [`Error::NoCheckpoint`]; [`Error::Hub`].
    pub(crate) fn find(&self, given: &Path) -> Result<Found> {
        if given.is_dir() {
            if self.revision.is_some() || self.checkpoint.is_some() {
                let name = if self.revision.is_some() { "revision" } else { "checkpoint_step" };
                let why = "is a folder, which has neither revisions nor checkpoints by step: leave them out";
                return Err(Error::setting(name, format!("{} {why}", given.display())));
            }
            let name = given.file_name().map(|name| name.to_string_lossy().into_owned());
            return match self.gguf_file.as_ref().map(|file| given.join(file)) {
                None => Ok(Found { folder: given.into(), name }),
                Some(file) if super::gguf::is_file(&file) => Ok(Found { folder: file, name }),
                Some(file) => {
                    let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "there is no such GGUF file");
                    Err(Error::io(&file)(missing))
                }
            };
        }
        let name = given.to_str().filter(|name| is_hub_name(name));
        let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, "there is no such folder");
        let name = name.ok_or_else(|| Error::io(given)(missing()))?;
        let (given, name) = (name, aliases::resolve(name));
        let revision = match (self.checkpoint, &self.revision) {
            (Some(_), Some(_)) => {
                return Err(Error::setting("revision", "choose a revision or a checkpoint's step, not both"))
            }
            (Some(checkpoint), None) => checkpoint.revision(&name)?,
            (None, Some(revision)) => revision.clone(),
            (None, None) => "main".into(),
        };
        let folder = self.fetch(given, &name, &revision)?;
        let tail = name.rsplit('/').next().map(String::from);
        Ok(Found { folder, name: tail })
    }

    #[cfg(feature = "hub")]
    fn fetch(&self, _: &str, name: &str, revision: &str) -> Result<PathBuf> {
        self.hub.fetch(name, revision, self.gguf_file.as_deref())
    }

    #[cfg(not(feature = "hub"))]
    fn fetch(&self, given: &str, name: &str, _: &str) -> Result<PathBuf> {
        let source = crate::HubError::FeatureDisabled { given: given.into() };
        Err(Error::Hub { name: name.into(), source })
    }
}

/// Whether this could be a model on the hub: `name` or `organisation/name`, as the hub allows them.
fn is_hub_name(name: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !part.is_empty() && part.len() <= 96 && part.chars().all(allowed) && !part.starts_with(['-', '.'])
    };
    name.split('/').count() <= 2 && name.split('/').all(part) && !name.contains("..") && !name.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub() {
        for name in ["gpt2", "roneneldan/TinyStories-1M", "microsoft/phi-1_5", "Qwen/Qwen2.5-0.5B"] {
            assert!(is_hub_name(name), "{name}");
        }
        for name in ["", "/", "a/b/c", "./gpt2", "../gpt2", "/tmp/x", "a b", "org/..", "a--b", "models/", "~/x"] {
            assert!(!is_hub_name(name), "{name}");
        }
    }

    #[test]
    fn what_is_neither_folder_nor_name_says_so() {
        let error = |name: &str| Source::default().find(Path::new(name)).unwrap_err().to_string();
        assert_eq!(error("./no/such/folder"), "./no/such/folder: there is no such folder");
        #[cfg(not(feature = "hub"))]
        assert_eq!(
            error("gpt2-small"),
            "`gpt2` on the hub: there is no folder `gpt2-small`, and models of the hub need the feature `hub`: \
             `cargo add tch-lens --features hub`"
        );
        let folder = tempfile::tempdir().unwrap();
        let source = Source { revision: Some("main".into()), ..Source::default() };
        assert!(source.find(folder.path()).unwrap_err().to_string().contains("neither revisions"));
    }
}
