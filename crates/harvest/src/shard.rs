//! [`ShardId`] and [`ShardMetadata`]: the unit of a harvest, and what is known of it once it is committed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of a shard, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u32);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ShardId {
    /// Where its metadata lies: the file whose presence commits the shard.
    pub fn metadata_path(self) -> String {
        format!("shards/{:06}.json", self.0)
    }

    /// Where its table of activations lies.
    pub fn parquet_path(self) -> String {
        format!("activations/{:06}.parquet", self.0)
    }

    /// Where its tensors lie.
    pub fn safetensors_path(self) -> String {
        format!("activations/{:06}.safetensors", self.0)
    }

    /// Where the rows that the model read lie: a table with a row's tokens, the document of each and its place in the document's text.
    pub fn rows_path(self) -> String {
        format!("rows/{:06}.parquet", self.0)
    }

    /// Where its statistics lie.
    pub fn statistics_path(self) -> String {
        format!("statistics/{:06}.safetensors", self.0)
    }
}

/// What is known of a committed shard. It holds nothing that differs between two harvests of one manifest, such as a time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardMetadata {
    /// The shard.
    pub shard: ShardId,
    /// [`Manifest::hash`](crate::Manifest::hash).
    pub manifest: String,
    /// The documents that it read.
    pub documents: u64,
    /// The rows that the model read.
    pub rows: u64,
    /// The tokens in them, without padding.
    pub tokens: u64,
    /// The activations that are kept of each point: rows of the table.
    pub activations: u64,
    /// Its files.
    pub files: Vec<FileRecord>,
}

/// A file of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// Its path in the store.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// The SHA-256 of its bytes.
    pub sha256: String,
}
