//! [`TokenizerError`]: why a text does not become tokens, or tokens no text.

use super::message::shortened;
use super::UnknownWord;

/// Why a text does not become the tokens that are asked for, or tokens no text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// Text was given to a model that has no tokenizer.
    #[error("this model has no tokenizer: give token ids, or load one with `with_tokenizer`")]
    Missing,
    /// The tokenizer refused a text, or its file.
    #[error("the tokenizer failed: {0}")]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A text whose tokens the model does not have.
    #[error("the tokenizer gives token id {id}, and the model's vocabulary has {d_vocab} entries: the tokenizer is another model's, so give this model its own with `with_tokenizer`")]
    OfOtherModel {
        /// The token's id.
        id: i64,
        /// `Config::d_vocab`.
        d_vocab: usize,
    },
    /// A word that the tokenizer's vocabulary does not have.
    #[error("{unknown}{hint}")]
    UnknownWord {
        /// The word, and where it stands.
        unknown: UnknownWord,
        /// What to do; empty, or beginning with a separator.
        hint: String,
    },
    /// The BOS token was asked for, and the tokenizer has none.
    #[error("the tokenizer has no BOS token to put first: use `Bos::No`, or name a `bos_token` in its tokenizer_config.json")]
    NoBosToken,
    /// A chat template that the tokenizer does not have.
    #[error("the tokenizer has no chat template{}; {known}", named(.name))]
    NoChatTemplate {
        /// The name that was asked for; empty for the default one.
        name: String,
        /// Those that there are, or what to do.
        known: String,
    },
    /// A chat template that does not parse, or that refuses the messages.
    #[error("the chat template {0}")]
    ChatTemplate(String),
    /// A token that was sought in a prompt.
    #[error("token {id} (`{text}`) is none of the prompt's {tokens} tokens")]
    TokenNotInPrompt {
        /// The token.
        id: i64,
        /// Its text; empty without a tokenizer.
        text: String,
        /// How many tokens the prompt has.
        tokens: usize,
    },
    /// A text that should have been exactly one token.
    #[error("`{text}` is {n} tokens ({pieces}), but exactly one is needed{hint}", n = .count)]
    NotOneToken {
        /// The text.
        text: String,
        /// How many tokens it makes.
        count: usize,
        /// Those tokens, as text.
        pieces: String,
        /// What might have been meant; empty, or beginning with a separator.
        hint: String,
    },
}

/// A name, where there is one.
fn named(name: &str) -> String {
    match name {
        "" => String::new(),
        name => format!(" `{}`", shortened(name)),
    }
}
