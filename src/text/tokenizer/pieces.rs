//! [`Pieces`]: the text of each token by itself, a different one for each, so that the text leads back to the token.

use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Decoder, Tokenizer};

use super::byte_level;
use super::special::content;

/// The text of each token, and the token of each text.
///
/// A token's text is what it adds to a decoded text, with its space. Where that says too little, it is another one:
///
/// - Bytes that are only part of a character are written out: `<0xE2>`.
/// - Of several tokens with the same text, one has it: the one that the text is encoded to, else one that is not a byte
///   (`<0x41>` is `A`, too), else the first. The others have the form that the vocabulary writes them in, if that is no other text, or their number.
/// - An id without a token has its number: `<id 7>`.
#[derive(Debug)]
pub(super) struct Pieces {
    texts: Vec<Box<str>>,
    /// The ids in the alphabetical order of their texts.
    sorted: Vec<u32>,
}

impl Pieces {
    /// The texts of ids `0..vocab_size`.
    pub(super) fn new(tokenizer: &Tokenizer, decoder: &PieceDecoder, vocab_size: usize) -> Self {
        let ids = (0..vocab_size).map_while(|id| u32::try_from(id).ok());
        let text = |id: u32| text(tokenizer, decoder, id).unwrap_or_else(|| numbered(id.into()));
        let texts = ids.map(|id| text(id).into_boxed_str()).collect();
        let mut pieces = Pieces { texts, sorted: Vec::new() };
        pieces.sort();
        let mut renamed = Vec::new();
        for ids in pieces.sorted.chunk_by(|one, other| pieces.texts[*one as usize] == pieces.texts[*other as usize]) {
            if let [first, _, ..] = ids {
                let owner = owner(tokenizer, &pieces.texts[*first as usize], ids);
                renamed.extend(ids.iter().copied().filter(|id| *id != owner));
            }
        }
        renamed.sort_unstable();
        let mut taken = BTreeMap::new(); // the new forms
        for id in renamed {
            let is_taken = |form: &String| pieces.id(form).is_some() || taken.contains_key(form);
            // A byte-level vocabulary writes bytes as characters that mean others in a text.
            let written = content(tokenizer, id).filter(|form| !decoder.byte_level && !form.is_empty());
            let mut form = written.filter(|form| !is_taken(form)).unwrap_or_else(|| numbered(id.into()));
            while is_taken(&form) {
                form.push('\''); // of a vocabulary with a token `<id 7>`
            }
            taken.insert(form, id);
        }
        let any_renamed = !taken.is_empty();
        for (form, id) in taken {
            pieces.texts[id as usize] = form.into_boxed_str();
        }
        if any_renamed {
            pieces.sort();
        }
        pieces
    }

    fn sort(&mut self) {
        self.sorted = (0..).take(self.texts.len()).collect();
        let text = |id: &u32| &self.texts[*id as usize];
        self.sorted.sort_unstable_by(|one, other| text(one).cmp(text(other)).then(one.cmp(other)));
    }

    /// The text of a token.
    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(|text| &**text)
    }

    /// The token of a text.
    pub(super) fn id(&self, text: &str) -> Option<u32> {
        let found = self.sorted.binary_search_by(|id| self.texts[*id as usize].as_ref().cmp(text));
        found.ok().map(|place| self.sorted[place])
    }
}

/// A token that has no text, by its number.
pub(super) fn numbered(id: i64) -> String {
    format!("<id {id}>")
}

/// The number of a token written by its number.
pub(super) fn number(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("<id ")?.strip_suffix('>')?;
    digits.parse().ok().filter(|id: &u32| numbered((*id).into()) == text)
}

/// What a token adds to a text; `None` for an id without a token.
fn text(tokenizer: &Tokenizer, decoder: &PieceDecoder, id: u32) -> Option<String> {
    let content = content(tokenizer, id)?;
    if tokenizer.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
        return Some(content); // found in a text as it is, and not decoded
    }
    decoder.decode(&content).filter(|text| !text.is_empty()).or(Some(content))
}

