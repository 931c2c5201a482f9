//! Harvests activations of a corpus: any points of a model, to sharded, shuffled, resumable storage.
//!
//! A [`Manifest`] says what a harvest is, down to the last byte. A shard is its unit: [`harvest_shard`] reads its documents, runs the model,
//! writes its files and commits them at once. Shards that are committed are skipped, so a harvest that was killed goes on where it was, and
//! any number of workers, in any order, make the same files.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod activation_store;
mod context;
mod corpus;
#[cfg(feature = "engine")]
pub mod engine;
mod error;
mod job;
pub mod manifest;
mod output;
mod plan;
mod prepare;
#[cfg(feature = "engine")]
pub mod query;
mod random;
mod run;
mod shard;
mod statistics;
mod store;
mod verify;

pub use activation_store::{ActivationStore, Epoch};
pub use context::Context;
pub use error::{Error, Result};
pub use job::{load_model, Job, KeptPoint, MANIFEST};
pub use manifest::{DType, Format, Keep, Manifest, PointSelection};
pub use plan::PlanOptions;
pub use run::{harvest, harvest_shard, Progress};
pub use shard::{FileRecord, ShardId, ShardMetadata};
pub use statistics::{PointStatistics, TopValue, TOP};
pub use store::Store;
pub use verify::{verify, Verification};
