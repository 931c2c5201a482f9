//! [`Tokenizer`]: text to token ids and back, as TransformerLens does it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::{json, Value};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::{Decoder, Encoding};

use crate::{Error, Result};

/// Whether the BOS token is put first: TransformerLens' `prepend_bos`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bos {
    /// As the model's `default_prepend_bos` says; not at all where the tokenizer has no BOS token.
    #[default]
    Default,
    /// Exactly one, whatever the tokenizer does by itself.
    Yes,
    /// None, whatever the tokenizer does by itself.
    No,
}

/// On which side the shorter rows of a batch are padded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PaddingSide {
    /// After the text, so that a token keeps its position.
    #[default]
    Right,
    /// Before the text, so that the last position of every row is its last token.
    Left,
}

/// A `tokenizer.json`, together with what the files beside it say of its special tokens.
///
/// It never truncates and never pads, whatever its file says, and it puts no special token around a text
/// but the BOS token, where asked. Special tokens that are written out in a text are recognised.
/// A clone shares the vocabulary.
///
/// ```
/// use tch_lens::HookedTransformer;
///
/// let model = HookedTransformer::toy()?;
/// let tokenizer = model.tokenizer()?;
/// let ids = tokenizer.encode("Mary and John", true)?;
/// assert_eq!(tokenizer.str_tokens(&ids)?, ["<|endoftext|>", "Mary", " and", " John"]);
/// assert_eq!(tokenizer.single_token(" John")?, ids[3]);
/// assert_eq!(tokenizer.decode(&ids[1..])?, "Mary and John");
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    /// The decoder for one token by itself: it keeps the space before a word.
    piece_decoder: Option<DecoderWrapper>,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    unknown: Option<u32>,
}

/// GPT-2's only special token, which TransformerLens takes where a tokenizer names no EOS token.
const END_OF_TEXT: &str = "<|endoftext|>";

