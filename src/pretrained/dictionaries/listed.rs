//! The lists of circuit-tracer's `config.yaml`: a transcoder a layer, each a file of a repository on the hub, or a local one.

use std::path::{Path, PathBuf};

use super::circuit_tracer::{of_tensors, Config};
use super::gemma_scope::{npz_encoder, safetensors_encoder};
use super::options::DictionaryOptions;
use super::tensors::{Orientation, Tensors};
use crate::format::{npz, safetensors};
use crate::sae::{Dictionary, FeatureActivation};
use crate::{Error, Result};

/// Where a transcoder of a list is.
#[derive(Debug, PartialEq, Eq)]
enum Listed<'a> {
    /// `hf://OWNER/NAME/FILE?revision=REVISION`
    Hub { repository: &'a str, revision: Option<&'a str>, file: &'a str },
    /// A path, from the folder of the list.
    Local(&'a str),
}

impl<'a> Listed<'a> {
    fn parse(entry: &'a str) -> Option<Self> {
        let Some(rest) = entry.strip_prefix("hf://") else {
            return (!entry.is_empty()).then_some(Listed::Local(entry));
        };
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let revision = query.split('&').find_map(|part| part.strip_prefix("revision=")).filter(|name| !name.is_empty());
        let (at, _) = path.match_indices('/').nth(1)?;
        let (repository, file) = (path.get(..at)?, path.get(at + 1..)?);
        let whole = !repository.starts_with('/') && !repository.ends_with('/') && !file.is_empty();
        whole.then_some(Listed::Hub { repository, revision, file })
    }
}

/// The transcoders of a list in a folder, in the order of their layers.
pub(super) fn open(
    folder: &Path,
    config: &Config,
    list: &[String],
    options: &DictionaryOptions,
) -> Result<Vec<Dictionary>> {
    let path = folder.join(super::circuit_tracer::CONFIG);
    if list.is_empty() {
        return Err(Error::malformed(&path, "`transcoders` is an empty list"));
    }
    let parsed = list.iter().map(|entry| {
        let what = || format!("`{entry}` in `transcoders` is neither a path nor `hf://OWNER/NAME/FILE`");
        Listed::parse(entry).ok_or_else(|| Error::malformed(&path, what()))
    });
    let parsed = parsed.collect::<Result<Vec<_>>>()?;
    let transcoder = |(layer, entry): (usize, &Listed)| {
        let file = match entry {
            Listed::Local(file) => folder.join(file),
            Listed::Hub { repository, revision, file } => fetch(options, repository, *revision, file)?,
        };
        read(&file, config, layer, options)
    };
    parsed.iter().enumerate().map(transcoder).collect()
}

#[cfg(feature = "hub")]
fn fetch(options: &DictionaryOptions, repository: &str, revision: Option<&str>, file: &str) -> Result<PathBuf> {
    options.fetch_file(repository, revision, file)
}

#[cfg(not(feature = "hub"))]
fn fetch(_: &DictionaryOptions, repository: &str, _: Option<&str>, file: &str) -> Result<PathBuf> {
    let source = crate::HubError::FeatureDisabled { given: format!("hf://{repository}/{file}") };
    Err(Error::Hub { name: repository.into(), source })
}

/// One transcoder, in circuit-tracer's own format, or in one of Gemma Scope's.
fn read(file: &Path, config: &Config, layer: usize, options: &DictionaryOptions) -> Result<Dictionary> {
    let is_npz = file.extension().is_some_and(|extension| extension == "npz");
    let tensors = Tensors::open(file, if is_npz { npz::entries } else { safetensors::entries }, options)?;
    let (encoder, decoder) = match is_npz {
        true => (npz_encoder(&tensors)?, "W_dec"),
        false if tensors.has("w_enc") => (safetensors_encoder(&tensors)?, "w_dec"),
        false => return of_tensors(tensors, config, layer),
    };
    let decoder = tensors.decoder(decoder, Orientation::ByFeature, None)?;
    tensors.finish()?;
    super::tensors::finished(config.of_layer(layer, FeatureActivation::JumpRelu)?, encoder, decoder)
}

#[cfg(test)]
mod tests {
    use super::Listed;

    #[test]
    fn entries_are_files_of_the_hub_or_paths() {
        let hub = |repository, revision, file| Some(Listed::Hub { repository, revision, file });
        for (entry, wanted) in [
            ("hf://google/gemma-scope/layer_0/params.npz", hub("google/gemma-scope", None, "layer_0/params.npz")),
            ("hf://a/b/c.safetensors?revision=v2", hub("a/b", Some("v2"), "c.safetensors")),
            ("hf://a/b/c.npz?x=1&revision=v2", hub("a/b", Some("v2"), "c.npz")),
            ("hf://a/b/c.npz?revision=", hub("a/b", None, "c.npz")),
            ("layer_3.safetensors", Some(Listed::Local("layer_3.safetensors"))),
            ("hf://a/b", None),
            ("hf://a/b/", None),
            ("hf:///b/c", None),
            ("hf://a//c", None),
            ("", None),
        ] {
            assert_eq!(Listed::parse(entry), wanted, "{entry}");
        }
    }
}
