//! Special tokens: which ones a tokenizer's files name, and how they are saved.

use std::path::Path;

use serde_json::{json, Value};
use tokenizers::Tokenizer;

use crate::{Error, Result};

/// The tokens that stand for no text, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct SpecialTokens {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    /// Further ones that end a text, such as Llama 3's end of a turn.
    pub(super) more_eos: Vec<u32>,
    pub(super) pad: Option<u32>,
}

/// GPT-2's only special token, which TransformerLens takes where a tokenizer names no EOS token.
const END_OF_TEXT: &str = "<|endoftext|>";

impl SpecialTokens {
    /// The first of each that the vocabulary has, among those that these files name.
    pub(super) fn find(tokenizer: &Tokenizer, sources: &[Value]) -> Self {
        let eos = declared(tokenizer, sources, "eos").or_else(|| tokenizer.token_to_id(END_OF_TEXT));
        let bos = declared(tokenizer, sources, "bos").or_else(|| put_first(tokenizer)).or(eos);
        let more_eos = more_eos(tokenizer, sources, eos);
        SpecialTokens { bos, eos, more_eos, pad: declared(tokenizer, sources, "pad") }
    }

    /// The contents of a `tokenizer_config.json` that names them, each by content and id.
    pub(super) fn config_json(&self, tokenizer: &Tokenizer) -> Value {
        let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false });
        for (role, id) in [("bos", self.bos), ("eos", self.eos), ("pad", self.pad)] {
            let Some(id) = id else { continue };
            config[format!("{role}_token_id")] = id.into();
            if let Some(content) = content(tokenizer, id) {
                config[format!("{role}_token")] = content.into();
            }
        }
        if let (Some(eos), false) = (self.eos, self.more_eos.is_empty()) {
            config["eos_token_id"] = [&[eos], self.more_eos.as_slice()].concat().into();
        }
        config
    }
}

/// A token as the vocabulary writes it. Of an added token that is what is looked for in a text, as its file has it.
///
/// The tokenizers crate's `id_to_token` has the normalised form of added tokens instead (`▁<s>`), which no vocabulary has.
pub(super) fn content(tokenizer: &Tokenizer, id: u32) -> Option<String> {
    use tokenizers::Model;
    let added = tokenizer.get_added_vocabulary().get_added_tokens_decoder();
    added.get(&id).map(|token| token.content.clone()).or_else(|| tokenizer.get_model().id_to_token(id))
}

/// The first token for `role` that the vocabulary has: a `bos_token`, as a string or an object, with or without a
/// `bos_token_id`, or an id alone.
fn declared(tokenizer: &Tokenizer, sources: &[Value], role: &str) -> Option<u32> {
    sources.iter().find_map(|source| {
        let (token, id) = (&source[format!("{role}_token")], &source[format!("{role}_token_id")]);
        let id = if id.is_array() { &id[0] } else { id }; // Llama 3 has several EOS tokens
        let name = token.as_str().or_else(|| token["content"].as_str());
        let by_id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let by_id = by_id.filter(|id| content(tokenizer, *id).is_some());
        let found = match name {
            None => by_id,
            // Of several tokens with the same content, the id says which.
            Some(name) if by_id.is_some_and(|id| content(tokenizer, id).as_deref() == Some(name)) => by_id,
            Some(name) => tokenizer.token_to_id(name).or(by_id),
        };
        if found.is_none() && !(token.is_null() && id.is_null()) {
            tracing::warn!(%token, %id, "the tokenizer lacks the {role} token that its configuration names");
        }
        found
    })
}

/// The EOS tokens that the files name by id, but for `eos`.
fn more_eos(tokenizer: &Tokenizer, sources: &[Value], eos: Option<u32>) -> Vec<u32> {
    let ids = sources.iter().flat_map(|source| match &source["eos_token_id"] {
        Value::Array(ids) => ids.as_slice(),
        id => std::slice::from_ref(id),
    });
    let mut more = Vec::new();
    for id in ids.filter_map(|id| u32::try_from(id.as_u64()?).ok()) {
        if Some(id) != eos && !more.contains(&id) && content(tokenizer, id).is_some() {
            more.push(id);
        }
    }
    more
}

/// The special token that the tokenizer by itself puts before a text.
fn put_first(tokenizer: &Tokenizer) -> Option<u32> {
    let encoding = tokenizer.encode_fast("a", true).ok()?;
    let special = *encoding.get_special_tokens_mask().first()? == 1;
    encoding.get_ids().first().copied().filter(|_| special)
}

/// Why a tokenizer's file is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileError {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The tokenizers crate, and with it transformers, would give an added token another id than its file.
    #[error("the added token `{token}` has id {id} in the file, but {found} by its place after the vocabulary and the other added tokens")]
    AddedToken { token: String, id: u64, found: u32 },
}

/// A JSON file, or `None` where there is none.
pub(super) fn read_json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|what| Error::malformed(path, what)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path)(error)),
    }
}