impl Tokenizer {
    /// The tokenizer of a model's folder, or `None` where the folder has no `tokenizer.json`.
    ///
    /// The BOS, EOS and padding tokens are the first that the vocabulary has of those named in
    /// `tokenizer_config.json`, `special_tokens_map.json` and `config.json`. Where none names a BOS token, it is
    /// what the tokenizer itself puts before a text, else the EOS token.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for a file that cannot be read, [`Error::Malformed`] for one that is not what its name says.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("tokenizer.json");
        let Some(json) = read_json(&path)? else { return Ok(None) };
        let mut sources = Vec::new();
        for name in ["tokenizer_config.json", "special_tokens_map.json", "config.json"] {
            sources.extend(read_json(&folder.join(name))?);
        }
        Self::new(json, &sources).map(Some).map_err(|what| Error::malformed(path, what))
    }

    /// The tokenizer of a `tokenizer.json` alone; the files beside it are not read.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for a file that cannot be read, [`Error::Malformed`] for one that is no tokenizer.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = std::fs::read(path).map_err(Error::io(path))?;
        let json = serde_json::from_slice(&bytes).map_err(|what| Error::malformed(path, what))?;
        Self::new(json, &[]).map_err(|what| Error::malformed(path, what))
    }

    /// The tokenizer of the contents of a `tokenizer.json` and, where there is one, a `tokenizer_config.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] for bytes that are no such files.
    pub fn from_bytes(tokenizer_json: &[u8], tokenizer_config: Option<&[u8]>) -> Result<Self> {
        let parse = |bytes| serde_json::from_slice::<Value>(bytes).map_err(failed);
        let sources: Vec<Value> = tokenizer_config.map(parse).transpose()?.into_iter().collect();
        Self::new(parse(tokenizer_json)?, &sources).map_err(failed)
    }

    /// From the parsed `tokenizer.json`, and the files that may name special tokens, the first to be believed first.
    ///
    /// The file is parsed on its own first: the tokenizers crate panics on broken JSON in some places.
    fn new(mut json: Value, sources: &[Value]) -> serde_json::Result<Self> {
        if let Some(fields) = json.as_object_mut() {
            fields.remove("truncation");
            fields.remove("padding");
        }
        let piece_decoder = serde_json::from_value(space_keeping(json["decoder"].clone()))?;
        let unk_token = json["model"]["unk_token"].as_str().map(String::from);
        let unk_id = json["model"]["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok());
        let tokenizer: tokenizers::Tokenizer = serde_json::from_value(json)?;

        let eos = declared(&tokenizer, sources, "eos").or_else(|| tokenizer.token_to_id(END_OF_TEXT));
        let bos = declared(&tokenizer, sources, "bos").or_else(|| put_first(&tokenizer)).or(eos);
        let pad = declared(&tokenizer, sources, "pad");
        let unknown = unk_token.and_then(|token| tokenizer.token_to_id(&token)).or(unk_id);
        // Ids may have gaps, so the number of tokens would not do.
        let vocab_size = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        Ok(Tokenizer { inner: Arc::new(Inner { tokenizer, piece_decoder, vocab_size, bos, eos, pad, unknown }) })
    }

    /// The token ids of `text`: TransformerLens' `to_tokens`.
    ///
    /// `prepend_bos` puts exactly one BOS token first. One that is written out in `text` is a token of the text,
    /// and stays beside it.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if the tokenizer refuses the text, or has no BOS token to put first.
    pub fn encode(&self, text: &str, prepend_bos: bool) -> Result<Vec<i64>> {
        let encoding = self.inner.tokenizer.encode_fast(text, false).map_err(failed)?;
        self.ids(&encoding, prepend_bos)
    }

    /// The token ids of each of `texts`, of as many lengths as they have.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_batch(&self, texts: &[&str], prepend_bos: bool) -> Result<Vec<Vec<i64>>> {
        let encodings = self.inner.tokenizer.encode_batch_fast(texts.to_vec(), false).map_err(failed)?;
        encodings.iter().map(|encoding| self.ids(encoding, prepend_bos)).collect()
    }

    fn ids(&self, encoding: &Encoding, prepend_bos: bool) -> Result<Vec<i64>> {
        let bos = match (prepend_bos, self.inner.bos) {
            (true, None) => {
                let what = "it has no BOS token to put first: use `Bos::No`, or name a `bos_token` in its config";
                return Err(Error::Tokenizer(what.into()));
            }
            (true, bos) => bos,
            (false, _) => None,
        };
        Ok(bos.iter().chain(encoding.get_ids()).map(|&id| id.into()).collect())
    }

    /// The text of `ids`, special tokens kept: TransformerLens' `to_string`.
    ///
    /// # Errors
    ///
    /// [`Error::TokenOutOfRange`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids = ids.iter().map(|&id| self.checked(id)).collect::<Result<Vec<_>>>()?;
        self.inner.tokenizer.decode(&ids, false).map_err(failed)
    }

    /// Each token's text: TransformerLens' `to_str_tokens`.
    ///
    /// A space before a word is shown as a space, also where TransformerLens drops it (Llama's tokenizer and its
    /// like). A token of some of a character's bytes is U+FFFD. An id without a token is empty.
    ///
    /// # Errors
    ///
    /// [`Error::TokenOutOfRange`] for an id outside the vocabulary.
    pub fn str_tokens(&self, ids: &[i64]) -> Result<Vec<String>> {
        ids.iter().map(|&id| self.single_str_token(id)).collect()
    }

    /// The text of one token.
    pub(crate) fn single_str_token(&self, id: i64) -> Result<String> {
        let Some(token) = self.inner.tokenizer.id_to_token(self.checked(id)?) else { return Ok(String::new()) };
        match &self.inner.piece_decoder {
            Some(decoder) => decoder.decode(vec![token]).map_err(failed),
            None => Ok(token),
        }
    }

    /// The id of a text that is exactly one token: TransformerLens' `to_single_token`.
    ///
    /// Mind the space: in most vocabularies `" road"` and `"road"` are different tokens.
    ///
    /// # Errors
    ///
    /// [`Error::NotOneToken`] with the pieces, if `text` is more or fewer tokens; [`Error::Tokenizer`] if it is
    /// one only as the token for what is not in the vocabulary.
    pub fn single_token(&self, text: &str) -> Result<i64> {
        let ids = self.encode(text, false)?;
        if let [id] = ids[..] {
            if self.stands_for(id, text) {
                return Ok(id);
            }
        }
        let other = match text.strip_prefix(' ') {
            Some(without) => without.to_string(),
            None => format!(" {text}"),
        };
        let one = matches!(self.encode(&other, false)?[..], [id] if self.stands_for(id, &other));
        let hint = if one { format!("; `{other}` is one") } else { String::new() };
        if ids.len() == 1 {
            return Err(Error::Tokenizer(format!("`{text}` is no token of its vocabulary{hint}")));
        }
        let pieces: Vec<String> = self.str_tokens(&ids)?.iter().map(|piece| format!("`{piece}`")).collect();
        Err(Error::NotOneToken { text: text.into(), count: ids.len(), pieces: pieces.join(", "), hint })
    }

    /// Whether `id`, to which `text` was encoded, says more than that the vocabulary lacks `text`.
    fn stands_for(&self, id: i64, text: &str) -> bool {
        let unknown = self.inner.unknown.filter(|&unknown| i64::from(unknown) == id);
        unknown.is_none_or(|unknown| self.inner.tokenizer.id_to_token(unknown).as_deref() == Some(text))
    }

    fn checked(&self, id: i64) -> Result<u32> {
        let d_vocab = self.inner.vocab_size;
        let known = u32::try_from(id).ok().filter(|&id| (id as usize) < d_vocab);
        known.ok_or(Error::TokenOutOfRange { id, d_vocab })
    }

    /// The token that begins a text.
    pub fn bos_id(&self) -> Option<i64> {
        self.inner.bos.map(i64::from)
    }

    /// The token that ends a text.
    pub fn eos_id(&self) -> Option<i64> {
        self.inner.eos.map(i64::from)
    }

    /// The token that fills up a batch: the padding token, else EOS, else BOS, else 0. It is masked in any case.
    pub fn pad_id(&self) -> i64 {
        self.inner.pad.or(self.inner.eos).or(self.inner.bos).unwrap_or(0).into()
    }

    /// One more than the largest id, added tokens included. A model's `d_vocab` may be larger.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    /// The contents of its `tokenizer.json`.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if it cannot be written as JSON.
    pub fn json(&self) -> Result<String> {
        self.inner.tokenizer.to_string(false).map_err(failed)
    }

    /// The contents of a `tokenizer_config.json` that names the special tokens, which [`json`](Self::json) does not.
    pub fn config_json(&self) -> String {
        let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false });
        let Inner { bos, eos, pad, .. } = *self.inner;
        for (name, id) in [("bos_token", bos), ("eos_token", eos), ("pad_token", pad)] {
            if let Some(token) = id.and_then(|id| self.inner.tokenizer.id_to_token(id)) {
                config[name] = token.into();
            }
        }
        config.to_string()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { vocab_size, bos, eos, pad, .. } = &*self.inner;
        let mut shown = f.debug_struct("Tokenizer");
        shown.field("vocab_size", vocab_size).field("bos", bos).field("eos", eos).field("pad", pad);
        shown.finish_non_exhaustive()
    }
}

