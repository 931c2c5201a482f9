//! [`ChatTemplates`]: the chat templates that a tokenizer's files have, and what they can print of its special tokens.

use std::path::Path;
use std::sync::Arc;

use serde_json::{json, Map, Value};

use super::Tokenizer;
use crate::{Error, Result};

/// The name of the template that is meant where none is named.
pub(in crate::text) const DEFAULT: &str = "default";

/// The chat templates that a tokenizer's files have, and the special tokens that these files name.
#[derive(Clone, Debug, Default)]
pub(in crate::text) struct ChatTemplates {
    /// By name, each Jinja.
    pub(in crate::text) templates: Map<String, Value>,
    /// `bos_token` and its like, as text; only those that the files name, as in transformers.
    pub(in crate::text) variables: Map<String, Value>,
}

impl ChatTemplates {
    /// From the files that describe a tokenizer, the first to be believed first.
    pub(super) fn find(sources: &[Value]) -> Self {
        let mut found = ChatTemplates::default();
        for source in sources {
            match &source["chat_template"] {
                Value::String(template) => found.add(DEFAULT, template),
                Value::Array(named) => named.iter().for_each(|entry| {
                    if let (Some(name), Some(template)) = (entry["name"].as_str(), entry["template"].as_str()) {
                        found.add(name, template);
                    }
                }),
                _ => {}
            }
            for (name, token) in source.as_object().into_iter().flatten() {
                let text = |token: &Value| token.as_str().or_else(|| token["content"].as_str()).map(Value::from);
                let value = match token {
                    Value::Array(tokens) if name == "additional_special_tokens" => {
                        Some(tokens.iter().filter_map(text).collect())
                    }
                    token if name.ends_with("_token") => text(token),
                    _ => None,
                };
                if let Some(value) = value {
                    found.variables.entry(name).or_insert(value);
                }
            }
        }
        found
    }

    fn add(&mut self, name: &str, template: &str) {
        self.templates.entry(name).or_insert_with(|| template.into());
    }

    /// What a folder's `chat_template.jinja` says, in the form of the field of `tokenizer_config.json` that it overrides.
    pub(super) fn file(folder: &Path) -> Result<Option<Value>> {
        let path = folder.join("chat_template.jinja");
        match std::fs::read_to_string(&path) {
            Ok(template) => Ok(Some(json!({ "chat_template": template }))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path)(error)),
        }
    }

    /// Adds what was found to a `tokenizer_config.json`.
    pub(super) fn save(&self, config: &mut Value) {
        for (name, token) in &self.variables {
            if config[name].is_null() {
                config[name] = token.clone();
            }
        }
        match self.templates.get(DEFAULT) {
            _ if self.templates.is_empty() => {}
            Some(template) if self.templates.len() == 1 => config["chat_template"] = template.clone(),
            _ => {
                let named = |(name, template)| json!({ "name": name, "template": template });
                config["chat_template"] = self.templates.iter().map(named).collect();
            }
        }
    }
}

impl Tokenizer {
    /// The chat template of its files, which is Jinja; `None` where they have none. With the feature `chat`,
    /// `apply_chat_template` applies it.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat.templates.get(DEFAULT)?.as_str()
    }

    /// The same tokenizer with another chat template, in Jinja.
    pub fn with_chat_template(mut self, template: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.chat).templates.insert(DEFAULT.into(), template.into().into());
        self
    }

    #[cfg(feature = "chat")]
    pub(in crate::text) fn chat_templates(&self) -> &ChatTemplates {
        &self.chat
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_says_so_is_believed() {
        let sources = [
            json!({ "chat_template": "jinja" }),
            json!({ "chat_template": [{ "name": "default", "template": "config" }, { "name": "rag", "template": "docs" }, {}],
                    "bos_token": { "content": "<s>" }, "eos_token": "</s>", "add_bos_token": true, "unk_token": null }),
            json!({ "bos_token": "<other>", "additional_special_tokens": ["<x>", { "content": "<y>" }], "eos_token_id": 3 }),
        ];
        let found = ChatTemplates::find(&sources);
        assert_eq!(Value::from(found.templates.clone()), json!({ "default": "jinja", "rag": "docs" }));
        let variables = json!({ "additional_special_tokens": ["<x>", "<y>"], "bos_token": "<s>", "eos_token": "</s>" });
        assert_eq!(Value::from(found.variables.clone()), variables);
        let mut saved = json!({ "eos_token": "</s>", "eos_token_id": 2 });
        found.save(&mut saved);
        let again = ChatTemplates::find(&[saved]);
        assert_eq!((&again.templates, &again.variables), (&found.templates, &found.variables));
        let mut nothing = json!({});
        ChatTemplates::find(&[json!({ "bos_token": 7 })]).save(&mut nothing);
        assert_eq!(nothing, json!({}));
    }
}
