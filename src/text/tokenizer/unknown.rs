//! Words that a vocabulary does not have.

use serde_json::Value;
use tokenizers::{Encoding, Tokenizer};

use super::byte_level::byte_char;
use super::special::content;
use crate::{Error, Result, UnknownWord};

/// What a tokenizer does with words that its vocabulary does not have.
#[derive(Debug)]
pub(super) struct Unknowns {
    /// The token that they become.
    token: Option<u32>,
    /// Whether characters are left out instead.
    drops: Drops,
}

/// What a byte-pair encoding leaves out of a text, which it does without a token for unknown words.
#[derive(Debug, PartialEq)]
enum Drops {
    Nothing,
    /// Whatever no token covers.
    Uncovered,
    /// These bytes, of which its vocabulary of bytes has no token.
    Bytes(Vec<u8>),
}

impl Unknowns {
    /// From a parsed `tokenizer.json`.
    pub(super) fn new(tokenizer: &Tokenizer, json: &Value) -> Self {
        let model = &json["model"];
        let by_name = model["unk_token"].as_str().and_then(|token| tokenizer.token_to_id(token));
        let by_id = model["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let token = by_name.or(by_id);
        let byte_pairs = model["merges"].is_array();
        let drops = if !byte_pairs || token.is_some() || model["byte_fallback"] == true {
            Drops::Nothing
        } else if uses_byte_level(&json["pre_tokenizer"]) || uses_byte_level(&json["normalizer"]) {
            let has = |byte: &u8| tokenizer.token_to_id(&byte_char(*byte).to_string()).is_some();
            match (0..=255).filter(|byte| !has(byte)).collect::<Vec<u8>>() {
                missing if missing.is_empty() => Drops::Nothing,
                missing => Drops::Bytes(missing),
            }
        } else {
            Drops::Uncovered
        };
        Unknowns { token, drops }
    }

    /// The token that stands for such words.
    pub(super) fn token(&self) -> Option<u32> {
        self.token
    }

    /// Whether `text`, which was encoded to `encoding`, may have such words.
    pub(super) fn possible(&self, text: &str, encoding: &Encoding) -> bool {
        let dropped = match &self.drops {
            Drops::Nothing => false,
            Drops::Uncovered => true,
            Drops::Bytes(missing) => text.bytes().any(|byte| missing.contains(&byte)),
        };
        dropped || self.token.is_some_and(|token| encoding.get_ids().contains(&token))
    }

    /// The words of `text` without a token, in order. The token that stands for them may itself be written out in a text.
    pub(super) fn find(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<UnknownWord>> {
        let encoding = tokenizer.encode(text, false).map_err(Error::tokenizer)?; // with offsets, in bytes
        let tokens = || encoding.get_ids().iter().copied().zip(encoding.get_offsets().iter().copied());
        let mut ranges = Vec::new();
        let name = self.token.and_then(|token| content(tokenizer, token));
        for (id, (start, end)) in tokens().filter(|(id, _)| Some(*id) == self.token) {
            let written_out =
                content(tokenizer, id).is_some_and(|name| text.get(start..end).map(str::trim) == Some(&name));
            if !written_out {
                ranges.push(start..end);
            }
        }
        match &self.drops {
            Drops::Nothing => {}
            Drops::Uncovered => {
                let mut covered = 0;
                for (start, end) in encoding.get_offsets().iter().copied().chain([(text.len(), text.len())]) {
                    if covered < start {
                        ranges.push(covered..start);
                    }
                    covered = covered.max(end);
                }
            }
            Drops::Bytes(missing) => {
                let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
                let added: Vec<_> = tokens().filter(|(id, _)| added.contains_key(id)).collect();
                for (start, c) in text.char_indices() {
                    let range = start..start + c.len_utf8();
                    let within = |(_, (start, end)): &(u32, (usize, usize))| *start <= range.start && range.end <= *end;
                    if text[range.clone()].bytes().any(|byte| missing.contains(&byte)) && !added.iter().any(within) {
                        ranges.push(range);
                    }
                }
            }
        }
        let words = ranges.into_iter().filter_map(|range| {
            let word = text.get(range.clone())?;
            let start = range.start + word.len() - word.trim_start().len();
            let position = text.get(..start)?.chars().count();
            Some(UnknownWord { word: word.trim().into(), position, becomes: name.clone() })
        });
        // White space between words is left out by design.
        Ok(words.filter(|word| !word.word.is_empty()).collect())
    }
}

/// Whether characters stand for bytes after this step.
fn uses_byte_level(step: &Value) -> bool {
    let within = |field: &str| step[field].as_array().is_some_and(|steps| steps.iter().any(uses_byte_level));
    step["type"] == "ByteLevel" || within("pretokenizers") || within("normalizers")
}
