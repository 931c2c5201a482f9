//! [`harvest_shard`]: reads, runs, writes and commits one shard.

use crate::{Error, Job, Result, ShardId, ShardMetadata};

/// Harvests one shard: reads its documents, runs the model, writes its files and commits them. A shard that is committed already is not made
/// again, so it may be called any number of times, by any number of workers.
///
/// It blocks: call it from a thread that may wait.
///
/// # Errors
///
/// [`Error`]'s variants for a corpus that changed, numbers that a type cannot hold, and a store that cannot be written.
pub fn harvest_shard(job: &Job, shard: ShardId) -> Result<ShardMetadata> {
    job.manifest().shard(shard)?;
    match committed(job, shard)? {
        Some(metadata) => Ok(metadata),
        None => Err(Error::Setting("shards cannot be made yet: this version only reads them".into())),
    }
}

/// The metadata of a shard, if it is committed.
///
/// # Errors
///
/// [`Error::Malformed`] for metadata that cannot be read; [`Error::OtherManifest`] for that of another harvest.
pub fn committed(job: &Job, shard: ShardId) -> Result<Option<ShardMetadata>> {
    let path = shard.metadata_path();
    let Some(json) = job.store().get(&path)? else { return Ok(None) };
    let file = job.store().address_of(&path);
    let metadata: ShardMetadata = serde_json::from_slice(&json).map_err(|why| Error::Malformed {
        file,
        what: "metadata of a shard",
        why: why.to_string(),
    })?;
    if metadata.manifest != job.manifest_hash() {
        return Err(Error::OtherManifest {
            store: job.store().address().into(),
            expected: job.manifest_hash().into(),
            found: metadata.manifest,
        });
    }
    Ok(Some(metadata))
}
