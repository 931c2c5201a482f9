//! The files of a shard.

pub(crate) mod table;
pub(crate) mod tensors;

use bytes::Bytes;

use crate::manifest::{sha256, Format};
use crate::run::{Collected, Column};
use crate::store::Put;
use crate::{statistics, Error, FileRecord, Job, Result, ShardMetadata};

/// Writes the files of a shard and commits them: its metadata comes last, and only if it is not there yet.
pub(crate) fn commit(job: &Job, collected: Collected) -> Result<ShardMetadata> {
    let shard = collected.prepared.shard;
    let prepared = collected.prepared.clone();
    let mut files = vec![
        (shard.rows_path(), table::rows(&prepared)?),
        (shard.statistics_path(), statistics::write(&collected.statistics)?),
    ];
    let columns: Vec<_> = collected.columns.into_iter().map(Finished::of).collect();
    for format in &job.manifest().formats {
        files.push(match format {
            Format::Parquet => (shard.parquet_path(), table::activations(job, &prepared, &columns)?),
            Format::Safetensors => (shard.safetensors_path(), tensors::activations(job, &prepared, &columns)?),
        });
    }
    drop(columns);
    let mut metadata = ShardMetadata {
        shard,
        manifest: job.manifest_hash().into(),
        documents: prepared.documents,
        rows: prepared.rows.len() as u64,
        tokens: prepared.tokens() as u64,
        activations: prepared.activations() as u64,
        files: Vec::new(),
    };
    for (path, bytes) in &files {
        metadata.files.push(FileRecord { path: path.clone(), bytes: bytes.len() as u64, sha256: sha256(bytes) });
    }
    if let Err(error) = put(job, &metadata, files) {
        // A worker that commits a shard removes unfinished files of it, also those of a worker that is about to.
        let Ok(Some(found)) = job.committed(shard) else { return Err(error) };
        return agreed(&metadata, found);
    }
    for file in metadata.files.iter().map(|file| file.path.clone()).chain([shard.metadata_path()]) {
        job.store().remove_leftovers(&file);
    }
    Ok(metadata)
}

/// Writes the files of a shard, its metadata last.
fn put(job: &Job, metadata: &ShardMetadata, files: Vec<(String, Vec<u8>)>) -> Result<()> {
    let shard = metadata.shard;
    let json = serde_json::to_vec(metadata)
        .map_err(|why| Error::Setting(format!("the metadata of shard {shard} cannot be written as JSON: {why}")))?;
    for (path, bytes) in files {
        job.store().put(&path, Bytes::from(bytes))?;
    }
    if job.store().put_new(&shard.metadata_path(), json.into())? == Put::Exists {
        agreed(metadata, job.committed(shard)?.ok_or(Error::Missing { shard })?)?;
    }
    Ok(())
}

/// The metadata that another worker committed, if its files are the same.
fn agreed(ours: &ShardMetadata, found: ShardMetadata) -> Result<ShardMetadata> {
    match ours.files.iter().zip(&found.files).find(|(ours, found)| ours != found) {
        Some((_, found)) => Err(Error::Conflict { shard: ours.shard, file: found.path.clone() }),
        None => Ok(found),
    }
}

/// A column whose numbers are bytes, in the order of the files.
pub(crate) enum Finished {
    Dense {
        width: usize,
        dtype: crate::DType,
        numbers: arrow_buffer::Buffer,
    },
    Sparse {
        /// Where each activation's entries begin, and where those of the last one end.
        offsets: Vec<usize>,
        index: Vec<u32>,
        dtype: crate::DType,
        value: arrow_buffer::Buffer,
    },
}

impl Finished {
    fn of(column: Column) -> Self {
        match column {
            Column::Dense { width, numbers } => {
                Finished::Dense { width, dtype: numbers.dtype(), numbers: numbers.into_buffer() }
            }
            Column::Sparse { spans, index, value } => {
                let mut offsets = vec![0];
                let mut end = 0;
                for (from, to) in &spans {
                    end += to - from;
                    offsets.push(end);
                }
                let value = value.gathered(&spans);
                Finished::Sparse {
                    offsets,
                    index: spans.iter().flat_map(|&(from, to)| index[from..to].iter().copied()).collect(),
                    dtype: value.dtype(),
                    value: value.into_buffer(),
                }
            }
        }
    }
}
