//! Harvests activations of a corpus: any points of a model, to sharded, shuffled, resumable storage.
//!
//! A [`Manifest`] says what a harvest is, down to the last byte. A shard is its unit: [`harvest_shard`] reads its documents, runs the model,
//! writes its files and commits them at once. Shards that are committed are skipped, so a harvest that was killed goes on where it was, and
//! any number of workers, in any order, make the same files.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod error;
mod harvest;
mod job;
pub mod manifest;
mod shard;
mod store;

pub use error::{Error, Result};
pub use harvest::{committed, harvest_shard};
pub use job::{load_model, Job, MANIFEST};
pub use manifest::{DType, Format, Keep, Manifest, PointSelection};
pub use shard::{FileRecord, ShardId, ShardMetadata};
pub use store::Store;
