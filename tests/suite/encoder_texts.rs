//! Texts through encoders and encoder-decoders, with tokenizers of the kinds that these have: BERT's WordPiece and T5's Unigram.

use std::path::Path;

use crate::common::fixtures;
use serde_json::{json, Value};
use tch::IndexOp;
use tch_lens::{GenerateOptions, HookedEncoder, HookedEncoderDecoder, Tokens};

/// The checkpoint with a tokenizer beside it.
fn with_tokenizer(folder: &Path, tokenizer: Value, config: Value) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(folder.join(file), copy.path().join(file)).unwrap();
    }
    std::fs::write(copy.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    std::fs::write(copy.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    copy
}

fn added(names: &[&str]) -> Value {
    let of = |(id, content): (usize, &&str)| {
        json!({"id": id, "content": content, "special": true, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false})
    };
    names.iter().enumerate().map(of).collect()
}

/// BERT's: `[CLS] text [SEP]`, and the types of two texts.
fn word_pieces() -> (Value, Value) {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let words = ["the", "road", "##s", "end", "##ing", ".", "a", "r"];
    let vocab: serde_json::Map<String, Value> =
        special.iter().chain(&words).enumerate().map(|(id, word)| (word.to_string(), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(&special),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
                       "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                       {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
                     {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                               "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab},
    });
    let config = json!({"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]",
                        "mask_token": "[MASK]"});
    (tokenizer, config)
}

/// T5's: `text </s>`.
fn unigrams() -> (Value, Value) {
    let special = ["<pad>", "</s>", "<unk>"];
    let mut vocab: Vec<Value> = special.iter().map(|piece| json!([piece, 0.0])).collect();
    let pieces = ["▁the", "▁road", "s", "▁end", "ing", ".", "▁", "e", "n", "d", "r", "o", "a", "t", "h"];
    vocab.extend(pieces.iter().enumerate().map(|(i, piece)| json!([piece, -2.0 - 0.1 * i as f64])));
    vocab.extend((vocab.len()..64).map(|i| json!([format!("▁word{i}"), -9.0])));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added(&special), "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}},
                     {"Sequence": {"id": "B", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 2, "vocab": vocab, "byte_fallback": false},
    });
    (tokenizer, json!({"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}))
}

fn ids(tokens: &Tokens) -> Vec<Vec<i64>> {
    Vec::try_from(&tokens.ids).unwrap()
}

#[test]
fn an_encoder_reads_word_pieces() {
    let (tokenizer, config) = word_pieces();
    let folder = with_tokenizer(&fixtures().join("transformers/bert"), tokenizer, config);
    let model = HookedEncoder::from_pretrained(folder.path()).unwrap();
    let text = "The roads ending.";
    assert_eq!(ids(&model.to_tokens(text).unwrap()), [[2, 5, 6, 7, 8, 9, 10, 3]]);
    let pair = model.to_pair_tokens("the road", "a road.").unwrap();
    assert_eq!(ids(&pair), [[2, 5, 6, 3, 11, 6, 10, 3]]);
    assert_eq!(Vec::<Vec<i64>>::try_from(pair.types.as_ref().unwrap()).unwrap(), [[0, 0, 0, 0, 1, 1, 1, 1]]);

    // Texts of a batch are padded on the right, and get what they get alone.
    let batch = model.forward([text, "the end"]).unwrap();
    let alone = model.forward("the end").unwrap();
    let difference = (batch.i(1).narrow(0, 0, 4) - alone.i(0)).abs().max().double_value(&[]);
    println!("a padded text differs by {difference:.1e}");
    assert!(difference < 1e-5, "{difference}");

    let logits = model.forward("the [MASK] end").unwrap();
    let likeliest = logits.i((0, 2)).argmax(-1, false).int64_value(&[]);
    let predicted = model.predictions("the [MASK] end").unwrap();
    assert_eq!(predicted, [[model.tokenizer().unwrap().decode(&[likeliest]).unwrap()]]);
}

#[test]
fn an_encoder_decoder_reads_and_writes_unigrams() {
    let (tokenizer, config) = unigrams();
    let folder = with_tokenizer(&fixtures().join("encoder_decoders/t5"), tokenizer, config);
    let model = HookedEncoderDecoder::from_pretrained(folder.path()).unwrap();
    let text = "the roads ending.";
    assert_eq!(ids(&model.to_tokens(text).unwrap()), [[3, 4, 5, 6, 7, 8, 1]]);
    assert_eq!(model.start_token().unwrap(), 0);
    let options = GenerateOptions::new().do_sample(false).stop_at_eos(false).max_new_tokens(5);
    let generated = model.generate(text, &options).unwrap();
    let mut decoded = vec![0];
    for _ in 0..5 {
        let logits = model.forward(text, decoded.clone()).unwrap();
        decoded.push(logits.i((0, -1)).argmax(-1, false).int64_value(&[]));
    }
    assert_eq!(generated.rows[0].ids(), decoded);
    let written = model.generate_text(text, &options).unwrap();
    println!("{text:?} becomes {written:?}");
    assert!(!written.contains("</s>") && !written.contains("<pad>"), "{written}");
}
