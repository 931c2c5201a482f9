//! [`Store`]: where a harvest lies, on the local disk or in an object store. A file appears whole or not at all.

mod local;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions};
use tokio::runtime::Runtime;
use url::Url;

use crate::{Error, Result};

/// Files under one address. A clone is the same store.
#[derive(Clone)]
pub struct Store {
    address: String,
    place: Place,
}

#[derive(Clone)]
enum Place {
    Local(PathBuf),
    Remote { store: Arc<dyn ObjectStore>, prefix: Path },
}

/// What came of writing a file that may be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It was not there and is now.
    New,
    /// It was there and is as it was.
    Exists,
}

impl Store {
    /// The store at a folder, a `file://` URL, or, with the feature `cloud`, a URL such as `s3://bucket/folder`, whose credentials come from
    /// the environment's usual variables.
    ///
    /// # Errors
    ///
    /// [`Error::Address`] for what is no such address.
    pub fn open(address: &str) -> Result<Self> {
        let wrong = |why: String| Error::Address { address: address.into(), why };
        let place = match scheme(address) {
            None => Place::Local(PathBuf::from(address)),
            Some("file") => {
                let url = Url::parse(address).map_err(|why| wrong(why.to_string()))?;
                Place::Local(url.to_file_path().map_err(|()| wrong("a `file://` URL needs an absolute path".into()))?)
            }
            Some(_) => {
                let (store, prefix) = remote(address)?;
                Place::Remote { store, prefix }
            }
        };
        Ok(Store { address: address.trim_end_matches('/').into(), place })
    }

    /// A store over an object store of yours, under a prefix of its paths. The address names it in errors.
    pub fn of(store: Arc<dyn ObjectStore>, prefix: &str, address: &str) -> Self {
        Store { address: address.into(), place: Place::Remote { store, prefix: Path::from(prefix) } }
    }

    /// Its address, as it was given.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The folder of a store on the local disk.
    pub fn folder(&self) -> Option<&std::path::Path> {
        match &self.place {
            Place::Local(folder) => Some(folder),
            Place::Remote { .. } => None,
        }
    }

    /// The files as an object store, and what stands before their paths there.
    #[cfg(feature = "engine")]
    pub(crate) fn objects(&self) -> Result<(Arc<dyn ObjectStore>, Path)> {
        match &self.place {
            Place::Remote { store, prefix } => Ok((store.clone(), prefix.clone())),
            Place::Local(folder) => {
                let store = object_store::local::LocalFileSystem::new_with_prefix(folder)
                    .map_err(Error::store("read", self.address()))?;
                Ok((Arc::new(store), Path::default()))
            }
        }
    }

    /// The address of a file.
    pub fn address_of(&self, path: &str) -> String {
        format!("{}/{path}", self.address)
    }

    fn failed(
        &self,
        action: &'static str,
        path: &str,
        why: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error::Store { action, place: self.address_of(path), source: why.into() }
    }

    /// The bytes of a file; none if there is no such file.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub fn get(&self, path: &str) -> Result<Option<Bytes>> {
        match &self.place {
            Place::Local(folder) => match std::fs::read(folder.join(path)) {
                Ok(bytes) => Ok(Some(bytes.into())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(self.failed("read", path, error)),
            },
            Place::Remote { store, prefix } => {
                let at = prefix.clone().join_path(path);
                let read = wait(async { store.get(&at).await?.bytes().await })?;
                match read {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    Err(error) => Err(self.failed("read", path, error)),
                }
            }
        }
    }

    /// The size of a file; none if there is no such file.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub fn size(&self, path: &str) -> Result<Option<u64>> {
        match &self.place {
            Place::Local(folder) => match std::fs::metadata(folder.join(path)) {
                Ok(metadata) => Ok(Some(metadata.len())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(self.failed("read", path, error)),
            },
            Place::Remote { store, prefix } => {
                let at = prefix.clone().join_path(path);
                match wait(async { store.head(&at).await })? {
                    Ok(object) => Ok(Some(object.size)),
                    Err(object_store::Error::NotFound { .. }) => Ok(None),
                    Err(error) => Err(self.failed("read", path, error)),
                }
            }
        }
    }

