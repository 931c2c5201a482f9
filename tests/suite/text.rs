//! Text that comes in pieces, special tokens, offsets and positions, over tokenizers of every kind of decoder.
//!
//! Where `TCH_LENS_MODELS` names a folder of real models, their tokenizers are tried as well.

use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{json, Value};
use tch_lens::{SpecialRole, TextStream, Tokenizer};

use crate::common;

fn added(id: usize, content: &str, special: bool) -> Value {
    json!({ "id": id, "content": content, "special": special, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false })
}

fn tokenizer(json: &Value, config: Value) -> Tokenizer {
    Tokenizer::from_bytes(json.to_string().as_bytes(), Some(config.to_string().as_bytes())).unwrap()
}

/// GPT-2's letter for each byte.
fn letters() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let mut next = 256;
    let mut letter = |byte| {
        let code = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        char::from_u32(code).unwrap()
    };
    (0..256).map(&mut letter).collect()
}

/// A byte-level tokenizer: every byte, and some pieces that begin or end within a character.
pub fn byte_level() -> Tokenizer {
    let letters = letters();
    let piece = |bytes: &[u8]| bytes.iter().map(|&byte| letters[byte as usize]).collect::<String>();
    let mut pieces: Vec<String> = (0..=255u8).map(|byte| piece(&[byte])).collect();
    let mut merged = Vec::new();
    let merges: [(&[u8], &[u8]); 5] =
        [(b"l", b"o"), (b" ", b"lo"), (&[0xe2], &[0x82]), (&[0xf0], &[0x9f]), (&[0xac], b"a")];
    for (a, b) in merges {
        pieces.push(piece(&[a, b].concat()));
        merged.push(json!([piece(a), piece(b)]));
    }
    let vocab: serde_json::Map<String, Value> = pieces.iter().cloned().zip((0..).map(Value::from)).collect();
    let count = vocab.len();
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let json = json!({
        "version": "1.0", "normalizer": null, "pre_tokenizer": level, "decoder": level,
        "added_tokens": [added(count, "<|endoftext|>", true), added(count + 1, "<|end of turn|>", true),
                         added(count + 2, "plain added", false)],
        "model": { "type": "BPE", "vocab": vocab, "merges": merged },
    });
    tokenizer(&json, json!({ "eos_token_id": [count, count + 1] }))
}

/// As Llama's: spaces are `▁`, other characters fall back to bytes.
pub fn byte_fallback() -> Tokenizer {
    let mut vocab =
        json!({ "<unk>": 0, "<s>": 1, "</s>": 2, "▁": 259, "g": 260, "o": 261, "go": 262, "▁go": 263, "€": 264 });
    for byte in 0..256 {
        vocab[format!("<0x{byte:02X}>")] = json!(byte + 3);
    }
    let json = json!({
        "version": "1.0",
        "added_tokens": [added(0, "<unk>", true), added(1, "<s>", true), added(2, "</s>", true)],
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" }, { "type": "Replace", "pattern": { "String": " " }, "content": "▁" },
        ] },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
        ] },
        "model": { "type": "BPE", "unk_token": "<unk>", "byte_fallback": true, "fuse_unk": true, "vocab": vocab,
                   "merges": [["g", "o"], ["▁", "go"]] },
    });
    tokenizer(&json, json!({ "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" }))
}

fn words(vocab: &[&str], model: &str, decoder: Value) -> Tokenizer {
    let ids: serde_json::Map<String, Value> =
        vocab.iter().enumerate().map(|(id, word)| (word.to_string(), json!(2 * id))).collect();
    let model = match model {
        "Unigram" => {
            json!({ "type": model, "unk_id": 0, "vocab": vocab.iter().map(|w| json!([w, -1.0])).collect::<Vec<_>>() })
        }
        "WordPiece" => json!({ "type": model, "unk_token": vocab[0], "continuing_subword_prefix": "##",
                               "max_input_chars_per_word": 100, "vocab": ids }),
        _ => json!({ "type": model, "unk_token": vocab[0], "vocab": ids }),
    };
    tokenizer(&json!({ "version": "1.0", "added_tokens": [], "decoder": decoder, "model": model }), json!({}))
}

/// A tokenizer of each kind of decoder; half of some vocabularies' ids have no token.
pub fn tokenizers() -> Vec<(String, Tokenizer)> {
    let mut all: Vec<(String, Tokenizer)> = vec![
        ("byte level".into(), byte_level()),
        ("byte fallback".into(), byte_fallback()),
        ("no decoder".into(), words(&["<unk>", "the", "road", "é"], "WordLevel", Value::Null)),
        ("fuse".into(), words(&["<unk>", "the", " road", " \u{fffd}", "é"], "WordLevel", json!({ "type": "Fuse" }))),
        (
            "metaspace".into(),
            words(
                &["<unk>", "▁", "▁the", "road", "é▁"],
                "Unigram",
                json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true }),
            ),
        ),
        (
            "word piece".into(),
            words(
                &["[UNK]", "the", "##re", ".", "n't", "é"],
                "WordPiece",
                json!({ "type": "WordPiece", "prefix": "##", "cleanup": true }),
            ),
        ),
        (
            "suffix".into(),
            words(
                &["<unk>", "the</w>", "ro", "ad</w>"],
                "WordLevel",
                json!({ "type": "BPEDecoder", "suffix": "</w>" }),
            ),
        ),
        ("five words".into(), common::tokenizer()),
    ];
    #[cfg(feature = "toy")]
    all.push(("toy".into(), tch_lens::HookedTransformer::toy().unwrap().tokenizer().unwrap().clone()));
    match std::env::var_os("TCH_LENS_MODELS") {
        None => eprintln!("skipped: tokenizers of real models (TCH_LENS_MODELS names no folder of real models)"),
        Some(models) => {
            for name in ["stories260K", "capp_gpt2", "gpt2_tokenizer"] {
                let folder = Path::new(&models).join(name);
                all.push((name.into(), Tokenizer::from_folder(&folder).unwrap().unwrap()));
            }
        }
    }
    all
}

