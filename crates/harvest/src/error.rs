//! [`Error`]: one sentence each, with what was expected, what was found and what to do.

use crate::ShardId;

/// What can go wrong in a harvest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The core's.
    #[error(transparent)]
    Model(#[from] tch_lens::Error),
    /// A store or a corpus that cannot be read or written.
    #[error("cannot {action} `{place}`: {source}")]
    Store {
        /// What was tried, such as "write".
        action: &'static str,
        /// The file or object.
        place: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An address that names no store.
    #[error("`{address}` is no store: {why}")]
    Address {
        /// The address.
        address: String,
        /// Why, and what to do.
        why: String,
    },
    /// A corpus without documents.
    #[error("the corpus is empty: {files} have no document with a text; name files that have some")]
    EmptyCorpus {
        /// The files, in words.
        files: String,
    },
    /// A file of the corpus that is not what its format says.
    #[error("`{file}` cannot be read as {format}: {why}")]
    Corpus {
        /// The file.
        file: String,
        /// The format, in words.
        format: String,
        /// What is wrong, where, and what to do.
        why: String,
    },
    /// A column that a file of the corpus does not have.
    #[error("`{file}` has no column `{column}`: it has {found}; name one of these with `--column`")]
    MissingColumn {
        /// The file.
        file: String,
        /// The column that was asked for.
        column: String,
        /// The columns that it has.
        found: String,
    },
    /// A corpus that is not the one that the manifest was made of.
    #[error("`{file}` is not the file that the harvest was planned with ({why}): restore it, or plan a harvest of the new one into another folder")]
    CorpusChanged {
        /// The file.
        file: String,
        /// What differs.
        why: String,
    },
    /// A document with more tokens than a row.
    #[error(
        "document {document} has {tokens} tokens, but a row has {context}: choose `--long split` or `--long truncate`, or pack documents"
    )]
    LongDocument {
        /// Its number in the corpus.
        document: u64,
        /// Its tokens, BOS and EOS included.
        tokens: usize,
        /// The tokens of a row.
        context: usize,
    },
    /// A document that does not become tokens.
    #[error("document {document} cannot be tokenised: {source}")]
    Tokens {
        /// Its number in the corpus.
        document: u64,
        /// Why.
        source: Box<tch_lens::Error>,
    },
    /// A model that is not the manifest's.
    #[error("the manifest is of another model: its {what} is {expected}, and that of `{source_name}` is {found}; harvest with the model of the manifest, or plan a harvest into another folder")]
    OtherModel {
        /// "configuration" or "weights' hash".
        what: &'static str,
        /// In the manifest.
        expected: String,
        /// Of the model.
        found: String,
        /// Where the model came from.
        source_name: String,
    },
    /// A folder that holds the harvest of another manifest.
    #[error("`{store}` holds a harvest of another manifest ({found}, not {expected}): choose another folder")]
    OtherManifest {
        /// The store.
        store: String,
        /// The hash of the manifest that was given.
        expected: String,
        /// The hash of the manifest that lies there.
        found: String,
    },
    /// A store without a manifest.
    #[error("`{store}` has no `manifest.json`: plan the harvest first, with `harvest plan`")]
    NoManifest {
        /// The store.
        store: String,
    },
    /// A manifest or metadata that cannot be read.
    #[error("`{file}` is no {what}: {why}")]
    Malformed {
        /// The file.
        file: String,
        /// What it should be.
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A shard that the manifest does not have.
    #[error("there is no shard {shard}: the manifest has {shards}, numbered from 0")]
    NoSuchShard {
        /// The shard.
        shard: ShardId,
        /// How many there are.
        shards: usize,
    },
    /// A file whose bytes are not those that were committed.
    #[error("`{file}` of shard {shard} is damaged ({why}): run `harvest verify --repair`, then `harvest run` makes it again")]
    Corrupted {
        /// The shard.
        shard: ShardId,
        /// The file.
        file: String,
        /// What differs.
        why: String,
    },
    /// A shard that another worker committed with other bytes.
    #[error("shard {shard} was committed by another worker with other bytes ({file}): use the same software, device and number of threads everywhere")]
    Conflict {
        /// The shard.
        shard: ShardId,
        /// The first file that differs.
        file: String,
    },
    /// A shard that is not there yet.
    #[error("shard {shard} is not harvested yet: run `harvest run` first")]
    Missing {
        /// The shard.
        shard: ShardId,
    },
    /// A number that a type cannot hold.
    #[error("`{point}` is {value} at row {row} of shard {shard}, which {dtype} cannot hold: {hint}")]
    Value {
        /// The hook point.
        point: String,
        /// The number.
        value: f32,
        /// The row in the shard.
        row: usize,
        /// The shard.
        shard: ShardId,
        /// The type.
        dtype: crate::DType,
        /// What to do.
        hint: &'static str,
    },
    /// A setting that cannot be used.
    #[error("{0}")]
    Setting(String),
    /// What the engine, DataFusion or Ballista, says of a question or a harvest that it ended.
    #[error("{0}")]
    Engine(String),
    /// A thread of the pipeline that ended without a result.
    #[error("a thread of the harvest panicked: {0}")]
    Thread(&'static str),
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of a store, for `map_err`.
    pub(crate) fn store<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        action: &'static str,
        place: impl Into<String>,
    ) -> impl FnOnce(E) -> Error {
        let place = place.into();
        move |source| Error::Store { action, place, source: source.into() }
    }
}

impl From<tch_lens::tch::TchError> for Error {
    fn from(error: tch_lens::tch::TchError) -> Self {
        Error::Model(error.into())
    }
}
