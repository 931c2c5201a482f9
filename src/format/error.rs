//! [`FormatError`]: what is wrong with the contents of a file.

/// Text of a file, such that a message with it stays short and prints on one line.
pub(super) fn quoted(text: &str) -> String {
    let mut short: String = text.chars().take(100).flat_map(char::escape_default).collect();
    if text.chars().nth(100).is_some() {
        short.push('…');
    }
    short
}

/// Why a file is not read. [`Error::Malformed`](crate::Error::Malformed) carries it as its source, beside the file's path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A file, or a part of one, ends before what it announces.
    #[error("{part} ends too early: the file is cut short")]
    Truncated {
        /// What ends.
        part: &'static str,
    },
    /// Bytes that the format does not allow.
    #[error("{part} {what}")]
    Corrupt {
        /// The part of the file, as the subject of a sentence.
        part: &'static str,
        /// What it does, as the rest of that sentence.
        what: &'static str,
    },
    /// A pickle names a function that rebuilds no tensor. Nothing was called.
    #[error("the pickle wants to call `{function}`: refused")]
    Refused {
        /// The function, as `module.name`.
        function: String,
    },
    /// A feature of the format that this reader does not have.
    #[error("{part} {what}, which is not supported")]
    Unsupported {
        /// The part of the file, as the subject of a sentence.
        part: String,
        /// What it does, as the rest of that sentence.
        what: String,
    },
    /// A part of a file that the format requires and the file does not have.
    #[error("the file has no {part}")]
    Missing {
        /// The part.
        part: String,
    },
    /// A part of a file that should be there once.
    #[error("the file has {part} twice")]
    Duplicate {
        /// The part.
        part: String,
    },
    /// A part of a file that lies, in whole or in part, outside the file or the part that contains it.
    #[error("{part} lies outside {container}")]
    OutOfBounds {
        /// The part.
        part: String,
        /// What should contain it.
        container: String,
    },
    /// Parts of a file that lie over each other, which would let a small file claim any size.
    #[error("{first} and {second} overlap in the file")]
    Overlap {
        /// The part that begins first.
        first: String,
        /// The other.
        second: String,
    },
    /// A file that would take more memory, or time, than its length accounts for.
    #[error("{part} {what}, more than any checkpoint needs")]
    Excessive {
        /// The part of the file, as the subject of a sentence.
        part: &'static str,
        /// What it does, as the rest of that sentence.
        what: String,
    },
    /// A safetensors file with a broken header.
    #[error("this is not a whole safetensors file: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    /// A JSON file with broken contents.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

impl FormatError {
    pub(super) fn corrupt(part: &'static str, what: &'static str) -> Self {
        FormatError::Corrupt { part, what }
    }

    pub(super) fn unsupported(part: impl Into<String>, what: impl Into<String>) -> Self {
        FormatError::Unsupported { part: part.into(), what: what.into() }
    }

    /// A quantised weight of another size than its name implies.
    pub(crate) fn quantized_shape(expected: &[i64], found: [usize; 2]) -> Self {
        FormatError::Unsupported {
            part: "a quantised weight".into(),
            what: format!("has {} rows of {} where shape {expected:?} is expected", found[0], found[1]),
        }
    }

    pub(super) fn missing(part: impl Into<String>) -> Self {
        FormatError::Missing { part: part.into() }
    }

    pub(super) fn duplicate(part: impl Into<String>) -> Self {
        FormatError::Duplicate { part: part.into() }
    }

    pub(super) fn out_of_bounds(part: impl Into<String>, container: impl Into<String>) -> Self {
        FormatError::OutOfBounds { part: part.into(), container: container.into() }
    }
}
