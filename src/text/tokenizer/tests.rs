//! Small tokenizers of every kind.

use serde_json::json;

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
    assert_eq!(t.encode_batch(&["the", "", "<s> road ends"], true).unwrap(), [vec![0, 3], vec![0], vec![0, 0, 4, 7]]);
    assert_eq!(t.decode(&[0, 3, 4]).unwrap(), "<s> the road");
    assert_eq!(t.str_tokens(&[0, 3, 5]).unwrap(), ["<s>", "the", "<id 5>"]);
    assert_eq!((t.bos_id(), t.eos_id(), t.pad_id(), t.vocab_size()), (Some(0), None, 1, 8));
    assert_eq!((t.single_token("road").unwrap(), t.single_token("<unk>").unwrap()), (4, 2));
    let error = t.single_token("rode").unwrap_err().to_string();
    assert_eq!(
        error,
        "`rode`, at character 0 of the text, is not in the tokenizer's vocabulary and would become `<unk>`"
    );
}

#[test]
fn byte_level_pieces_join_to_the_text() {
    let t = tokenizer(bytes(), json!({}));
    let ids = t.encode("go go!\n go", false).unwrap();
    assert_eq!(ids, [3, 4, 7, 8, 4]);
    assert_eq!(t.str_tokens(&ids).unwrap(), ["go", " go", "!", "\n", " go"]);
    assert_eq!(t.str_tokens(&[5, 6]).unwrap(), ["<0xC3>", "<0xA9>"]);
    assert_eq!(t.decode(&[9, 5, 6]).unwrap(), "<|endoftext|>é");
    assert_eq!(t.encode("<|endoftext|>go", true).unwrap(), [9, 9, 3]); // the text's own stays
    assert_eq!((t.bos_id(), t.eos_id(), t.pad_id()), (Some(9), Some(9), 9));
    let error = t.single_token("go!").unwrap_err().to_string();
    assert_eq!(error, "`go!` is 2 tokens (`go`, `!`), but exactly one is needed");
    assert!(matches!(t.single_token(""), Err(Error::Tokenizer(TokenizerError::NotOneToken { count: 0, .. }))));
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
    assert_eq!(t.str_tokens(&ids).unwrap(), ["<s>", " go", " go", "\n", "<0xC3>", "<0xA9>"]);
    assert_eq!(t.decode(&ids[1..]).unwrap(), "go go\né");
    assert_eq!((t.bos_id(), t.eos_id(), t.pad_id()), (Some(1), None, 1));
    // With and without its space, whatever the normaliser puts before a text.
    assert_eq!((t.single_token(" go").unwrap(), t.single_token("go").unwrap()), (263, 262));
    let error = t.single_token("gogo").unwrap_err().to_string();
    assert_eq!(error, "`gogo` is 2 tokens (` go`, `go`), but exactly one is needed");
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
    let error = alone.encode("the", true).unwrap_err();
    assert!(matches!(error, Error::Tokenizer(TokenizerError::NoBosToken)));
    let mut unknown = words();
    unknown["model"]["unk_token"] = "none".into();
    assert!(matches!(tokenizer(unknown, json!({})).encode("x", false), Err(Error::Tokenizer(_))));
    for json in ["", "[]", "{}", "7", r#"{ "decoder": {"#, r#"{ "decoder": 3, "model": 3 }"#] {
        assert!(matches!(Tokenizer::from_bytes(json.as_bytes(), None), Err(Error::Tokenizer(_))), "{json}");
    }
}

/// As `llama`, but with special tokens that are normalised, so that the crate looks for `▁<s>` in a text, and one more.
fn normalized() -> Value {
    let mut json = llama();
    for (token, content) in [(1, "<s>"), (2, "</s>"), (264, "<pad>")] {
        let mut added = added(token, content);
        added["normalized"] = true.into();
        let tokens = json["added_tokens"].as_array_mut().unwrap();
        tokens.retain(|token| token["content"] != content);
        tokens.push(added);
    }
    json["post_processor"] = Value::Null;
    json
}

/// As T5's: pieces with scores, `▁` a space, two pieces that are the same, and no bytes to fall back to.
fn pieces() -> Value {
    let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    json!({
        "version": "1.0", "added_tokens": [added(0, "<pad>"), added(1, "</s>"), added(2, "<unk>")],
        "normalizer": null, "pre_tokenizer": metaspace, "post_processor": null, "decoder": metaspace,
        "model": { "type": "Unigram", "unk_id": 2, "byte_fallback": false,
                   "vocab": [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["▁", -2.0], ["the", -3.0], ["▁the", -3.5],
                             ["▁▁", -5.0], ["s", -4.0], ["▁the", -3.6], [" ", -9.0], ["<id 8>", -9.0]] },
    })
}