/// There are several tokenizers, and each case decodes every token many times.
fn few_cases() -> ProptestConfig {
    ProptestConfig { cases: 64, ..common::properties() }
}

/// All pieces of a stream, the last that of its end.
fn pieces(mut stream: TextStream, ids: &[i64]) -> Vec<String> {
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn streamed_pieces_join_to_the_decoded_whole() {
    for (name, tokenizer) in tokenizers() {
        let id = 0..tokenizer.vocab_size() as i64;
        let ids = proptest::collection::vec(id, 0..30);
        TestRunner::new(few_cases())
            .run(&(ids, 0..30usize), |(ids, cut)| {
                let whole = tokenizer.decode(&ids).unwrap();
                prop_assert_eq!(pieces(TextStream::new(&tokenizer), &ids).concat(), whole.clone(), "{}", &name);
                // After a prompt: what the prompt has left incomplete, and all after it.
                let (prompt, rest) = ids.split_at(cut.min(ids.len()));
                let mut before = TextStream::new(&tokenizer);
                let before: String = prompt.iter().map(|&id| before.push(id).unwrap()).collect();
                let after = pieces(TextStream::after(&tokenizer, prompt).unwrap(), rest).concat();
                prop_assert_eq!(before + &after, whole, "{}", &name);
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn streamed_text_splits_no_character_and_does_not_lag() {
    for (name, tokenizer) in
        tokenizers().into_iter().filter(|(name, _)| name.starts_with("byte") || name.starts_with("gpt2"))
    {
        TestRunner::new(few_cases())
            .run(&"[a-c lo€é😀\n]{0,20}", |text| {
                let ids = tokenizer.encode(&text, false).unwrap();
                let pieces = pieces(TextStream::new(&tokenizer), &ids);
                prop_assert!(!pieces.concat().contains('\u{fffd}'), "{}: {:?}", &name, &pieces);
                prop_assert_eq!(pieces.concat(), text);
                Ok(())
            })
            .unwrap();
    }
    // A byte-level piece that ends one character and begins another shows the first at once.
    let tokenizer = byte_level();
    let ids = tokenizer.encode("a€a😀", false).unwrap();
    let shown = pieces(TextStream::new(&tokenizer), &ids);
    assert_eq!(ids.len(), 6); // a, E2 82, AC a, F0 9F, 98, 80
    assert_eq!(shown, ["a", "", "€a", "", "", "😀", ""]);
    // Broken bytes cost no time: they show as soon as nothing can complete them.
    let byte = |byte: u8| byte as i64;
    let shown = pieces(TextStream::new(&tokenizer), &[byte(b'x'), byte(0xff), byte(0xe2), byte(b'y'), byte(0x82)]);
    assert_eq!(shown, ["x", "", "\u{fffd}", "\u{fffd}y", "", "\u{fffd}"]);
    // A stream can be used again.
    let mut stream = TextStream::after(&tokenizer, &ids[..1]).unwrap();
    assert_eq!(stream.finish().unwrap(), "");
    assert_eq!(stream.push(byte(b'z')).unwrap(), "z");
    assert!(stream.push(-1).is_err());
}

#[test]
fn special_tokens_are_listed_with_their_roles() {
    let listed = |tokenizer: &Tokenizer| {
        let tokens = tokenizer.special_tokens().into_iter();
        tokens.map(|token| (token.id, token.content, token.roles)).collect::<Vec<_>>()
    };
    use SpecialRole::{Bos, Eos, Unk};
    let bytes = byte_level();
    let (end, turn) =
        (bytes.special_token_id("<|endoftext|>").unwrap(), bytes.special_token_id("<|end of turn|>").unwrap());
    assert_eq!(
        listed(&bytes),
        [(end, "<|endoftext|>".into(), vec![Bos, Eos]), (turn, "<|end of turn|>".into(), vec![Eos])]
    );
    assert_eq!(bytes.eos_ids(), [end, turn]);
    assert_eq!((bytes.is_special(turn), bytes.is_special(turn + 1), bytes.is_special(-1)), (true, false, false));
    assert_eq!((bytes.special_token_id("plain added"), bytes.unk_id()), (None, None));
    let llama = byte_fallback();
    let expected = [(0, "<unk>".into(), vec![Unk]), (1, "<s>".into(), vec![Bos]), (2, "</s>".into(), vec![Eos])];
    assert_eq!(listed(&llama), expected);
    // What is saved says as much.
    for tokenizer in [bytes, llama] {
        let json = (tokenizer.json().unwrap(), tokenizer.config_json());
        let again = Tokenizer::from_bytes(json.0.as_bytes(), Some(json.1.as_bytes())).unwrap();
        assert_eq!(listed(&again), listed(&tokenizer));
    }
}
