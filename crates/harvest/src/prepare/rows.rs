//! Documents become rows of tokens.

use tch_lens::{Tokenizer, TokenizerError};

use crate::manifest::{Boundaries, LongDocuments, Manifest, Rows};
use crate::{Error, Result};

/// A token of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: i64,
    /// The number of its document in the corpus. A BOS token belongs to the document that follows it, EOS to the one that ends.
    pub(crate) document: u64,
    /// Where it lies in the document's text, in bytes; none of BOS, EOS and of a corpus that is tokenised already.
    pub(crate) text: Option<(u64, u64)>,
}

/// Cuts documents into rows.
pub(crate) struct Cutter {
    rows: Rows,
    context: usize,
    boundaries: Boundaries,
    bos: Option<i64>,
    eos: Option<i64>,
    done: Vec<Vec<Token>>,
    row: Vec<Token>,
}

impl Cutter {
    pub(crate) fn new(manifest: &Manifest, tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let boundaries = manifest.boundaries;
        let bos = tokenizer.and_then(Tokenizer::bos_id);
        let eos = tokenizer.and_then(Tokenizer::eos_id);
        if (boundaries.bos_before_documents || boundaries.bos_before_rows) && bos.is_none() {
            return Err(tch_lens::Error::from(TokenizerError::NoBosToken).into());
        }
        if boundaries.eos_after_documents && eos.is_none() {
            return Err(Error::Setting(
                "the tokenizer has no EOS token to put after documents: leave `--eos` out".into(),
            ));
        }
        if manifest.context < 1 + usize::from(boundaries.bos_before_rows) {
            return Err(Error::Setting(
                "a row of this context has no place for a token beside BOS: choose a longer one".into(),
            ));
        }
        let (rows, context) = (manifest.rows, manifest.context);
        Ok(Cutter { rows, context, boundaries, bos, eos, done: Vec::new(), row: Vec::new() })
    }

    /// Adds a document. One without tokens is left out.
    pub(crate) fn add(&mut self, document: u64, tokens: Vec<Token>) -> Result<()> {
        if tokens.is_empty() {
            return Ok(());
        }
        let special =
            |id: Option<i64>, wanted: bool| id.filter(|_| wanted).map(|id| Token { id, document, text: None });
        let first = special(self.bos, self.boundaries.bos_before_documents);
        let last = special(self.eos, self.boundaries.eos_after_documents);
        if let Rows::Documents { long } = self.rows {
            let begins = first.is_some() || self.boundaries.bos_before_rows;
            let len = tokens.len() + usize::from(begins) + usize::from(last.is_some());
            if len > self.context && long == LongDocuments::Refuse {
                return Err(Error::LongDocument { document, tokens: len, context: self.context });
            }
        }
        for (n, token) in first.into_iter().chain(tokens).chain(last).enumerate() {
            if self.row.is_empty() && self.boundaries.bos_before_rows && !(n == 0 && first.is_some()) {
                self.row.extend(special(self.bos, true));
            }
            self.row.push(token);
            if self.row.len() == self.context {
                self.end_row();
                if self.rows == (Rows::Documents { long: LongDocuments::Truncate }) {
                    return Ok(());
                }
            }
        }
        if let Rows::Documents { .. } = self.rows {
            self.end_row();
        }
        Ok(())
    }

    fn end_row(&mut self) {
        if !self.row.is_empty() {
            self.done.push(std::mem::take(&mut self.row));
        }
    }

    pub(crate) fn finish(mut self) -> Vec<Vec<Token>> {
        self.end_row();
        self.done
    }
}
