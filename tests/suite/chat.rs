//! Chat templates against what transformers 5.23 makes of them (`fixtures/generation/chat_templates.json`: templates in the
//! manner of known families, written for it, with conversations and texts).

use std::time::{Duration, SystemTime};

use serde_json::{json, Value};
use tch_lens::{ChatMessage, ChatOptions, Error, HookedTransformer, Tokenizer};

use super::common;

fn tokenizer(template: Option<Value>) -> Tokenizer {
    let json = json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": { "type": "WhitespaceSplit" },
        "model": { "type": "WordLevel", "unk_token": "<unk>", "vocab": { "<unk>": 0, "<s>": 1, "</s>": 2, "hi": 3 } },
    });
    let mut config = json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" }, "unk_token": "<unk>" });
    if let Some(template) = template {
        config["chat_template"] = template;
    }
    Tokenizer::from_bytes(json.to_string().as_bytes(), Some(config.to_string().as_bytes())).unwrap()
}

fn messages(json: &Value) -> Vec<ChatMessage> {
    let text = |message: &Value, field: &str| message[field].as_str().unwrap().to_string();
    json.as_array().unwrap().iter().map(|message| (text(message, "role"), text(message, "content")).into()).collect()
}

#[test]
fn templates_give_what_transformers_gives() {
    let path = common::fixtures().join("generation/chat_templates.json");
    let fixture: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let (mut texts, mut errors) = (0, 0);
    for case in fixture["cases"].as_array().unwrap() {
        let (name, conversation) = (case["template"].as_str().unwrap(), case["messages"].as_str().unwrap());
        let tokenizer = tokenizer(Some(fixture["templates"][name].clone()));
        let mut options = ChatOptions::new().generation_prompt(case["add_generation_prompt"].as_bool().unwrap());
        for (variable, value) in case["variables"].as_object().unwrap() {
            options = options.variable(variable, value.clone());
        }
        let found = tokenizer.apply_chat_template(&messages(&fixture["messages"][conversation]), &options);
        match case.get("expected") {
            Some(expected) => {
                assert_eq!(found.unwrap(), expected.as_str().unwrap(), "{name}, {conversation}");
                texts += 1;
            }
            None => {
                let error = found.unwrap_err().to_string();
                let theirs = case["error"].as_str().unwrap().trim_end_matches('.');
                let expected = match name {
                    "syntax" => "the chat template is not valid Jinja".to_string(),
                    "missing" => "the chat template failed".to_string(),
                    _ => format!("the chat template refuses the messages: {theirs}"),
                };
                assert!(error.starts_with(&expected), "{name}: {error}");
                assert!(!error.contains('\n'), "{error}");
                errors += 1;
            }
        }
    }
    assert_eq!((texts, errors), (80, 24));
}

#[test]
fn a_template_is_found_and_named() {
    let says = |error: Error| error.to_string();
    let (hi, options) = ([ChatMessage::user("hi")], ChatOptions::new());
    let none = tokenizer(None);
    let error = says(none.apply_chat_template(&hi, &options).unwrap_err());
    assert_eq!(error, "the tokenizer has no chat template; give it one with `Tokenizer::with_chat_template`");
    assert_eq!(none.chat_template(), None);

    let several = json!([{ "name": "default", "template": "plain" }, { "name": "rag", "template": "{{ documents | join(' ') }}" }]);
    let several = tokenizer(Some(several));
    let rag = options.clone().template("rag").variable("documents", json!(["a", "b"]));
    assert_eq!(several.apply_chat_template(&hi, &rag).unwrap(), "a b");
    assert_eq!(several.apply_chat_template(&hi, &options).unwrap(), "plain");
    let error = says(several.apply_chat_template(&hi, &options.clone().template("tool_use")).unwrap_err());
    assert_eq!(error, "the tokenizer has no chat template `tool_use`; it has `default`, `rag`");

    // A file of its own comes first, and what is saved has it all.
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("tokenizer.json", &several.json().unwrap());
    write("tokenizer_config.json", &several.config_json());
    write("chat_template.jinja", "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}");
    let read = Tokenizer::from_folder(folder.path()).unwrap().unwrap();
    let again = Tokenizer::from_bytes(read.json().unwrap().as_bytes(), Some(read.config_json().as_bytes())).unwrap();
    for tokenizer in [read, again] {
        assert_eq!(tokenizer.apply_chat_template(&hi, &options).unwrap(), "<s>hi</s>");
        assert_eq!(tokenizer.apply_chat_template(&hi, &rag).unwrap(), "a b");
    }
    let spaced = several.with_chat_template("{{ bos_token }} {{ messages[0].content }} {{ eos_token }}");
    assert_eq!(spaced.encode_chat(&hi, &options).unwrap(), [1, 3, 2]); // no second BOS token
}

#[test]
fn a_template_sees_the_time_and_cannot_run_for_ever() {
    let (hi, options) = ([ChatMessage::user("hi").field("name", "Ann")], ChatOptions::new());
    let apply = |template: &str, options: &ChatOptions| {
        tokenizer(None).with_chat_template(template).apply_chat_template(&hi, options)
    };
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_722_000_000);
    let now = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}";
    assert_eq!(apply(now, &options.clone().time(time)).unwrap(), "26 Jul 2024");
    assert!(apply(now, &options).unwrap().len() == 11);
    assert_eq!(apply("{{ messages[0].name }}{{ messages[0].tool_calls }}", &options).unwrap(), "Ann");
    let endless = "{% for i in range(10000) %}{% for j in range(10000) %}{% set x = j %}{% endfor %}{% endfor %}";
    let error = apply(endless, &options).unwrap_err().to_string();
    assert!(error.starts_with("the chat template failed"), "{error}");
    let error = apply("{{ strftime_now('%Q') }}", &options).unwrap_err().to_string();
    assert!(error.contains("strftime_now does not know `%Q`"), "{error}");
    let error = apply("{{ raise_exception('Two\nlines.') }}", &options).unwrap_err().to_string();
    assert_eq!(error, "the chat template refuses the messages: Two lines");
    assert!(apply("{% include 'other' %}", &options).is_err());
}

#[cfg(feature = "toy")]
#[test]
fn what_a_file_does_not_name_is_undefined() {
    // The toy names no padding token, though one is used.
    let tokenizer = HookedTransformer::toy().unwrap().tokenizer().unwrap().clone();
    let tokenizer = tokenizer.with_chat_template("{{ pad_token }}|{{ bos_token }}|{{ unk_token }}");
    let text = tokenizer.apply_chat_template(&[], &ChatOptions::new()).unwrap();
    assert_eq!(text, "|<|endoftext|>|<|unknown|>");
}