/// Which of several tokens with the same text has it.
fn owner(tokenizer: &Tokenizer, text: &str, ids: &[u32]) -> u32 {
    let encoded = tokenizer.encode_fast(text, false).ok();
    let encoded = encoded.and_then(|encoding| match encoding.get_ids() {
        [id] if ids.contains(id) => Some(*id),
        _ => None,
    });
    let is_byte = |id: &&u32| content(tokenizer, **id).is_some_and(|content| byte_fallback(&content).is_some());
    encoded.or_else(|| ids.iter().find(|id| !is_byte(id)).copied()).unwrap_or(ids[0])
}

/// The byte that `<0x0A>` stands for, in vocabularies that fall back to bytes.
pub(super) fn byte_fallback(content: &str) -> Option<u8> {
    let digits = content.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// The decoder of one token by itself: it keeps the space before a word.
#[derive(Debug)]
pub(super) struct PieceDecoder {
    /// Absent where a token is its own text.
    decoder: Option<DecoderWrapper>,
    /// Whether a character of a token stands for a byte, as in GPT-2's vocabulary.
    byte_level: bool,
    /// Whether consecutive tokens such as `<0x0A>` are joined to characters.
    byte_fallback: bool,
}

impl PieceDecoder {
    /// From a `tokenizer.json`'s field `decoder`.
    pub(super) fn from_json(decoder: &Value) -> serde_json::Result<Self> {
        let byte_level = |part: &Value| part["type"] == "ByteLevel";
        let byte_fallback = |part: &Value| part["type"] == "ByteFallback";
        let parts = decoder["decoders"].as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(PieceDecoder {
            decoder: serde_json::from_value(space_keeping(decoder.clone()))?,
            byte_level: byte_level(decoder) || parts.iter().any(byte_level),
            byte_fallback: byte_fallback(decoder) || parts.iter().any(byte_fallback),
        })
    }

    /// Whether consecutive tokens such as `<0x0A>` are joined to characters.
    pub(super) fn joins_bytes(&self) -> bool {
        self.byte_fallback
    }

    /// A token's text; `None` where the decoder refuses it, or loses bytes that are no character of their own.
    fn decode(&self, content: &str) -> Option<String> {
        let Some(decoder) = &self.decoder else { return Some(content.into()) };
        let text = decoder.decode(vec![content.into()]).ok()?;
        if !text.contains('\u{fffd}') {
            return Some(text);
        }
        match self.byte_level.then(|| byte_level::bytes(content)).flatten() {
            Some(bytes) => Some(byte_level::escaped(&bytes)),
            None => Some(text).filter(|_| content.contains('\u{fffd}')),
        }
    }
}

/// `decoder` without what takes the space off the first word of a text.
fn space_keeping(mut decoder: Value) -> Value {
    let strips = |part: &Value| part["type"] == "Strip" && part["content"] == " ";
    if strips(&decoder) {
        return Value::Null;
    }
    if decoder["type"] == "Metaspace" {
        decoder["prepend_scheme"] = "never".into();
    }
    if let Some(parts) = decoder.get_mut("decoders").and_then(Value::as_array_mut) {
        parts.retain(|part| !strips(part));
        for part in parts {
            *part = space_keeping(part.take());
        }
    }
    decoder
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_piece_decoder_keeps_the_space() {
        let strip = json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 });
        let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
        assert_eq!(space_keeping(strip.clone()), Value::Null);
        let kept = space_keeping(json!({ "type": "Sequence", "decoders": [metaspace, strip] }));
        assert_eq!(kept["decoders"].as_array().unwrap().len(), 1);
        assert_eq!(kept["decoders"][0]["prepend_scheme"], "never");
        assert_eq!(PieceDecoder::from_json(&kept).unwrap().decode("▁go").as_deref(), Some(" go"));
    }

    #[test]
    fn a_number_is_read_as_it_is_written() {
        assert_eq!(number(&numbered(50300)), Some(50300));
        for other in ["<id 07>", "<id +7>", "<id -1>", "<id 7", "id 7", "<id >", "<id 4294967296>", ""] {
            assert_eq!(number(other), None, "{other}");
        }
        assert_eq!((byte_fallback("<0x0A>"), byte_fallback("<0xa>"), byte_fallback("0x0A")), (Some(10), None, None));
    }
}
