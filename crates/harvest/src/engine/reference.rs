//! [`HarvestReference`]: which harvest a task belongs to.

use serde::{Deserialize, Serialize};

use crate::{Error, Job, Manifest, Result, Store};

/// Where a harvest lies, and which one it is. This is all that a plan carries beside numbers of shards.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HarvestReference {
    /// The address of its store: an absolute path, or a URL. Each worker must reach it under this address.
    pub store: String,
    /// [`Manifest::hash`].
    pub manifest: String,
}

impl HarvestReference {
    /// The reference to an open harvest.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] for a folder whose absolute path cannot be told.
    pub fn of(job: &Job) -> Result<Self> {
        Ok(HarvestReference { store: address(job.store())?, manifest: job.manifest_hash().into() })
    }

    /// The reference to the harvest that was planned into a store, with its manifest. Loads no model.
    ///
    /// # Errors
    ///
    /// [`Error::NoManifest`], [`Error::Malformed`], [`Error::Store`].
    pub fn read(store: &Store) -> Result<(Self, Manifest)> {
        let manifest = Job::manifest_of(store)?;
        Ok((HarvestReference { store: address(store)?, manifest: manifest.hash()? }, manifest))
    }

    /// That a manifest is the one that is meant.
    pub(crate) fn check(&self, manifest: &Manifest) -> Result<()> {
        let found = manifest.hash()?;
        match found == self.manifest {
            true => Ok(()),
            false => Err(Error::OtherManifest { store: self.store.clone(), expected: self.manifest.clone(), found }),
        }
    }
}

/// The address of a store under which other processes find it: a relative path means another folder to each.
fn address(store: &Store) -> Result<String> {
    match store.folder() {
        None => Ok(store.address().into()),
        Some(folder) => {
            let absolute = std::path::absolute(folder).map_err(Error::store("read", store.address()))?;
            let text = absolute.to_str().ok_or_else(|| Error::Address {
                address: store.address().into(),
                why: "its path is not UTF-8, so it cannot be sent to a worker: choose another folder".into(),
            })?;
            Ok(text.into())
        }
    }
}