/// As BERT's: lower case, `##` before a piece that continues a word.
fn word_pieces() -> Value {
    json!({
        "version": "1.0", "added_tokens": [added(0, "[PAD]"), added(1, "[UNK]"), added(2, "[CLS]")],
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                        "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" }, "post_processor": null,
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100,
                   "vocab": { "[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "the": 3, "road": 4, "##s": 5, "s": 6, "##the": 7,
                              " the": 8, ".": 9, "n't": 10, " n't": 11 } },
    })
}

/// As the first GPT's: `</w>` ends a word.
fn word_ends() -> Value {
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": null, "decoder": { "type": "BPEDecoder", "suffix": "</w>" },
        "model": { "type": "BPE", "unk_token": null, "end_of_word_suffix": "</w>", "merges": [["g", "o</w>"], ["g", "o"]],
                   "vocab": { "g": 0, "o": 1, "g</w>": 2, "o</w>": 3, "go": 4, "go</w>": 5 } },
    })
}

/// Byte-level with all 256 bytes, and tokens that end or begin within a character.
fn all_bytes() -> Value {
    let mut json = bytes();
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255u8 {
        vocab.insert(byte_level::byte_char(byte).into(), byte.into());
    }
    for (token, id) in [("go", 256), ("Ġgo", 257), ("âĢ", 258), ("ĢĻ", 259), ("âĢĻ", 260), ("ï¿½", 261)] {
        vocab.insert(token.into(), id.into());
    }
    json["model"]["vocab"] = vocab.into();
    json["added_tokens"] = json!([added(262, "<|endoftext|>"), added(263, "Ġgo go"), added(264, "<0xE2>")]);
    json
}

fn every_kind() -> Vec<(&'static str, Value)> {
    vec![
        ("words", words()),
        ("bytes", bytes()),
        ("all bytes", all_bytes()),
        ("llama", llama()),
        ("normalized", normalized()),
        ("pieces", pieces()),
        ("word pieces", word_pieces()),
        ("word ends", word_ends()),
    ]
}

#[test]
fn a_token_s_text_leads_back_to_it() {
    for (name, json) in every_kind() {
        let t = tokenizer(json, json!({}));
        let ids: Vec<i64> = (0..t.vocab_size() as i64).collect();
        let texts = t.str_tokens(&ids).unwrap();
        for (id, text) in ids.iter().zip(&texts) {
            assert_eq!(t.single_token(text).unwrap(), *id, "{name}: {text:?}");
            assert!(!text.is_empty(), "{name}: {id}");
        }
        let different: std::collections::BTreeSet<&String> = texts.iter().collect();
        assert_eq!(different.len(), texts.len(), "{name}");
    }
}

#[test]
fn a_text_that_is_encoded_to_one_token_is_that_token_s() {
    for (name, json) in every_kind() {
        let t = tokenizer(json, json!({})).allow_unknown(true);
        let mut kept = 0;
        for id in 0..t.vocab_size() as i64 {
            let decoded = t.decode(&[id]).unwrap();
            if t.encode(&decoded, false).is_ok_and(|ids| ids == [id]) && t.str_tokens(&[id]).unwrap() == [decoded] {
                kept += 1;
            }
        }
        assert!(kept > 1, "{name}: {kept}");
    }
}

#[test]
fn texts_of_tokens_are_readable() {
    let show = |json: Value, ids: &[i64]| tokenizer(json, json!({})).str_tokens(ids).unwrap();
    // A byte is itself where nothing else is: the newline, but not `g`.
    assert_eq!(show(llama(), &[3 + 10, 3 + 103, 260, 259, 263]), ["\n", "<0x67>", "g", " ", " go"]);
    assert_eq!(show(normalized(), &[1, 2, 264]), ["<s>", "</s>", "<pad>"]);
    assert_eq!(
        show(all_bytes(), &[b'g'.into(), 0xe2, 258, 259, 260, 261]),
        ["g", "<id 226>", "<0xE2><0x80>", "<0x80><0x99>", "’", "\u{fffd}"]
    );
    assert_eq!(show(all_bytes(), &[257, 263, 264]), [" go", "Ġgo go", "<0xE2>"]);
    assert_eq!(show(pieces(), &[3, 5, 6, 8, 9, 10]), [" ", "▁the", "  ", " the", "<id 9>", "<id 8>"]);
    assert_eq!(show(word_pieces(), &[3, 5, 7, 10, 11]), ["the", "##s", "##the", "n't", " n't"]);
    assert_eq!(show(word_ends(), &[0, 2, 4, 5]), ["<id 0>", "g", "<id 4>", "go"]);
}

