//! What is kept of a run: rows, points, positions and types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch_lens::tch::Kind;

use crate::{Error, Result};

/// How documents become the rows that the model reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rows {
    /// Documents stand one after the other and are cut into rows of [`context`](super::Manifest::context) tokens. The tokens of a row attend
    /// to each other, whichever documents they are of. The last row of a shard may be shorter.
    Packed,
    /// Each row is of one document, so attention never crosses documents. Rows of like lengths run together; the shorter ones are padded,
    /// and padding is never kept.
    Documents {
        /// What is done with a document that is longer than a row.
        long: LongDocuments,
    },
}

/// What is done with a document that is longer than a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LongDocuments {
    /// It is an error.
    Refuse,
    /// It becomes several rows, which do not see each other.
    Split,
    /// Its end is left out.
    Truncate,
}

/// What stands before and after documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Boundaries {
    /// A BOS token before each document.
    pub bos_before_documents: bool,
    /// A BOS token at the start of each row; one alone where a document begins there.
    pub bos_before_rows: bool,
    /// An EOS token after each document.
    pub eos_after_documents: bool,
}

/// One activation that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointSelection {
    /// TransformerLens' name of the hook point, such as `blocks.1.hook_resid_post`. The column has this name.
    pub point: String,
    /// The type in which its numbers are stored.
    pub dtype: DType,
    /// What of it is kept.
    pub keep: Keep,
}

/// What is kept of an activation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Keep {
    /// All entries: a column of lists of one length. Heads stand side by side.
    Whole,
    /// The `k` largest entries, in the columns `NAME.index` and `NAME.value`, by index.
    TopK {
        /// How many.
        k: usize,
    },
    /// The active features of a dictionary that reads the activation, in the columns `NAME.index` and `NAME.value`, by index.
    Dictionary {
        /// The folder or file of the dictionary.
        source: String,
        /// The SHA-256 of its weights.
        hash: String,
    },
}

/// The type of stored numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// Single precision.
    Fp32,
    /// Half precision.
    Fp16,
    /// Brain floating point.
    Bf16,
}

impl DType {
    /// Its name: `fp32`, `fp16` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            DType::Fp32 => "fp32",
            DType::Fp16 => "fp16",
            DType::Bf16 => "bf16",
        }
    }

    /// The bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            DType::Fp32 => 4,
            DType::Fp16 | DType::Bf16 => 2,
        }
    }

    /// libtorch's name.
    pub fn kind(self) -> Kind {
        match self {
            DType::Fp32 => Kind::Float,
            DType::Fp16 => Kind::Half,
            DType::Bf16 => Kind::BFloat16,
        }
    }

    /// The type of this name in libtorch.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for another kind.
    pub fn of_kind(kind: Kind) -> Result<Self> {
        match kind {
            Kind::Float => Ok(DType::Fp32),
            Kind::Half => Ok(DType::Fp16),
            Kind::BFloat16 => Ok(DType::Bf16),
            other => Err(Error::Setting(format!("a harvest is in fp32, fp16 or bf16, and not in {other:?}"))),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "fp32" => Ok(DType::Fp32),
            "fp16" => Ok(DType::Fp16),
            "bf16" => Ok(DType::Bf16),
            _ => Err(Error::Setting(format!("there is no type `{text}`: choose fp32, fp16 or bf16"))),
        }
    }
}

/// At which positions of a row activations are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PositionSelection {
    /// Those meant.
    pub of: Positions,
    /// Whether BOS tokens are left out of them.
    pub without_bos: bool,
}

/// Positions of a row. Negative ones count from the row's last token, -1, so padding never counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Positions {
    /// All.
    All,
    /// From `start` until before `end`, every `step`-th: a slice of Python.
    Slice {
        /// The first.
        start: i64,
        /// The end, which is not meant; none for the row's.
        end: Option<i64>,
        /// The distance, at least 1.
        step: usize,
    },
    /// These, as far as a row has them.
    These(Vec<i64>),
}

impl PositionSelection {
    /// All positions.
    pub fn all() -> Self {
        PositionSelection { of: Positions::All, without_bos: false }
    }

    /// The positions that are meant of a row with `len` tokens, in order.
    pub fn of_row(&self, len: usize) -> Vec<usize> {
        let from_start = |at: i64| if at < 0 { at + len as i64 } else { at };
        match &self.of {
            Positions::All => (0..len).collect(),
            Positions::Slice { start, end, step } => {
                let bounded = |at: i64| from_start(at).clamp(0, len as i64) as usize;
                (bounded(*start)..end.map_or(len, bounded)).step_by((*step).max(1)).collect()
            }
            Positions::These(these) => {
                let mut of_row: Vec<usize> = these
                    .iter()
                    .map(|&at| from_start(at))
                    .filter(|at| (0..len as i64).contains(at))
                    .map(|at| at as usize)
                    .collect();
                of_row.sort_unstable();
                of_row.dedup();
                of_row
            }
        }
    }
}

/// The files of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `activations/NNNNNN.parquet`: a table.
    Parquet,
    /// `activations/NNNNNN.safetensors`: a tensor a column.
    Safetensors,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "parquet" => Ok(Format::Parquet),
            "safetensors" => Ok(Format::Safetensors),
            _ => Err(Error::Setting(format!("there is no format `{text}`: choose parquet or safetensors"))),
        }
    }
}