    /// Writes a file, whether or not there is one.
    pub(crate) fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        match &self.place {
            Place::Local(folder) => {
                local::put(&folder.join(path), &bytes).map_err(Error::store("write", self.address_of(path)))
            }
            Place::Remote { store, prefix } => {
                let at = prefix.clone().join_path(path);
                wait(async { store.put(&at, bytes.into()).await })?
                    .map(|_| ())
                    .map_err(Error::store("write", self.address_of(path)))
            }
        }
    }

    /// Writes a file that is not there. Of several writers one succeeds.
    pub(crate) fn put_new(&self, path: &str, bytes: Bytes) -> Result<Put> {
        match &self.place {
            Place::Local(folder) => {
                local::put_new(&folder.join(path), &bytes).map_err(Error::store("write", self.address_of(path)))
            }
            Place::Remote { store, prefix } => {
                let at = prefix.clone().join_path(path);
                let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                match wait(async { store.put_opts(&at, bytes.into(), options).await })? {
                    Ok(_) => Ok(Put::New),
                    Err(object_store::Error::AlreadyExists { .. }) => Ok(Put::Exists),
                    Err(error) => Err(Error::store("write", self.address_of(path))(error)),
                }
            }
        }
    }

    /// Removes a file; one that is not there is none to remove.
    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        match &self.place {
            Place::Local(folder) => match std::fs::remove_file(folder.join(path)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(self.failed("remove", path, error)),
                _ => Ok(()),
            },
            Place::Remote { store, prefix } => {
                let at = prefix.clone().join_path(path);
                match wait(async { store.delete(&at).await })? {
                    Err(error) if !matches!(error, object_store::Error::NotFound { .. }) => {
                        Err(self.failed("remove", path, error))
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Removes what writers of a file that were killed left behind.
    pub(crate) fn remove_leftovers(&self, path: &str) {
        if let Place::Local(folder) = &self.place {
            local::remove_leftovers(&folder.join(path));
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.address).finish()
    }
}

trait Join {
    fn join_path(self, path: &str) -> Path;
}

impl Join for Path {
    fn join_path(self, path: &str) -> Path {
        path.split('/').fold(self, |joined, part| joined.join(part))
    }
}

/// One file that is read, of a corpus.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    address: String,
    store: Arc<dyn ObjectStore>,
    path: Path,
    bytes: u64,
}

impl Source {
    /// The file at a path or URL.
    pub(crate) fn open(address: &str) -> Result<Self> {
        let mut address = address.to_string();
        let (store, path) = match scheme(&address) {
            None => {
                let absolute = std::path::absolute(&address).map_err(Error::store("read", &address))?;
                let path = Path::from_absolute_path(&absolute).map_err(Error::store("read", &address))?;
                address = absolute.display().to_string();
                (Arc::new(object_store::local::LocalFileSystem::new()) as Arc<dyn ObjectStore>, path)
            }
            Some(_) => remote(&address)?,
        };
        let bytes = wait(async { store.head(&path).await })?.map_err(Error::store("read", &address))?.size;
        Ok(Source { address, store, path, bytes })
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A part of its bytes.
    pub(crate) fn range(&self, range: Range<u64>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        wait(async { self.store.get_range(&self.path, range).await })?.map_err(Error::store("read", &self.address))
    }
}

/// The scheme of a URL; none of a path.
fn scheme(address: &str) -> Option<&str> {
    address.split_once("://").map(|(scheme, _)| scheme)
}

fn remote(address: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
    let wrong = |why: String| Error::Address { address: address.into(), why };
    let url = Url::parse(address).map_err(|why| wrong(why.to_string()))?;
    let settings = std::env::vars().map(|(name, value)| (name.to_lowercase(), value));
    let (store, path) = object_store::parse_url_opts(&url, settings).map_err(|why| {
        let hint = if cfg!(feature = "cloud") { "" } else { "; object stores need the feature `cloud`" };
        wrong(format!("{why}{hint}"))
    })?;
    Ok((Arc::from(store), path))
}

/// Waits for a future, on threads of this crate's own, so that it can be called from any thread that may block.
fn wait<F: Future>(future: F) -> Result<F::Output> {
    static RUNTIME: OnceLock<std::io::Result<Runtime>> = OnceLock::new();
    let runtime = RUNTIME
        .get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build())
        .as_ref()
        .map_err(|why| Error::Setting(format!("no thread for object stores can be started: {why}")))?;
    Ok(runtime.block_on(future))
}
