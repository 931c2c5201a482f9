//! [`Hub`]: models from the Hugging Face hub, through the cache that its other tools use.
//!
//! The `hf-hub` crate downloads and keeps the cache. What it leaves to its callers is done here: which files a model needs,
//! all of one commit; a second try after a dropped connection; size and SHA-256 of what arrived; and an error of one sentence.

mod download;

use std::fmt;
use std::path::{Path, PathBuf};

use self::download::Download;
use crate::{Error, HubError, Result};

/// Which hub, which cache and which token; [`LoadOptions::hub`](crate::LoadOptions::hub) takes it.
///
/// `Hub::default()` is what the environment says, as Hugging Face's own tools read it: the hub at `HF_ENDPOINT`; the
/// cache at `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`; the token in `HF_TOKEN`, else in the file at
/// `HF_TOKEN_PATH`, else in the one that `hf auth login` writes; no network at all with `HF_HUB_OFFLINE`.
///
/// A model that is in the cache is loaded from there without a question to the hub; to get what has changed since, name
/// the new commit as the revision.
#[derive(Clone)]
pub struct Hub {
    endpoint: String,
    cache: Option<PathBuf>,
    token: Option<String>,
    offline: bool,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "…"); // a secret
        let Hub { endpoint, cache, offline, .. } = self;
        let mut shown = f.debug_struct("Hub");
        shown
            .field("endpoint", endpoint)
            .field("cache", cache)
            .field("token", &token)
            .field("offline", offline)
            .finish()
    }
}

impl Default for Hub {
    fn default() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let path = |name: &str| set(name).map(PathBuf::from);
        let own = || std::env::home_dir().map(|home| home.join(".cache"));
        let home =
            || path("HF_HOME").or_else(|| path("XDG_CACHE_HOME").or_else(own).map(|cache| cache.join("huggingface")));
        let token_file = path("HF_TOKEN_PATH").or_else(|| home().map(|home| home.join("token")));
        let read = |file: PathBuf| std::fs::read_to_string(file).ok();
        let token = set("HF_TOKEN").or_else(|| token_file.and_then(read)).map(|token| token.trim().to_string());
        let yes = |value: String| matches!(value.to_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        Hub {
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into()),
            cache: path("HF_HUB_CACHE").or_else(|| home().map(|home| home.join("hub"))),
            token: token.filter(|token| !token.is_empty()),
            offline: set("HF_HUB_OFFLINE").is_some_and(yes),
        }
    }
}

impl Hub {
    /// What the environment says.
    pub fn new() -> Self {
        Hub::default()
    }

    /// Another hub: a mirror, or one's own.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = url.into();
        self
    }

    /// Another folder for the cache.
    pub fn cache(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache = Some(folder.into());
        self
    }

    /// Another token, or none.
    pub fn token(mut self, token: Option<&str>) -> Self {
        self.token = token.map(String::from);
        self
    }

    /// Whether only what is in the cache is loaded.
    pub fn offline(mut self, yes: bool) -> Self {
        self.offline = yes;
        self
    }

    /// The folder within the cache that has the files of a folder of a repository, downloaded where they are missing. `content` is what is in
    /// it, for an error.
    ///
    /// A repository is a model, or `spaces/OWNER/NAME` or `datasets/OWNER/NAME`.
    pub(crate) fn fetch_folder(&self, name: &str, revision: &str, within: &str, content: &str) -> Result<PathBuf> {
        let is_there = |path: &Path| path.is_dir();
        self.fetch_part(name, revision, within, (is_there, false), |download| download.folder(within, content))
    }

    /// A file of a repository, in the cache, downloaded where it is missing.
    pub(crate) fn fetch_file(&self, name: &str, revision: &str, file: &str) -> Result<PathBuf> {
        self.fetch_part(name, revision, file, (|path: &Path| path.is_file(), true), |download| download.one_file(file))
    }

    /// A part of a repository: out of the cache where it is whole there or cannot be asked for, downloaded otherwise.
    fn fetch_part(
        &self,
        name: &str,
        revision: &str,
        within: &str,
        (is_there, is_whole): (impl Fn(&Path) -> bool, bool),
        download: impl Fn(&Download<'_>) -> Result<PathBuf>,
    ) -> Result<PathBuf> {
        let error = |source| Error::Hub { name: name.into(), source };
        let plain =
            |path: &str| Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
        if revision.is_empty() || !plain(revision) {
            return Err(error(HubError::InvalidRevision { revision: revision.into() }));
        }
        if !plain(within) {
            return Err(error(HubError::NoFile { file: within.into() }));
        }
        let cache = self.cache.as_deref().ok_or_else(|| error(HubError::NoCacheFolder))?;
        let cache = std::path::absolute(cache).map_err(Error::io(cache))?;
        let part = Download { hub: self, cache: &cache, name, revision, gguf: None };
        let cached = || part.cached_snapshot().map(|snapshot| snapshot.join(within)).filter(|path| is_there(path));
        match cached() {
            Some(path) if is_whole || self.offline => return Ok(path),
            None if self.offline => return Err(error(HubError::Offline { cache: cache.clone() })),
            _ => {}
        }
        match (download(&part), cached()) {
            // Nothing that is needed is missing, so the hub is not needed, either.
            (Err(Error::Hub { source: why @ HubError::Unreachable { .. }, .. }), Some(path)) => {
                tracing::warn!("`{within}` of `{name}` is taken from the cache: {why}");
                Ok(path)
            }
            (downloaded, _) => downloaded,
        }
    }

    /// The folder within the cache that has the files of a model, downloaded where they are missing.
    ///
    /// Of a repository of GGUF files, it is the one of this name, or the only one.
    pub(crate) fn fetch(&self, name: &str, revision: &str, gguf: Option<&str>) -> Result<PathBuf> {
        let error = |source| Error::Hub { name: name.into(), source };
        let plain = |part| matches!(part, std::path::Component::Normal(_));
        if revision.is_empty() || !Path::new(revision).components().all(plain) {
            return Err(error(HubError::InvalidRevision { revision: revision.into() }));
        }
        let cache = self.cache.as_deref().ok_or_else(|| error(HubError::NoCacheFolder))?;
        let cache = std::path::absolute(cache).map_err(Error::io(cache))?;
        let download = Download { hub: self, cache: &cache, name, revision, gguf };
        let cached = download.cached()?;
        if let Some((folder, true)) = &cached {
            return Ok(folder.clone());
        }
        if self.offline {
            let folder = cached.map(|(folder, _)| folder);
            return folder.ok_or_else(|| error(HubError::Offline { cache: cache.clone() }));
        }
        match (download.run(), cached) {
            // Nothing that is needed is missing, so the hub is not needed, either.
            (Err(Error::Hub { source: why @ HubError::Unreachable { .. }, .. }), Some((folder, _))) => {
                tracing::warn!("`{name}` is loaded from the cache: {why}");
                Ok(folder)
            }
            (downloaded, _) => downloaded,
        }
    }
}
