//! [`Hub`]: models from the Hugging Face hub, through the cache that its other tools use.
//!
//! The `hf-hub` crate downloads and keeps the cache. What it leaves to its callers is done here: which files a model needs,
//! all of one commit; a second try after a dropped connection; size and SHA-256 of what arrived; and an error of one sentence.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

use super::checkpoint::{shards, SAFETENSORS, TORCH};
use super::saved::OWN;
use crate::{Error, Result};

/// Which hub, which cache and which token; [`Load::hub`](crate::Load::hub) takes it.
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

/// The files that describe a model; the first that a folder has of the weights' follow.
const DESCRIPTION: &[&str] =
    &["config.json", "cfg.json", OWN, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"];

/// How often a file is tried for before its loss is an error.
const TRIES: u32 = 5;

/// What the hub says of a commit.
#[derive(Debug, serde::Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

/// A file of it.
#[derive(Clone, Debug, serde::Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

/// A large one.
#[derive(Clone, Debug, serde::Deserialize)]
struct Lfs {
    sha256: Option<String>,
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

    /// The folder within the cache that has the files of a model, downloaded where they are missing.
    pub(crate) fn fetch(&self, name: &str, revision: &str) -> Result<PathBuf> {
        let plain = |part| matches!(part, std::path::Component::Normal(_));
        if revision.is_empty() || !Path::new(revision).components().all(plain) {
            return Err(Error::Hub { name: name.into(), what: format!("`{revision}` is no revision") });
        }
        let cache = self.cache.as_deref().ok_or_else(|| Error::invalid("no home folder: set HF_HOME"))?;
        let cache = std::path::absolute(cache).map_err(Error::io(cache))?;
        let download = Download { hub: self, cache: &cache, name, revision };
        let cached = download.cached()?;
        if let Some((folder, true)) = &cached {
            return Ok(folder.clone());
        }
        if self.offline {
            let missing =
                || download.error(format!("it is not in the cache at {}, and this is offline", cache.display()));
            return cached.map(|(folder, _)| folder).ok_or_else(missing);
        }
        match (download.run(), cached) {
            // Nothing that is needed is missing, so that the hub is not, either.
            (Err(Failed::Unreachable(why)), Some((folder, _))) => {
                tracing::warn!("`{name}` is loaded from the cache: {why}");
                Ok(folder)
            }
            (Err(Failed::Unreachable(why)), None) => Err(download.error(why)),
            (Err(Failed::Other(error)), _) => Err(error),
            (Ok(folder), _) => Ok(folder),
        }
    }
}

/// Why there is no model.
enum Failed {
    /// There is no hub; what is in the cache may do.
    Unreachable(String),
    Other(Error),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::Other(error)
    }
}

struct Download<'a> {
    hub: &'a Hub,
    cache: &'a Path,
    name: &'a str,
    revision: &'a str,
}

