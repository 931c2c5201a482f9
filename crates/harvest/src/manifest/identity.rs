//! What a harvest is of: the model and the corpus, each with what tells it from others.

use serde::{Deserialize, Serialize};
use tch_lens::HookedTransformer;

use super::selection::DType;
use super::sha256;
use crate::{Error, Result};

/// The model of a harvest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelIdentity {
    /// Where it comes from: `toy`, a folder, or a name on the hub. A worker loads it from there.
    pub source: String,
    /// The type of its weights and activations.
    pub dtype: DType,
    /// Whether its weights were processed as the core does by default.
    pub processed: bool,
    /// The SHA-256 of its configuration.
    pub config_hash: String,
    /// [`weights_hash`](tch_lens::Transformer::weights_hash) of its weights, as they compute.
    pub weights_hash: String,
}

impl ModelIdentity {
    /// The identity of a model that was loaded from `source`.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] for a model without weights; [`Error::Setting`] for weights of another type than fp32, fp16 and bf16.
    pub fn of(model: &HookedTransformer, source: &str, processed: bool) -> Result<Self> {
        let config = serde_json::to_vec(model.config())
            .map_err(|why| Error::Setting(format!("the model's configuration cannot be written as JSON: {why}")))?;
        Ok(ModelIdentity {
            source: source.into(),
            dtype: DType::of_kind(model.kind())?,
            processed,
            config_hash: sha256(&config),
            weights_hash: model.weights_hash()?,
        })
    }

    /// That a model is this one.
    ///
    /// # Errors
    ///
    /// [`Error::OtherModel`].
    pub fn check(&self, model: &HookedTransformer) -> Result<()> {
        let found = ModelIdentity::of(model, &self.source, self.processed)?;
        let same = |what, expected: &str, found: &str| match expected == found {
            true => Ok(()),
            false => Err(Error::OtherModel {
                what,
                expected: expected.into(),
                found: found.into(),
                source_name: self.source.clone(),
            }),
        };
        same("configuration's hash", &self.config_hash, &found.config_hash)?;
        same("type", self.dtype.name(), found.dtype.name())?;
        same("weights' hash", &self.weights_hash, &found.weights_hash)
    }
}

/// What the files of a corpus are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CorpusFormat {
    /// A file is a document.
    Text,
    /// A line that is not blank is a document.
    Lines,
    /// A line is a JSON object, one of whose fields is the document.
    JsonLines {
        /// The field.
        column: String,
        /// Whether it holds a list of token ids rather than a text.
        tokens: bool,
    },
    /// A row is a document, such as in a dataset file of Hugging Face.
    Parquet {
        /// The column.
        column: String,
        /// Whether it holds lists of token ids rather than texts.
        tokens: bool,
    },
}

impl CorpusFormat {
    /// Whether documents are lists of token ids.
    pub fn is_tokenised(&self) -> bool {
        matches!(self, CorpusFormat::JsonLines { tokens: true, .. } | CorpusFormat::Parquet { tokens: true, .. })
    }

    /// In words, for sentences.
    pub(crate) fn words(&self) -> &'static str {
        match self {
            CorpusFormat::Text | CorpusFormat::Lines => "a text",
            CorpusFormat::JsonLines { .. } => "JSON lines",
            CorpusFormat::Parquet { .. } => "Parquet",
        }
    }
}

/// The corpus of a harvest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusIdentity {
    /// What its files are.
    pub format: CorpusFormat,
    /// Its files, in the order in which its documents are numbered.
    pub files: Vec<CorpusFile>,
    /// The number of documents.
    pub documents: u64,
    /// The SHA-256 of the hashes of all blocks, in the corpus' order.
    pub hash: String,
}

/// A file of a corpus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorpusFile {
    /// Its address: a path, or a URL of an object store.
    pub address: String,
    /// Its size.
    pub bytes: u64,
}

/// What one shard reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenShard {
    /// Parts of the corpus, in the order in which they are read.
    pub blocks: Vec<Block>,
}

/// Consecutive documents of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Block {
    /// The number of the file.
    pub file: usize,
    /// Where it begins in the file: a byte, or a row of Parquet.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
    /// The number in the corpus of its first document.
    pub first_document: u64,
    /// How many documents it has.
    pub documents: u64,
    /// The first half of the SHA-256 of its bytes; of Parquet, of its documents.
    pub hash: String,
}
