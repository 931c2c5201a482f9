//! [`Manifest`]: what a harvest is, as one file of JSON. The manifest decides every byte of every shard.

mod identity;
mod selection;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::identity::{Block, CorpusFile, CorpusFormat, CorpusIdentity, ModelIdentity, TokenShard};
pub use self::selection::{
    Boundaries, DType, Format, Keep, LongDocuments, PointSelection, PositionSelection, Positions, Rows,
};
use crate::{Error, Result, ShardId};

/// The version of the manifest and of the shards' layout.
pub const FORMAT_VERSION: u32 = 1;

/// What a harvest is: of which model and corpus, at which points and positions, in which form, and its shards.
///
/// Two harvests of one manifest have the same bytes. [`Manifest::hash`] names it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// The model.
    pub model: ModelIdentity,
    /// The SHA-256 of the tokenizer's `tokenizer.json`; none for a corpus that is tokenised already.
    pub tokenizer: Option<String>,
    /// Whether words that the vocabulary does not have become its token for unknown words, rather than an error.
    pub allow_unknown: bool,
    /// The corpus.
    pub corpus: CorpusIdentity,
    /// How documents become the rows that the model reads.
    pub rows: Rows,
    /// The most tokens of a row.
    pub context: usize,
    /// What stands before and after documents.
    pub boundaries: Boundaries,
    /// The activations that are kept.
    pub points: Vec<PointSelection>,
    /// The positions at which they are kept.
    pub positions: PositionSelection,
    /// The files of a shard.
    pub formats: Vec<Format>,
    /// The seed of the shuffle.
    pub seed: u64,
    /// Whether documents are spread over shards, and the rows of a shard shuffled.
    pub shuffle: bool,
    /// The tokens, padding included, of one run of the model.
    pub batch_tokens: usize,
    /// What each shard reads.
    pub shards: Vec<TokenShard>,
}

impl Manifest {
    /// The ids of all shards, in order.
    pub fn shards(&self) -> impl ExactSizeIterator<Item = ShardId> + use<> {
        (0..self.shards.len() as u32).map(ShardId)
    }

    /// What a shard reads.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchShard`].
    pub fn shard(&self, id: ShardId) -> Result<&TokenShard> {
        self.shards.get(id.0 as usize).ok_or(Error::NoSuchShard { shard: id, shards: self.shards.len() })
    }

    /// The name of this manifest: the SHA-256 of its JSON, in 64 hexadecimal digits.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if it has a number that JSON cannot hold.
    pub fn hash(&self) -> Result<String> {
        Ok(hex(&Sha256::digest(self.to_json()?)))
    }

    /// The bytes of `manifest.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if it has a number that JSON cannot hold.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut json = serde_json::to_vec(self).map_err(|why| malformed("manifest.json", &why))?;
        json.push(b'\n');
        Ok(json)
    }

    /// Reads the bytes of `manifest.json`; `file` names it in errors.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] for bytes that are no manifest, and for another version of the format.
    pub fn from_json(json: &[u8], file: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format_version: u32,
        }
        let Version { format_version } = serde_json::from_slice(json).map_err(|why| malformed(file, &why))?;
        if format_version != FORMAT_VERSION {
            let why =
                format!("its format has version {format_version}, and this program reads version {FORMAT_VERSION}");
            return Err(malformed(file, &why));
        }
        serde_json::from_slice(json).map_err(|why| malformed(file, &why))
    }
}

fn malformed(file: &str, why: &dyn std::fmt::Display) -> Error {
    Error::Malformed { file: file.into(), what: "manifest of a harvest", why: why.to_string() }
}

/// Bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The SHA-256 of bytes, in 64 hexadecimal digits.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