#[test]
fn special_tokens_are_saved_by_content_and_id() {
    for (name, json, ids) in [
        ("normalized", normalized(), [1, 2, 264]),
        ("llama", llama(), [1, 2, 3]),
        ("words", words(), [7, 4, 1]),
        ("two of one content", pieces(), [8, 5, 3]),
    ] {
        let config = json!({ "bos_token_id": ids[0], "eos_token_id": ids[1], "pad_token_id": ids[2] });
        let t = tokenizer(json, config);
        assert_eq!((t.bos_id(), t.eos_id(), t.pad_id()), (Some(ids[0]), Some(ids[1]), ids[2]), "{name}");
        let config: Value = serde_json::from_str(&t.config_json()).unwrap();
        let again = tokenizer(serde_json::from_str(&t.json().unwrap()).unwrap(), config.clone());
        assert_eq!(format!("{again:?}"), format!("{t:?}"), "{name}: {config}");
        let texts = |t: &Tokenizer| t.str_tokens(&(0..t.vocab_size() as i64).collect::<Vec<_>>()).unwrap();
        assert_eq!(texts(&again), texts(&t), "{name}");
        for role in ["bos", "eos", "pad"] {
            assert!(
                config[format!("{role}_token_id")].is_u64() && config[format!("{role}_token")].is_string(),
                "{name}"
            );
        }
        // Either alone is enough, but for the content that two tokens have.
        for end in ["_token", "_token_id"] {
            let mut config = config.clone();
            config.as_object_mut().unwrap().retain(|field, _| !field.ends_with(end));
            let again = tokenizer(serde_json::from_str(&t.json().unwrap()).unwrap(), config);
            if name != "two of one content" || end == "_token" {
                assert_eq!(format!("{again:?}"), format!("{t:?}"), "{name} without {end}");
            }
        }
    }
}

#[test]
fn an_added_token_has_the_id_that_its_file_says() {
    let mut json = bytes();
    json["added_tokens"] = json!([added(10, "<b>"), added(9, "<a>")]); // in whatever order
    let t = tokenizer(json.clone(), json!({}));
    assert_eq!((t.single_token("<a>").unwrap(), t.single_token("<b>").unwrap()), (9, 10));
    json["added_tokens"] = json!([added(9, "<a>"), added(11, "<b>")]);
    let error = Tokenizer::from_bytes(json.to_string().as_bytes(), None).unwrap_err().to_string();
    assert!(error.contains("the added token `<b>` has id 11 in the file, but 10 by its place"), "{error}");
}

#[test]
fn an_unknown_word_is_an_error_unless_it_is_allowed() {
    let unknown = |json: &Value, text: &str| -> Vec<(String, usize, Option<String>)> {
        let t = tokenizer(json.clone(), json!({}));
        let words = t.unknown_words(text).unwrap();
        match t.encode(text, false) {
            Ok(_) => assert!(words.is_empty(), "{text}: {words:?}"),
            Err(Error::Tokenizer(TokenizerError::UnknownWord { unknown, hint })) => {
                assert_eq!(unknown, words[0]);
                assert!(hint.contains("allow_unknown"));
            }
            Err(other) => panic!("{text}: {other}"),
        }
        let batch = t.encode_batch(&["", text], false);
        assert_eq!(batch.is_ok(), words.is_empty(), "{text}");
        assert!(t.clone().allow_unknown(true).encode(text, false).is_ok());
        words.into_iter().map(|UnknownWord { word, position, becomes }| (word, position, becomes)).collect()
    };
    let word = |word: &str, position, becomes: Option<&str>| (word.to_string(), position, becomes.map(String::from));
    let unk = Some("<unk>");
    assert_eq!(unknown(&words(), "the road ends"), []);
    assert_eq!(
        unknown(&words(), "thé röad the wumpus"),
        [word("thé", 0, unk), word("röad", 4, unk), word("wumpus", 13, unk)]
    );
    assert_eq!(unknown(&words(), "the <unk> road"), []); // written out
    assert_eq!(unknown(&pieces(), "the thes"), []);
    assert_eq!(unknown(&pieces(), "the ü the"), [word("ü", 4, unk)]);
    assert_eq!(unknown(&pieces(), "the <unk>"), []);
    assert_eq!(unknown(&word_pieces(), "The roads [UNK] [CLS]"), []);
    assert_eq!(unknown(&word_pieces(), "the rode."), [word("rode", 4, Some("[UNK]"))]);
    assert_eq!(unknown(&llama(), "ünknown, 中 \u{1F600}"), []); // bytes for all
    assert_eq!(unknown(&all_bytes(), "ünknown, 中 \u{1F600}"), []);
    // Without a token for unknown words, the tokenizers crate leaves them out of the text.
    assert_eq!(unknown(&bytes(), "go go!\n"), []);
    assert_eq!(unknown(&bytes(), "go té<|endoftext|>x"), [word("t", 3, None), word("x", 18, None)]);
    assert_eq!(unknown(&word_ends(), "go og  go"), []);
    assert_eq!(unknown(&word_ends(), "go gx go"), [word("x", 4, None)]);
}
