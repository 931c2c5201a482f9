//! The toy model's tokenizer: a word is a token, together with the space before it.
//!
//! | token | id |
//! | --- | --- |
//! | `<\|endoftext\|>`, before every text | 0 |
//! | `<\|unknown\|>`, what the language has no word for | 1 |
//! | punctuation: `.` `,` `?` `:` | from 2 |
//! | numbers of two digits: `00` … `99`, then `·00` … `·99` with a space before | |
//! | words with a capital, as they begin a text: `Mary` | |
//! | all words, with a space before: `·Mary` | |

use serde_json::{json, Value};

use crate::language;

/// Stands before every text, as in GPT-2.
pub const BOS: &str = "<|endoftext|>";
pub const BOS_ID: i64 = 0;
const UNKNOWN: &str = "<|unknown|>";

/// A piece of text that is a token: a word, one or two digits, or one other character.
const PIECE: &str = " ?[A-Za-z]+| ?[0-9]{1,2}| ?[^ A-Za-z0-9]| ";

/// All tokens; their places are their ids.
pub fn tokens() -> Vec<String> {
    let words = language::words();
    let numbers = || (0..100).map(|number| format!("{number:02}"));
    let mut tokens: Vec<String> = [BOS, UNKNOWN, ".", ",", "?", ":"].map(String::from).into();
    tokens.extend(numbers());
    tokens.extend(numbers().map(|number| format!(" {number}")));
    tokens.extend(words.iter().filter(|word| word.starts_with(char::is_uppercase)).map(|word| word.to_string()));
    tokens.extend(words.iter().map(|word| format!(" {word}")));
    tokens
}

/// What `tokenizer.json` says.
pub fn tokenizer() -> Value {
    let vocabulary: serde_json::Map<String, Value> =
        tokens().into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect();
    let special = |content: &str| {
        json!({
            "id": vocabulary[content], "content": content, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(BOS), special(UNKNOWN)],
        "normalizer": null,
        "pre_tokenizer": {
            "type": "Split", "pattern": { "Regex": PIECE }, "behavior": "Isolated", "invert": false,
        },
        "post_processor": null,
        "decoder": { "type": "Fuse" },
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": UNKNOWN },
    })
}

/// What `tokenizer_config.json` says.
pub fn tokenizer_config(n_ctx: usize) -> Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": BOS,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": false,
        "model_max_length": n_ctx,
    })
}
