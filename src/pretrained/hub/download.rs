//! [`Download`]: the files of one commit of a model, from the hub into the cache.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

use super::Hub;
use crate::pretrained::checkpoint::{shards, SAFETENSORS, TORCH};
use crate::pretrained::gguf;
use crate::pretrained::gguf::split::{listed, models, names_of_parts};
use crate::pretrained::saved::SAVED;
use crate::{Error, HubError, Result};

/// The files that describe a model; the first that a folder has of the weights' follow.
const DESCRIPTION: &[&str] = &[
    "config.json",
    "cfg.json",
    SAVED,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

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

/// A model of one revision, and where it goes.
pub(super) struct Download<'a> {
    pub(super) hub: &'a Hub,
    pub(super) cache: &'a Path,
    pub(super) name: &'a str,
    pub(super) revision: &'a str,
    /// The GGUF file that was asked for.
    pub(super) gguf: Option<&'a str>,
}

impl Download<'_> {
    fn error(&self, source: HubError) -> Error {
        Error::Hub { name: self.name.into(), source }
    }

    /// The repository: a model, unless its name begins with `spaces/` or `datasets/`, as in the hub's own addresses.
    fn repo(&self, revision: &str) -> Repo {
        let prefixes = [("spaces/", RepoType::Space), ("datasets/", RepoType::Dataset)];
        let other = prefixes.into_iter().find_map(|(prefix, kind)| Some((self.name.strip_prefix(prefix)?, kind)));
        let (name, kind) = other.unwrap_or((self.name, RepoType::Model));
        Repo::with_revision(name.into(), kind, revision.into())
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        Cache::new(self.cache.into()).repo(self.repo(commit)).pointer_path(commit)
    }

    /// The folder of the revision in the cache, if it has configuration and weights, and whether it is known to have
    /// all else that the hub has.
    pub(super) fn cached(&self) -> Result<Option<(PathBuf, bool)>> {
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
        if let Some(file) = self.gguf {
            let is_whole = names_of_parts(file).iter().all(|part| has(part));
            return Ok(is_whole.then(|| (folder.join(file), true)));
        }
        if folder.is_dir()
            && !has("config.json")
            && let Ok(Some(file)) = gguf::find(&folder)
        {
            // The hub may have others.
            return Ok(Some((file, false)));
        }
        if !["config.json", "cfg.json", SAVED].into_iter().any(has) {
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

    /// Downloads what the cache lacks of a folder within the repository, and gives that folder. `content` is what is in it, for an error.
    pub(super) fn folder(&self, within: &str, content: &str) -> Result<PathBuf> {
        let is_wanted = |name: &str| {
            let rest = match within {
                "" => Some(name),
                _ => name.strip_prefix(within).and_then(|rest| rest.strip_prefix('/')),
            };
            rest.is_some_and(is_of_part)
        };
        Ok(self.some(is_wanted, || format!("{within}/ (with {content} in it)"))?.join(within))
    }

    /// Downloads one file of the repository where the cache lacks it, and gives it.
    pub(super) fn one_file(&self, file: &str) -> Result<PathBuf> {
        Ok(self.some(|name| name == file, || file.into())?.join(file))
    }

    /// Downloads what the cache lacks of the files with some names, and gives the snapshot. `what` names them, if there are none.
    fn some(&self, is_wanted: impl Fn(&str) -> bool, what: impl Fn() -> String) -> Result<PathBuf> {
        let (api, info) = self.connect()?;
        let snapshot = self.snapshot(&info.sha);
        let mut found = false;
        for sibling in info.siblings.iter().filter(|sibling| is_wanted(&sibling.rfilename)) {
            found = true;
            self.file(&api, &info.sha, sibling, &snapshot)?;
        }
        if !found {
            return Err(self.error(HubError::NoFile { file: what() }));
        }
        let refs = Cache::new(self.cache.into()).repo(self.repo(self.revision));
        refs.create_ref(&info.sha).map_err(Error::io(self.cache))?;
        Ok(snapshot)
    }

    /// The snapshot of the revision in the cache, if there is one.
    pub(super) fn cached_snapshot(&self) -> Option<PathBuf> {
        let refs = self.cache.join(self.repo(self.revision).folder_name()).join("refs").join(self.revision);
        let commit = std::fs::read_to_string(refs).map_or(self.revision.into(), |commit| commit.trim().to_string());
        is_commit(&commit).then(|| self.snapshot(&commit))
    }

    /// Downloads what the cache lacks, and gives the folder.
    pub(super) fn run(&self) -> Result<PathBuf> {
        let (api, info) = self.connect()?;
        let siblings: BTreeMap<&str, &Sibling> =
            info.siblings.iter().map(|sibling| (sibling.rfilename.as_str(), sibling)).collect();
        let folder = self.snapshot(&info.sha);
        let get = |file: &str| -> Result<()> {
            let sibling = siblings.get(file).ok_or_else(|| self.error(HubError::NoFile { file: file.into() }))?;
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
        let mut found = folder.clone();
        match weights {
            _ if self.gguf.is_some() || weights.is_none() => {
                let file = self.choose_gguf(siblings.keys().copied())?;
                for part in names_of_parts(&file) {
                    get(&part)?;
                }
                found = folder.join(file);
            }
            Some((single, _)) if siblings.contains_key(single) => get(single)?,
            Some((_, index)) => {
                get(&index)?;
                for shard in shards(&folder.join(&index))? {
                    get(&shard.to_string_lossy())?;
                }
            }
            None => return Err(self.error(HubError::NoWeights { expected: [SAFETENSORS, TORCH] })),
        }
        let refs = Cache::new(self.cache.into()).repo(self.repo(self.revision));
        refs.create_ref(&info.sha).map_err(Error::io(self.cache))?;
        Ok(found)
    }

    /// The GGUF file of a repository, of these files: the one that was asked for, or the only one.
    fn choose_gguf<'f>(&self, files: impl Iterator<Item = &'f str>) -> Result<String> {
        if let Some(file) = self.gguf {
            return Ok(file.into());
        }
        match &models(files)[..] {
            [] => Err(self.error(HubError::NoWeights { expected: [SAFETENSORS, TORCH] })),
            [file] => Ok(file.clone()),
            files => Err(self.error(HubError::SeveralGguf { count: files.len(), files: listed(files) })),
        }
    }

    /// The hub, and what it says of the revision.
    fn connect(&self) -> Result<(Api, Info)> {
        let builder = ApiBuilder::from_cache(Cache::new(self.cache.into()))
            .with_endpoint(self.hub.endpoint.trim_end_matches('/').into())
            .with_token(self.hub.token.clone())
            .with_progress(std::io::stderr().is_terminal())
            .with_user_agent("tch-lens", env!("CARGO_PKG_VERSION"));
        let api = builder.build().map_err(|error| self.unreachable(&error))?;
        let info = self.info(&api)?;
        if !is_commit(&info.sha) {
            return Err(self.error(HubError::BrokenAnswer { why: "it names no commit".into() }));
        }
        Ok((api, info))
    }

    /// What the hub says of the revision.
    fn info(&self, api: &Api) -> Result<Info> {
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
                Err(error) => return Err(self.unreachable(&error)),
            }
            wait(tried);
            tried += 1;
        };
        let status = response.status();
        if status.is_success() {
            let body = response.body_mut().with_config().limit(64 << 20);
            let broken = |error: ureq::Error| self.error(HubError::BrokenAnswer { why: error.to_string() });
            return body.read_json().map_err(broken);
        }
        let code = response.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or_default();
        let source = match (status.as_u16(), code) {
            (404, "RevisionNotFound") => HubError::NoSuchRevision { revision: self.revision.into() },
            (403, _) | (401, "GatedRepo") => {
                HubError::Restricted { url: format!("{}/{}", self.hub.endpoint, self.name) }
            }
            (401 | 404, _) => HubError::NoSuchModel { with_token: self.hub.token.is_some() },
            _ if status.is_server_error() => return Err(self.unreachable(&status)),
            _ => HubError::BrokenAnswer { why: format!("it is {status}") },
        };
        Err(self.error(source))
    }

    fn unreachable(&self, why: &impl ToString) -> Error {
        self.error(HubError::Unreachable { endpoint: self.hub.endpoint.clone(), why: why.to_string() })
    }

    /// One file of a commit, into its snapshot: whole, or not at all.
    fn file(&self, api: &Api, commit: &str, sibling: &Sibling, folder: &Path) -> Result<()> {
        let file = &sibling.rfilename;
        let path = folder.join(file);
        if path.is_file() {
            return Ok(());
        }
        tracing::info!("downloading {}/{file}, {} bytes", self.name, sibling.size.unwrap_or_default());
        let repo = api.repo(self.repo(commit));
        for tried in 1.. {
            self.drop_overlong(sibling);
            let why = match repo.download(file) {
                Ok(_) => match self.check(&path, sibling)? {
                    None => return Ok(()),
                    Some(short) => short,
                },
                Err(error) if transient_download(&error) => error.to_string(),
                Err(error) => {
                    return Err(self.error(HubError::Download { file: file.clone(), why: error.to_string() }));
                }
            };
            if tried >= TRIES {
                let why = format!("{why}; the next attempt goes on from there");
                return Err(self.error(HubError::Download { file: file.clone(), why }));
            }
            tracing::warn!("`{file}` did not arrive: {why}; trying again");
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

    /// Compares what arrived with what the hub says of it, and leaves nothing wrong in the cache. What it says is how much of a
    /// file that is too short arrived: another attempt may go better.
    fn check(&self, path: &Path, sibling: &Sibling) -> Result<Option<String>> {
        let file = &sibling.rfilename;
        let wrong = |found: String, announced: String| {
            self.error(HubError::WrongContents { file: file.clone(), found, announced })
        };
        let blob = std::fs::canonicalize(path).map_err(Error::io(path))?;
        let len = std::fs::metadata(&blob).map_err(Error::io(&blob))?.len();
        let etag = blob.file_name().and_then(|name| name.to_str()).filter(|name| is_sha256(name));
        let sha256 = sibling.lfs.as_ref().and_then(|lfs| lfs.sha256.as_deref()).or(etag);
        if let Some(size) = sibling.size {
            if len < size {
                // Where the next attempt looks for it.
                let _ = std::fs::remove_file(path);
                std::fs::rename(&blob, blob.with_extension("part")).map_err(Error::io(&blob))?;
                return Ok(Some(format!("only {len} of {size} bytes came")));
            }
            if len > size {
                remove(path, &blob)?;
                return Err(wrong(format!("{len} bytes"), format!("{size}")));
            }
        }
        if let Some(sha256) = sha256 {
            let found = hash(&blob)?;
            if !found.eq_ignore_ascii_case(sha256) {
                remove(path, &blob)?;
                return Err(wrong(format!("SHA-256 {found}"), sha256.into()));
            }
        }
        Ok(None)
    }
}

/// Whether a file of a folder may be one of a dictionary's or a lens'.
fn is_of_part(name: &str) -> bool {
    let name = name.strip_prefix("checkpoints/").unwrap_or(name); // Llama Scope's
    let ends = [".json", ".yaml", ".safetensors", ".npz", ".pt"];
    !name.contains('/') && ends.iter().any(|end| name.ends_with(end))
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