fn failed(error: impl ToString) -> Error {
    Error::Tokenizer(error.to_string())
}

/// A JSON file, or `None` where there is none.
fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|what| Error::malformed(path, what)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path)(error)),
    }
}

/// The first token for `role` that the vocabulary has: a `bos_token`, as a string or an object, or a `bos_token_id`.
fn declared(tokenizer: &tokenizers::Tokenizer, sources: &[Value], role: &str) -> Option<u32> {
    sources.iter().find_map(|source| {
        let (token, id) = (&source[format!("{role}_token")], &source[format!("{role}_token_id")]);
        let id = if id.is_array() { &id[0] } else { id }; // Llama 3 has several EOS tokens
        let name = token.as_str().or_else(|| token["content"].as_str());
        let by_name = name.and_then(|name| tokenizer.token_to_id(name));
        let by_id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let found = by_name.or(by_id.filter(|&id| tokenizer.id_to_token(id).is_some()));
        if found.is_none() && !(token.is_null() && id.is_null()) {
            tracing::warn!(%token, %id, "the tokenizer lacks the {role} token that its configuration names");
        }
        found
    })
}

/// The special token that the tokenizer by itself puts before a text.
fn put_first(tokenizer: &tokenizers::Tokenizer) -> Option<u32> {
    let encoding = tokenizer.encode_fast("a", true).ok()?;
    let special = *encoding.get_special_tokens_mask().first()? == 1;
    encoding.get_ids().first().copied().filter(|_| special)
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
    use super::*;

    fn added(id: u32, content: &str) -> Value {
        json!({ "id": id, "content": content, "special": true, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false })
    }

    /// A word is a token; no decoder; a file that asks for truncation and padding.
    fn words() -> Value {
        json!({
            "version": "1.0",
            "truncation": { "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0 },
            "padding": { "strategy": { "Fixed": 8 }, "direction": "Right", "pad_to_multiple_of": null,
                         "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>" },
            "added_tokens": [added(0, "<s>"), added(1, "<pad>")],
            "normalizer": null, "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "unk_token": "<unk>",
                       "vocab": { "<s>": 0, "<pad>": 1, "<unk>": 2, "the": 3, "road": 4, "ends": 7 } },
        })
    }

    /// As GPT-2's: `Ġ` is a space, `Ã` and `©` are the bytes of `é`.
    fn bytes() -> Value {
        json!({
            "version": "1.0", "added_tokens": [added(9, "<|endoftext|>")], "normalizer": null,
            "pre_tokenizer": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": { "type": "BPE", "merges": [["g", "o"], ["Ġ", "go"]],
                       "vocab": { "g": 0, "o": 1, "Ġ": 2, "go": 3, "Ġgo": 4, "Ã": 5, "©": 6,
                                  "!": 7, "Ċ": 8 } },
        })
    }

    /// As Llama's: `▁` is a space and stands before every text, other characters fall back to bytes, BOS is put first.
    fn llama() -> Value {
        let mut vocab = json!({ "<unk>": 0, "<s>": 1, "</s>": 2, "▁": 259, "g": 260, "o": 261, "go": 262,
                                "▁go": 263 });
        for byte in 0..256 {
            vocab[format!("<0x{byte:02X}>")] = json!(byte + 3);
        }
        let bos = json!({ "SpecialToken": { "id": "<s>", "type_id": 0 } });
        let first = json!([bos, { "Sequence": { "id": "A", "type_id": 0 } }]);
        json!({
            "version": "1.0", "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>")],
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": "▁" }, { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
            ] },
            "post_processor": { "type": "TemplateProcessing", "single": first, "pair": first,
                                "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" },
                { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ] },
            "model": { "type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true, "vocab": vocab,
                       "merges": [["g", "o"], ["▁", "go"]] },
        })
    }

    fn tokenizer(json: Value, config: Value) -> Tokenizer {
        Tokenizer::from_bytes(json.to_string().as_bytes(), Some(config.to_string().as_bytes())).unwrap()
    }

    #[test]
    fn words_are_neither_truncated_nor_padded() {
        let t = tokenizer(words(), json!({ "bos_token": { "content": "<s>" }, "pad_token": "<pad>" }));
        assert_eq!(t.encode("the road ends", true).unwrap(), [0, 3, 4, 7]);
        assert_eq!(t.encode_batch(&["the", "", "<s> road x"], true).unwrap(), [vec![0, 3], vec![0], vec![0, 0, 4, 2]]);
        assert_eq!(t.decode(&[0, 3, 4]).unwrap(), "<s> the road");
        assert_eq!(t.str_tokens(&[0, 3, 5]).unwrap(), ["<s>", "the", ""]);
        assert_eq!((t.bos_id(), t.eos_id(), t.pad_id(), t.vocab_size()), (Some(0), None, 1, 8));
        assert_eq!((t.single_token("road").unwrap(), t.single_token("<unk>").unwrap()), (4, 2));
        let error = t.single_token("rode").unwrap_err().to_string();
        assert_eq!(error, "the tokenizer failed: `rode` is no token of its vocabulary");
    }

    #[test]
    fn byte_level_pieces_join_to_the_text() {
        let t = tokenizer(bytes(), json!({}));
        let ids = t.encode("go go!\n go", false).unwrap();
        assert_eq!(ids, [3, 4, 7, 8, 4]);
        assert_eq!(t.str_tokens(&ids).unwrap(), ["go", " go", "!", "\n", " go"]);
        assert_eq!(t.str_tokens(&[5, 6]).unwrap(), ["\u{fffd}", "\u{fffd}"]);
        assert_eq!(t.decode(&[9, 5, 6]).unwrap(), "<|endoftext|>é");
        assert_eq!(t.encode("<|endoftext|>go", true).unwrap(), [9, 9, 3]); // the text's own stays
        assert_eq!((t.bos_id(), t.eos_id(), t.pad_id()), (Some(9), Some(9), 9));
        let error = t.single_token("go!").unwrap_err().to_string();
        assert_eq!(error, "`go!` is 2 tokens (`go`, `!`), but exactly one is needed");
        assert!(matches!(t.single_token(""), Err(Error::NotOneToken { count: 0, .. })));
        for id in [-1, 10, i64::MAX] {
            assert!(matches!(t.decode(&[id]), Err(Error::TokenOutOfRange { d_vocab: 10, .. })));
        }
    }

    #[test]
    fn llama_gets_one_bos_and_keeps_its_spaces() {
        let t = tokenizer(llama(), json!({}));
        let own = t.inner.tokenizer.encode_fast("go go\né", true).unwrap();
        let ids = t.encode("go go\né", true).unwrap();
        assert_eq!(ids, own.get_ids().iter().map(|&id| id.into()).collect::<Vec<i64>>());
        assert_eq!(t.encode("go go\né", false).unwrap(), ids[1..]);
        assert_eq!(t.str_tokens(&ids).unwrap(), ["<s>", " go", " go", "\n", "\u{fffd}", "\u{fffd}"]);
        assert_eq!(t.decode(&ids[1..]).unwrap(), "go go\né");
        assert_eq!((t.bos_id(), t.eos_id(), t.pad_id()), (Some(1), None, 1));
        let error = t.single_token(" go").unwrap_err().to_string();
        assert!(error.ends_with("2 tokens (` `, ` go`), but exactly one is needed; `go` is one"), "{error}");
    }

    #[test]
    fn a_folder_names_its_special_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, what: &str| std::fs::write(folder.path().join(name), what).unwrap();
        let read = || Tokenizer::from_folder(folder.path());
        assert!(read().unwrap().is_none());

        write("tokenizer.json", &words().to_string());
        write("config.json", r#"{ "bos_token_id": 50256, "eos_token_id": [7, 8], "pad_token_id": null }"#);
        let t = read().unwrap().unwrap();
        assert_eq!((t.bos_id(), t.eos_id(), t.pad_id()), (Some(7), Some(7), 7));
        write("special_tokens_map.json", r#"{ "bos_token": { "content": "<s>" }, "pad_token": "<pad>" }"#);
        let t = read().unwrap().unwrap();
        assert_eq!((t.bos_id(), t.eos_id(), t.pad_id()), (Some(0), Some(7), 1));

        let saved = Tokenizer::from_bytes(t.json().unwrap().as_bytes(), Some(t.config_json().as_bytes())).unwrap();
        assert_eq!(format!("{saved:?}"), format!("{t:?}"));
        assert_eq!(saved.encode("the road ends", true).unwrap(), t.encode("the road ends", true).unwrap());

        write("tokenizer_config.json", "{");
        assert!(matches!(read(), Err(Error::Malformed { path, .. }) if path.ends_with("tokenizer_config.json")));
        assert!(matches!(Tokenizer::from_file(folder.path().join("none.json")), Err(Error::Io { .. })));
    }

    #[test]
    fn what_is_no_tokenizer_is_an_error() {
        let alone = Tokenizer::from_bytes(words().to_string().as_bytes(), None).unwrap();
        let error = alone.encode("the", true).unwrap_err().to_string();
        assert!(error.contains("no BOS token"), "{error}");
        let mut unknown = words();
        unknown["model"]["unk_token"] = "none".into();
        assert!(matches!(tokenizer(unknown, json!({})).encode("x", false), Err(Error::Tokenizer(_))));
        for json in ["", "[]", "{}", "7", r#"{ "decoder": {"#, r#"{ "decoder": 3, "model": 3 }"#] {
            assert!(matches!(Tokenizer::from_bytes(json.as_bytes(), None), Err(Error::Tokenizer(_))), "{json}");
        }
    }

    #[test]
    fn a_piece_decoder_keeps_the_space() {
        let strip = json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 });
        let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
        assert_eq!(space_keeping(strip.clone()), Value::Null);
        let kept = space_keeping(json!({ "type": "Sequence", "decoders": [metaspace, strip] }));
        assert_eq!(kept["decoders"].as_array().unwrap().len(), 1);
        assert_eq!(kept["decoders"][0]["prepend_scheme"], "never");
        let decoder: DecoderWrapper = serde_json::from_value(kept).unwrap();
        assert_eq!(decoder.decode(vec!["▁go".into()]).unwrap(), " go");
    }
}