impl Download<'_> {
    fn error(&self, what: impl Into<String>) -> Error {
        Error::Hub { name: self.name.into(), what: what.into() }
    }

    fn repo(&self, revision: &str) -> Repo {
        Repo::with_revision(self.name.into(), RepoType::Model, revision.into())
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        Cache::new(self.cache.into()).repo(self.repo(commit)).pointer_path(commit)
    }

    /// The folder of the revision in the cache, if it has configuration and weights, and whether it is known to have
    /// all else that the hub has.
    fn cached(&self) -> Result<Option<(PathBuf, bool)>> {
        let refs = self.cache.join(self.repo(self.revision).folder_name()).join("refs").join(self.revision);
        let commit = match std::fs::read_to_string(refs) {
            Ok(commit) => commit.trim().to_string(),
            Err(_) if is_commit(self.revision) => self.revision.into(),
            Err(_) => return Ok(None),
        };
        if !is_commit(&commit) {
            return Ok(None);
        }
        let folder = self.snapshot(&commit);
        let has = |file: &str| folder.join(file).is_file();
        if !["config.json", "cfg.json", OWN].into_iter().any(has) {
            return Ok(None);
        }
        let index = |file: &str| format!("{file}.index.json");
        let weights = match [SAFETENSORS, TORCH].into_iter().find(|file| has(file) || has(&index(file))) {
            None => return Ok(None),
            Some(single) if has(single) => true,
            Some(single) => shards(&folder.join(index(single)))?.iter().all(|shard| folder.join(shard).is_file()),
        };
        let known = |file: &&str| has(file) || self.absent(&commit, file).is_file();
        Ok(weights.then(|| (folder.clone(), DESCRIPTION.iter().all(known))))
    }

    /// The marker that Hugging Face's tools leave for a file that a commit does not have.
    fn absent(&self, commit: &str, file: &str) -> PathBuf {
        self.cache.join(self.repo(commit).folder_name()).join(".no_exist").join(commit).join(file)
    }

    fn run(&self) -> Result<PathBuf, Failed> {
        let builder = ApiBuilder::from_cache(Cache::new(self.cache.into()))
            .with_endpoint(self.hub.endpoint.trim_end_matches('/').into())
            .with_token(self.hub.token.clone())
            .with_progress(std::io::stderr().is_terminal())
            .with_user_agent("tch-lens", env!("CARGO_PKG_VERSION"));
        let api = builder.build().map_err(|error| self.error(error.to_string()))?;
        let info = self.info(&api)?;
        if !is_commit(&info.sha) {
            return Err(self.error("the hub's answer names no commit").into());
        }
        let siblings: BTreeMap<&str, &Sibling> =
            info.siblings.iter().map(|sibling| (sibling.rfilename.as_str(), sibling)).collect();
        let folder = self.snapshot(&info.sha);
        let get = |file: &str| -> Result<(), Failed> {
            let sibling = siblings.get(file).ok_or_else(|| self.error(format!("it has no file `{file}`")))?;
            self.file(&api, &info.sha, sibling, &folder)
        };
        for file in DESCRIPTION {
            if siblings.contains_key(file) {
                get(file)?;
            } else {
                let marker = self.absent(&info.sha, file);
                if let Some(parent) = marker.parent() {
                    std::fs::create_dir_all(parent).map_err(Error::io(parent))?;
                }
                std::fs::write(&marker, []).map_err(Error::io(&marker))?;
            }
        }
        let weights = [SAFETENSORS, TORCH].into_iter().find_map(|single| {
            let index = format!("{single}.index.json");
            let found = siblings.contains_key(single) || siblings.contains_key(index.as_str());
            found.then_some((single, index))
        });
        match weights {
            Some((single, _)) if siblings.contains_key(single) => get(single)?,
            Some((_, index)) => {
                get(&index)?;
                for shard in shards(&folder.join(&index))? {
                    get(&shard.to_string_lossy())?;
                }
            }
            None => return Err(self.error(format!("it has no weights: neither {SAFETENSORS} nor {TORCH}")).into()),
        }
        let refs = Cache::new(self.cache.into()).repo(self.repo(self.revision));
        refs.create_ref(&info.sha).map_err(Error::io(self.cache))?;
        Ok(folder)
    }

    /// What the hub says of the revision.
    fn info(&self, api: &Api) -> Result<Info, Failed> {
        let request = || {
            let request = api.repo(self.repo(self.revision)).info_request().query("blobs", "true").config();
            let request = request.http_status_as_error(false).timeout_global(Some(Duration::from_secs(60)));
            request.build().call()
        };
        let mut tried = 1;
        let mut response = loop {
            match request() {
                Ok(response) if response.status().is_server_error() && tried < TRIES => {}
                Ok(response) => break response,
                Err(error) if transient(&error) && tried < TRIES => tracing::debug!("{}: {error}", self.name),
                Err(error) => return Err(Failed::Unreachable(self.unreachable(&error.to_string()))),
            }
            wait(tried);
            tried += 1;
        };
        let status = response.status();
        if status.is_success() {
            let body = response.body_mut().with_config().limit(64 << 20);
            return body.read_json().map_err(|error| self.error(format!("the hub's answer is broken: {error}")).into());
        }
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
        let what = match (status.as_u16(), code) {
            (404, "RevisionNotFound") => format!("it has no revision `{}`", self.revision),
            (403, _) | (401, "GatedRepo") => format!(
                "access to it is restricted; ask for it at {}/{}, and give the token of the account that has it (HF_TOKEN)",
                self.hub.endpoint, self.name
            ),
            (401 | 404, _) if self.hub.token.is_none() => "there is no such model, or it is private and needs a token: \
                set HF_TOKEN, or log in with `hf auth login`"
                .into(),
            (401 | 404, _) => "there is no such model, or it is private and the token does not open it".into(),
            _ if status.is_server_error() => return Err(Failed::Unreachable(self.unreachable(&status.to_string()))),
            _ => format!("the hub answers {status}"),
        };
        Err(self.error(what).into())
    }

    fn unreachable(&self, why: &str) -> String {
        format!("the hub at {} cannot be reached: {why}", self.hub.endpoint)
    }

    /// One file of a commit, into its snapshot: whole, or not at all.
    fn file(&self, api: &Api, commit: &str, sibling: &Sibling, folder: &Path) -> Result<(), Failed> {
        let file = &sibling.rfilename;
        let path = folder.join(file);
        if path.is_file() {
            return Ok(());
        }
        tracing::info!("downloading {}/{file}, {} bytes", self.name, sibling.size.unwrap_or_default());
        let repo = api.repo(self.repo(commit));
        for tried in 1.. {
            self.drop_overlong(sibling);
            let what = match repo.download(file) {
                Ok(_) => match self.check(&path, sibling)? {
                    Checked::Whole => return Ok(()),
                    Checked::Wrong(what) => return Err(self.error(what).into()),
                    Checked::Short(what) => what,
                },
                Err(error) => {
                    let what = format!("`{file}` did not arrive: {error}");
                    if !transient_download(&error) {
                        return Err(self.error(what).into());
                    }
                    what
                }
            };
            if tried >= TRIES {
                return Err(self.error(format!("{what}; the next attempt goes on from there")).into());
            }
            tracing::warn!("{what}; trying again");
            wait(tried);
        }
        Ok(())
    }

    /// A part that is as long as the file, or longer, cannot be gone on with: the hub would answer with an error.
    fn drop_overlong(&self, sibling: &Sibling) {
        let Some(sha256) = sibling.lfs.as_ref().and_then(|lfs| lfs.sha256.as_deref()) else { return };
        let blob = Cache::new(self.cache.into()).repo(self.repo(self.revision)).blob_path(sha256);
        let part = blob.with_extension("part");
        let len = std::fs::metadata(&part).map_or(0, |part| part.len());
        if sibling.size.is_some_and(|size| len >= size) {
            let _ = std::fs::remove_file(part); // what cannot be removed fails in the download
        }
    }

    /// Compares what arrived with what the hub says of it, and leaves nothing wrong in the cache.
    fn check(&self, path: &Path, sibling: &Sibling) -> Result<Checked> {
        let file = &sibling.rfilename;
        let blob = std::fs::canonicalize(path).map_err(Error::io(path))?;
        let len = std::fs::metadata(&blob).map_err(Error::io(&blob))?.len();
        let etag = blob.file_name().and_then(|name| name.to_str()).filter(|name| is_sha256(name));
        let sha256 = sibling.lfs.as_ref().and_then(|lfs| lfs.sha256.as_deref()).or(etag);
        if let Some(size) = sibling.size {
            if len < size {
                // Where the next attempt looks for it.
                let _ = std::fs::remove_file(path);
                std::fs::rename(&blob, blob.with_extension("part")).map_err(Error::io(&blob))?;
                return Ok(Checked::Short(format!("of `{file}` only {len} of {size} bytes arrived")));
            }
            if len > size {
                remove(path, &blob)?;
                return Ok(Checked::Wrong(format!("`{file}` arrived with {len} bytes instead of {size}: refused")));
            }
        }
        if let Some(sha256) = sha256 {
            let found = hash(&blob)?;
            if !found.eq_ignore_ascii_case(sha256) {
                remove(path, &blob)?;
                return Ok(Checked::Wrong(format!(
                    "`{file}` arrived with SHA-256 {found} instead of {sha256}: refused"
                )));
            }
        }
        Ok(Checked::Whole)
    }
}

