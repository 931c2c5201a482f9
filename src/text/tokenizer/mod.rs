//! [`Tokenizer`]: text to token ids and back, as TransformerLens does it.

mod byte_level;
pub(in crate::text) mod chat_template;
mod pieces;
mod special;
mod special_token;
mod token_span;
mod unknown;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use tokenizers::Encoding;

use self::chat_template::ChatTemplates;
use self::pieces::{PieceDecoder, Pieces};
use self::special::{content, read_json, FileError, SpecialTokens};
pub use self::special_token::{SpecialRole, SpecialToken};
pub use self::token_span::TokenSpan;
use self::unknown::Unknowns;
use crate::{Error, Result, TokenizerError, UnknownWord};

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
    allow_unknown: bool,
    chat: Arc<ChatTemplates>,
}

struct Inner {
    tokenizer: tokenizers::Tokenizer,
    decoder: PieceDecoder,
    /// Made when a token's text is first asked for: a large vocabulary takes a fraction of a second.
    pieces: OnceLock<Pieces>,
    vocab_size: usize,
    special: SpecialTokens,
    unknowns: Unknowns,
}

impl Tokenizer {
    /// The tokenizer of a model's folder, or `None` where the folder has no `tokenizer.json`.
    ///
    /// The BOS, EOS and padding tokens are the first that the vocabulary has of those named in
    /// `tokenizer_config.json`, `special_tokens_map.json`, `config.json` and `generation_config.json`. Where none names a BOS token, it is
    /// what the tokenizer itself puts before a text, else the EOS token.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] for a file that cannot be read, [`Error::Malformed`] for one that is not what its name says.
    pub fn from_folder(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("tokenizer.json");
        let Some(json) = read_json(&path)? else { return Ok(None) };
        let mut sources = Vec::new();
        sources.extend(ChatTemplates::file(folder)?);
        for name in ["tokenizer_config.json", "special_tokens_map.json", "config.json", "generation_config.json"] {
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
        let parse = |bytes| serde_json::from_slice::<Value>(bytes).map_err(Error::tokenizer);
        let sources: Vec<Value> = tokenizer_config.map(parse).transpose()?.into_iter().collect();
        Self::new(parse(tokenizer_json)?, &sources).map_err(Error::tokenizer)
    }

    /// From the parsed `tokenizer.json`, and the files that may name special tokens, the first to be believed first.
    ///
    /// The file is parsed on its own first: the tokenizers crate panics on broken JSON in some places.
    fn new(mut json: Value, sources: &[Value]) -> Result<Self, FileError> {
        let mut announced = Vec::new();
        if let Some(fields) = json.as_object_mut() {
            fields.remove("truncation");
            fields.remove("padding");
            if let Some(Value::Array(added)) = fields.get_mut("added_tokens") {
                // The tokenizers crate counts ids up in this order.
                added.sort_by_key(|token| token["id"].as_u64());
                let announce = |token: &Value| Some((token["content"].as_str()?.to_string(), token["id"].as_u64()?));
                announced = added.iter().filter_map(announce).collect();
            }
        }
        let decoder = PieceDecoder::from_json(&json["decoder"])?;
        let tokenizer: tokenizers::Tokenizer = serde_json::from_value(json.clone())?;
        for (token, id) in announced {
            match tokenizer.token_to_id(&token) {
                Some(found) if u64::from(found) != id => return Err(FileError::AddedToken { token, id, found }),
                _ => {}
            }
        }
        let special = SpecialTokens::find(&tokenizer, sources);
        let unknowns = Unknowns::new(&tokenizer, &json);
        // Ids may have gaps, so the number of tokens would not do.
        let vocab_size = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        let inner = Inner { tokenizer, decoder, pieces: OnceLock::new(), vocab_size, special, unknowns };
        let chat = Arc::new(ChatTemplates::find(sources));
        Ok(Tokenizer { inner: Arc::new(inner), allow_unknown: false, chat })
    }

    /// Whether words that the vocabulary does not have become its token for unknown words, as in TransformerLens, rather than
    /// an error; no, unless said otherwise. Where there is no such token, the tokenizer leaves them out of the text.
    ///
    /// ```
    /// use tch_lens::{Error, HookedTransformer, TokenizerError};
    ///
    /// let model = HookedTransformer::toy()?;
    /// let Error::Tokenizer(error) = model.to_tokens("Mary met a wumpus").unwrap_err() else { panic!("another error") };
    /// assert!(matches!(error, TokenizerError::UnknownWord { unknown, .. } if unknown.word == "wumpus" && unknown.position == 11));
    ///
    /// let tokenizer = model.tokenizer()?.clone().allow_unknown(true);
    /// assert_eq!(tokenizer.unknown_words("Mary met a wumpus")?[0].word, "wumpus"); // what it is about to lose
    /// let model = model.with_tokenizer(tokenizer);
    /// assert_eq!(model.to_str_tokens("Mary met a wumpus")?.last().unwrap(), "<|unknown|>");
    /// # Ok::<(), Error>(())
    /// ```
    pub fn allow_unknown(mut self, yes: bool) -> Self {
        self.allow_unknown = yes;
        self
    }

    /// The words of `text` that the vocabulary does not have, in order. None of a byte-level vocabulary such as GPT-2's.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] if the tokenizer refuses the text.
    pub fn unknown_words(&self, text: &str) -> Result<Vec<UnknownWord>> {
        self.inner.unknowns.find(&self.inner.tokenizer, text)
    }

    /// The token ids of `text`: TransformerLens' `to_tokens`.
    ///
    /// `prepend_bos` puts exactly one BOS token first. One that is written out in `text` is a token of the text,
    /// and stays beside it.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] for a word that the vocabulary does not have, unless [`allow_unknown`](Self::allow_unknown)
    /// lets it pass, and for a text that the tokenizer refuses.
    pub fn encode(&self, text: &str, prepend_bos: bool) -> Result<Vec<i64>> {
        let encoding = self.inner.tokenizer.encode_fast(text, false).map_err(Error::tokenizer)?;
        self.ids(text, &encoding, prepend_bos)
    }

    /// The token ids of each of `texts`, of as many lengths as they have.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_batch(&self, texts: &[&str], prepend_bos: bool) -> Result<Vec<Vec<i64>>> {
        let encodings = self.inner.tokenizer.encode_batch_fast(texts.to_vec(), false).map_err(Error::tokenizer)?;
        texts.iter().zip(&encodings).map(|(text, encoding)| self.ids(text, encoding, prepend_bos)).collect()
    }

