//! [`TokenSpan`]: where a token lies in its text.

use std::ops::Range;

use super::Tokenizer;
use crate::{Error, Result};

/// A token and the part of the text that it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSpan {
    /// The token.
    pub id: i64,
    /// Where it lies in the text, in bytes, always between characters: `&text[span.bytes]`. A BOS token that was put first is
    /// empty, at 0. Tokens of one character's bytes have all of it each. Whether a space before a word belongs to it is the
    /// tokenizer's choice.
    pub bytes: Range<usize>,
    /// The same in characters, as Python counts: transformers' `offset_mapping`.
    pub chars: Range<usize>,
}

impl Tokenizer {
    /// The tokens of `text`, as [`encode`](Tokenizer::encode) gives them, and where each lies in it.
    ///
    /// ```
    /// use tch_lens::HookedTransformer;
    /// let model = HookedTransformer::toy()?;
    /// let text = "Mary and John";
    /// let spans = model.tokenizer()?.encode_spans(text, true)?;
    /// assert_eq!(spans[1].chars, 0..4);
    /// assert_eq!(&text[spans[3].bytes.clone()], " John");
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`encode`](Tokenizer::encode).
    pub fn encode_spans(&self, text: &str, prepend_bos: bool) -> Result<Vec<TokenSpan>> {
        let encoding = self.inner.tokenizer.encode(text, false).map_err(Error::tokenizer)?;
        let ids = self.ids(text, &encoding, prepend_bos)?;
        // The last entry is the text's end.
        let starts: Vec<usize> = text.char_indices().map(|(start, _)| start).chain([text.len()]).collect();
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| {
            // A normaliser can leave offsets within a character: all of it is meant.
            let first = starts.partition_point(|&at| at <= start).saturating_sub(1);
            first..starts.partition_point(|&at| at < end).min(starts.len() - 1).max(first)
        });
        let bos = (ids.len() > encoding.len()).then_some(0..0);
        let span =
            |(id, chars): (i64, Range<usize>)| TokenSpan { id, bytes: starts[chars.start]..starts[chars.end], chars };
        Ok(ids.into_iter().zip(bos.into_iter().chain(offsets)).map(span).collect())
    }
}