enum Checked {
    Whole,
    Short(String),
    Wrong(String),
}

fn remove(path: &Path, blob: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(Error::io(path))?;
    if blob != path && blob.exists() {
        std::fs::remove_file(blob).map_err(Error::io(blob))?;
    }
    Ok(())
}

fn hash(path: &Path) -> Result<String> {
    let mut file = std::fs::File::open(path).map_err(Error::io(path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(Error::io(path))? {
            0 => return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn is_commit(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_sha256(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A quarter of a second, a half, one, two.
fn wait(tried: u32) {
    std::thread::sleep(Duration::from_millis(125) * 2u32.pow(tried));
}

/// Whether another attempt may go better.
fn transient(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::StatusCode(status) => *status >= 500 || *status == 429,
        ureq::Error::Io(_) | ureq::Error::Timeout(_) | ureq::Error::ConnectionFailed => true,
        ureq::Error::Protocol(_) => true,
        _ => false,
    }
}

fn transient_download(error: &ApiError) -> bool {
    match error {
        ApiError::RequestError(error) => transient(error),
        // A connection that ends early arrives as the reader's error.
        ApiError::IoError(error) => !matches!(
            error.kind(),
            std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::StorageFull | std::io::ErrorKind::NotFound
        ),
        _ => false,
    }
}