    /// The token ids of each of `texts`, with the special tokens that the tokenizer's own template puts around a text, such as T5's
    /// `</s>` behind it.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_batch_with_template(&self, texts: &[&str]) -> Result<Vec<Vec<i64>>> {
        let encodings = self.inner.tokenizer.encode_batch_fast(texts.to_vec(), true).map_err(Error::tokenizer)?;
        texts.iter().zip(&encodings).map(|(text, encoding)| self.ids(text, encoding, false)).collect()
    }

    /// The token ids of two texts, one after the other with the special tokens that the tokenizer's own template puts around them, and the
    /// type of each token: BERT's `[CLS] first [SEP] second [SEP]`, with the types 0 and 1.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode).
    pub fn encode_pair_with_template(&self, first: &str, second: &str) -> Result<(Vec<i64>, Vec<i64>)> {
        // Unknown words are told by text.
        self.encode(first, false)?;
        self.encode(second, false)?;
        let encoding = self.inner.tokenizer.encode((first, second), true).map_err(Error::tokenizer)?;
        let whole = |numbers: &[u32]| numbers.iter().map(|&number| number.into()).collect();
        Ok((whole(encoding.get_ids()), whole(encoding.get_type_ids())))
    }

    /// The token that masks others: `[MASK]`, or `<mask>`.
    pub fn mask_id(&self) -> Option<i64> {
        ["[MASK]", "<mask>"].iter().find_map(|content| self.special_token_id(content))
    }

    fn ids(&self, text: &str, encoding: &Encoding, prepend_bos: bool) -> Result<Vec<i64>> {
        if !self.allow_unknown
            && self.inner.unknowns.possible(text, encoding)
            && let Some(unknown) = self.unknown_words(text)?.into_iter().next()
        {
            let hint = "; use other words, or let them pass with `Tokenizer::allow_unknown`".into();
            return Err(TokenizerError::UnknownWord { unknown, hint }.into());
        }
        let bos = match (prepend_bos, self.inner.special.bos) {
            (true, None) => return Err(TokenizerError::NoBosToken.into()),
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
        // Some decoders of the tokenizers crate panic where there is no token at all.
        if !ids.iter().any(|&id| content(&self.inner.tokenizer, id).is_some()) {
            return Ok(String::new());
        }
        self.inner.tokenizer.decode(&ids, false).map_err(Error::tokenizer)
    }

    /// Each token's text: TransformerLens' `to_str_tokens`.
    ///
    /// No two tokens have the same text, and [`single_token`](Self::single_token) leads back from each, so that what a
    /// table prints can be given as an answer. A token's text is what it adds to a decoded text, but for these:
    ///
    /// - A space before a word is shown, also where TransformerLens drops it (Llama's tokenizer and its like).
    /// - Bytes that are only a part of a character are written out: `<0xE2>`, where TransformerLens has U+FFFD for all.
    /// - Where several tokens add the same text, one of them has it, and the others are shown as the vocabulary writes
    ///   them: Llama's token of the byte 65 is `<0x41>`, as `A` is another token's text.
    /// - An id without a token is shown by its number, `<id 7>`.
    ///
    /// # Errors
    ///
    /// [`Error::TokenOutOfRange`] for an id outside the vocabulary.
    pub fn str_tokens(&self, ids: &[i64]) -> Result<Vec<String>> {
        ids.iter().map(|&id| self.single_str_token(id)).collect()
    }

    /// The text of one token.
    pub(crate) fn single_str_token(&self, id: i64) -> Result<String> {
        self.checked(id).map(|_| self.text_or_number(id))
    }

    /// The text of one token. Of an id that the tokenizer does not know, its number: a model's vocabulary is often padded to a
    /// round number.
    pub(crate) fn text_or_number(&self, id: i64) -> String {
        let text = u32::try_from(id).ok().and_then(|id| self.pieces().text(id));
        text.map_or_else(|| pieces::numbered(id), String::from)
    }

    fn pieces(&self) -> &Pieces {
        let Inner { tokenizer, decoder, pieces, vocab_size, .. } = &*self.inner;
        pieces.get_or_init(|| Pieces::new(tokenizer, decoder, *vocab_size))
    }

    /// The id of a text that is exactly one token: TransformerLens' `to_single_token`.
    ///
    /// A text that [`str_tokens`](Self::str_tokens) shows for a token means that token, and `<id 50300>` the token of that
    /// number, whether the tokenizer knows it or not: a model's vocabulary may be larger. Any other text is encoded. Mind the space:
    /// in most vocabularies `" road"` and `"road"` are different tokens. That holds for Llama's tokenizer and its like, too,
    /// where TransformerLens takes `"road"` for the token with the space.
    ///
    /// # Errors
    ///
    /// [`Error::Tokenizer`] with the pieces, if `text` is more or fewer tokens, and if the vocabulary
    /// does not have it, whether or not that is allowed in a prompt.
    pub fn single_token(&self, text: &str) -> Result<i64> {
        if let Some(id) = self.find_single(text)? {
            return Ok(id);
        }
        let other = match text.strip_prefix(' ') {
            Some(without) => without.to_string(),
            None => format!(" {text}"),
        };
        let hint = match self.find_single(&other)? {
            Some(_) => format!("; `{other}` is one token"),
            None => String::new(),
        };
        if let Some(unknown) = self.unknown_words(text)?.into_iter().next() {
            return Err(TokenizerError::UnknownWord { unknown, hint }.into());
        }
        let ids = self.encode(text, false)?;
        let pieces: Vec<String> = self.str_tokens(&ids)?.iter().map(|piece| format!("`{piece}`")).collect();
        Err(TokenizerError::NotOneToken { text: text.into(), count: ids.len(), pieces: pieces.join(", "), hint }.into())
    }

    /// The token of a text, by what is shown for a token, by number, or by encoding.
    fn find_single(&self, text: &str) -> Result<Option<i64>> {
        if let Some(id) = self.pieces().id(text).or_else(|| pieces::number(text)) {
            return Ok(Some(id.into()));
        }
        let encoding = self.inner.tokenizer.encode_fast(text, false).map_err(Error::tokenizer)?;
        match encoding.get_ids() {
            [id] if !self.inner.unknowns.possible(text, &encoding) || self.unknown_words(text)?.is_empty() => {
                Ok(Some((*id).into()))
            }
            _ => Ok(None),
        }
    }

    /// Whether an id has a token: a vocabulary may have gaps.
    pub(super) fn has_token(&self, id: i64) -> Result<bool> {
        Ok(content(&self.inner.tokenizer, self.checked(id)?).is_some())
    }

    /// Whether a token is a single byte to its decoder, such as `<0x0A>`, which joins consecutive ones.
    pub(super) fn is_byte(&self, id: i64) -> Result<bool> {
        let id = self.checked(id)?;
        let byte = || pieces::byte_fallback(&content(&self.inner.tokenizer, id)?);
        Ok(self.inner.decoder.joins_bytes() && byte().is_some())
    }

    fn checked(&self, id: i64) -> Result<u32> {
        let d_vocab = self.inner.vocab_size;
        let known = u32::try_from(id).ok().filter(|&id| (id as usize) < d_vocab);
        known.ok_or(Error::TokenOutOfRange { id, d_vocab })
    }

    /// The token that begins a text.
    pub fn bos_id(&self) -> Option<i64> {
        self.inner.special.bos.map(i64::from)
    }

    /// The token that ends a text.
    pub fn eos_id(&self) -> Option<i64> {
        self.inner.special.eos.map(i64::from)
    }

    /// The token that fills up a batch: the padding token, else EOS, else BOS, else 0. It is masked in any case.
    pub fn pad_id(&self) -> i64 {
        let SpecialTokens { bos, eos, pad, .. } = self.inner.special;
        pad.or(eos).or(bos).unwrap_or(0).into()
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
        self.inner.tokenizer.to_string(false).map_err(Error::tokenizer)
    }

    /// The contents of a `tokenizer_config.json` that names the special tokens, which [`json`](Self::json) does not, each by
    /// content and id, and has the chat templates.
    pub fn config_json(&self) -> String {
        let mut config = self.inner.special.config_json(&self.inner.tokenizer);
        self.chat.save(&mut config);
        config.to_string()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { vocab_size, special, .. } = &*self.inner;
        let SpecialTokens { bos, eos, pad, .. } = special;
        let mut shown = f.debug_struct("Tokenizer");
        shown.field("vocab_size", vocab_size).field("bos", bos).field("eos", eos).field("pad", pad);
        shown.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
