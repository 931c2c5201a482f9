//! [`verify`]: whether a harvest is whole.

use crate::job::{checked_file, committed};
use crate::store::Store;
use crate::{Error, Job, Result, ShardId};

/// What was found of a harvest.
#[derive(Debug, Default)]
pub struct Verification {
    /// Shards whose files are all as they were committed.
    pub whole: Vec<ShardId>,
    /// Shards that are not harvested yet.
    pub missing: Vec<ShardId>,
    /// Shards with a file that is missing or damaged, with the first such file.
    pub damaged: Vec<(ShardId, Error)>,
    /// The tokens of all whole shards.
    pub tokens: u64,
    /// The kept activations of all whole shards.
    pub activations: u64,
    /// The bytes of all whole shards.
    pub bytes: u64,
}

/// Reads all files of a harvest and compares them with their checksums. The model is not needed.
///
/// With `repair`, damaged shards are no longer committed, so that the next harvest makes them again.
///
/// # Errors
///
/// [`Error::NoManifest`], [`Error::Malformed`] for the manifest, and those of a store that cannot be read.
pub fn verify(store: &Store, repair: bool) -> Result<Verification> {
    let manifest = Job::manifest_of(store)?;
    let hash = manifest.hash()?;
    let mut found = Verification::default();
    for shard in manifest.shards() {
        let checked = committed(store, &hash, shard).and_then(|metadata| {
            let Some(metadata) = metadata else { return Ok(None) };
            metadata.files.iter().try_for_each(|file| checked_file(store, &metadata, &file.path).map(|_| ()))?;
            Ok(Some(metadata))
        });
        match checked {
            Ok(None) => found.missing.push(shard),
            Ok(Some(metadata)) => {
                found.tokens += metadata.tokens;
                found.activations += metadata.activations;
                found.bytes += metadata.files.iter().map(|file| file.bytes).sum::<u64>();
                found.whole.push(shard);
            }
            Err(error @ (Error::Corrupted { .. } | Error::Malformed { .. } | Error::OtherManifest { .. })) => {
                if repair {
                    store.remove(&shard.metadata_path())?;
                }
                found.damaged.push((shard, error));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}
