//! [`Job`]: a manifest with the model, the corpus and the store that it names, ready to harvest.

use std::sync::Arc;

use tch_lens::tch::Device;
use tch_lens::{HookPoint, HookedTransformer};

use crate::manifest::{Manifest, ModelIdentity};
use crate::store::{Put, Store};
use crate::{Error, Result};

/// Where the manifest lies in a store.
pub const MANIFEST: &str = "manifest.json";

/// A harvest that can run: a manifest, the model that it names, and where its shards go. A clone shares the model.
#[derive(Clone, Debug)]
pub struct Job {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    manifest: Manifest,
    hash: String,
    model: HookedTransformer,
    store: Store,
    points: Vec<HookPoint>,
}

impl Job {
    /// The harvest that was planned into a store: reads its manifest, and loads the model that it names on a device.
    ///
    /// # Errors
    ///
    /// [`Error::NoManifest`], [`Error::Malformed`], [`Error::OtherModel`] for weights that changed since, and those of loading a model.
    pub fn open(store: &Store, device: Device) -> Result<Self> {
        let manifest = Job::manifest_of(store)?;
        let model = load(&manifest.model, device)?;
        Job::new(manifest, model, store.clone())
    }

    /// The manifest that lies in a store.
    ///
    /// # Errors
    ///
    /// [`Error::NoManifest`], [`Error::Malformed`].
    pub fn manifest_of(store: &Store) -> Result<Manifest> {
        match store.get(MANIFEST)? {
            Some(json) => Manifest::from_json(&json, &store.address_of(MANIFEST)),
            None => Err(Error::NoManifest { store: store.address().into() }),
        }
    }

    /// A harvest of a model that is loaded already. Writes the manifest to the store if there is none.
    ///
    /// # Errors
    ///
    /// [`Error::OtherModel`] for a model that is not the manifest's; [`Error::OtherManifest`] for a store that has another harvest.
    pub fn new(manifest: Manifest, model: HookedTransformer, store: Store) -> Result<Self> {
        manifest.model.check(&model)?;
        let hash = manifest.hash()?;
        let points = manifest
            .points
            .iter()
            .map(|selection| Ok(tch_lens::hook::HookName::resolve(selection.point.as_str(), model.config())?))
            .collect::<Result<_>>()?;
        if store.put_new(MANIFEST, manifest.to_json()?.into())? == Put::Exists {
            let found = Job::manifest_of(&store)?.hash()?;
            if found != hash {
                return Err(Error::OtherManifest { store: store.address().into(), expected: hash, found });
            }
        }
        Ok(Job { inner: Arc::new(Inner { manifest, hash, model, store, points }) })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.inner.manifest
    }

    /// [`Manifest::hash`].
    pub fn manifest_hash(&self) -> &str {
        &self.inner.hash
    }

    /// The model.
    pub fn model(&self) -> &HookedTransformer {
        &self.inner.model
    }

    /// Where shards go.
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// The hook points, in the manifest's order.
    pub fn points(&self) -> &[HookPoint] {
        &self.inner.points
    }
}

/// Loads the model that a manifest names.
fn load(identity: &ModelIdentity, device: Device) -> Result<HookedTransformer> {
    load_model(&identity.source, identity.dtype, identity.processed, device)
}

/// Loads a model: `toy`, a folder or a name on the hub.
///
/// # Errors
///
/// Those of loading.
pub fn load_model(source: &str, dtype: crate::DType, processed: bool, device: Device) -> Result<HookedTransformer> {
    let mut options = tch_lens::LoadOptions::new().kind(dtype.kind()).device(device);
    if !processed {
        options = options.no_processing();
    }
    Ok(match source {
        "toy" => options.toy()?,
        folder_or_name => options.open(folder_or_name)?,
    })
}
