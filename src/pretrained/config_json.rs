//! [`ConfigJson`]: a `config.json` whose every field is accounted for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::config::Activation;
use crate::{Error, Result};

/// A `config.json`, or an object within one, which remembers what was read of it.
#[derive(Debug, Default)]
pub(crate) struct ConfigJson {
    fields: Map<String, Value>,
    /// What the names of these fields begin with: empty, or `rope_scaling.` of an object within.
    path: String,
    /// By full name; of an object that is read field by field, its name with the dot.
    read: Rc<RefCell<BTreeSet<String>>>,
}

/// Fields of every transformers configuration that change nothing in a forward pass over tokens.
pub(crate) const HARMLESS: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_experts_implementation",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_range",
    "is_decoder",
    "keys_to_ignore_at_inference",
    "label2id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "model_type",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_last_hidden_states",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "use_bfloat16",
    "use_cache",
];

impl ConfigJson {
    pub(crate) fn new(fields: Map<String, Value>) -> Self {
        ConfigJson { fields, ..ConfigJson::default() }
    }

    /// The first of `architectures`.
    pub(crate) fn architecture(&self) -> Option<&str> {
        self.fields.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str)
    }

    /// The `model_type`.
    pub(crate) fn model_type(&self) -> Option<&str> {
        self.fields.get("model_type").and_then(Value::as_str)
    }

    /// The field, unless absent or null.
    pub(crate) fn get<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>> {
        self.ignore(&[field]);
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|error| self.refuse(field, value, &format!("it cannot be read: {error}"))),
        }
    }

    /// The field, or this default where it is absent; null, which means something else then, is `None`.
    pub(crate) fn unless_null<T: DeserializeOwned>(&self, field: &str, default: Option<T>) -> Result<Option<T>> {
        match self.fields.contains_key(field) {
            true => self.get(field),
            false => Ok(default),
        }
    }

    /// The object in this field, whose own fields are then accounted for, too; an empty one is as good as absent.
    pub(crate) fn object(&self, field: &str) -> Result<Option<ConfigJson>> {
        let fields: Map<String, Value> = self.or(field, Map::new())?;
        let path = format!("{}{field}.", self.path);
        self.read.borrow_mut().insert(path.clone());
        Ok((!fields.is_empty()).then(|| ConfigJson { fields, path, read: self.read.clone() }))
    }

    /// The field, or transformers' default.
    pub(crate) fn or<T: DeserializeOwned>(&self, field: &str, default: T) -> Result<T> {
        Ok(self.get(field)?.unwrap_or(default))
    }

    /// The field, which must be there.
    pub(crate) fn required<T: DeserializeOwned>(&self, field: &str) -> Result<T> {
        self.get(field)?.ok_or_else(|| self.refuse(field, "absent", "it is needed here"))
    }

    /// The field under whichever of these names it has.
    pub(crate) fn any<T: DeserializeOwned>(&self, fields: &[&str]) -> Result<Option<T>> {
        self.ignore(fields);
        for field in fields {
            if let Some(value) = self.get(field)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Whether one of these is there, and not null.
    pub(crate) fn has_any(&self, fields: &[&str]) -> bool {
        fields.iter().any(|field| self.fields.get(*field).is_some_and(|value| !value.is_null()))
    }

    /// Refuses a field that has another value than the only one supported.
    pub(crate) fn only<T>(&self, field: &str, supported: T) -> Result<()>
    where
        T: DeserializeOwned + PartialEq + std::fmt::Display,
    {
        match self.get::<T>(field)? {
            Some(value) if value != supported => {
                Err(self.refuse(field, &value, &format!("only {supported} is supported")))
            }
            _ => Ok(()),
        }
    }

    /// Says that these fields change nothing: dropout and what only training knows.
    pub(crate) fn ignore(&self, fields: &[&str]) {
        self.read.borrow_mut().extend(fields.iter().map(|field| format!("{}{field}", self.path)));
    }

    /// An error that names the field, by its full name, and its value.
    pub(crate) fn refuse(&self, field: &str, value: impl ToString, why: &str) -> Error {
        Error::field(&format!("{}{field}", self.path), value, why)
    }

    /// Fields that mean the same for every architecture.
    pub(crate) fn common(&self) -> Result<()> {
        self.only("is_encoder_decoder", false)?;
        self.only("add_cross_attention", false)?;
        for field in ["quantization_config", "pruned_heads", "per_layer_config"] {
            match self.get::<Value>(field)? {
                Some(Value::Object(object)) if object.is_empty() => {}
                Some(value) => return Err(self.refuse(field, value, "it is not supported")),
                None => {}
            }
        }
        Ok(())
    }

    /// The fields that nobody read: transformers does not know them for this architecture either.
    pub(crate) fn unread(&self) -> Vec<String> {
        fn unread(fields: &Map<String, Value>, path: &str, read: &BTreeSet<String>) -> Vec<String> {
            let of = |(field, value): (&String, &Value)| {
                let name = format!("{path}{field}");
                let within = format!("{name}.");
                match value {
                    Value::Object(fields) if read.contains(&within) => unread(fields, &within, read),
                    _ if read.contains(&name) || HARMLESS.contains(&field.as_str()) => Vec::new(),
                    _ => vec![name],
                }
            };
            fields.iter().flat_map(of).collect()
        }
        unread(&self.fields, &self.path, &self.read.borrow())
    }

    /// An activation function under transformers' name.
    pub(crate) fn activation(&self, fields: &[&str], default: &str) -> Result<Activation> {
        let name: String = self.any(fields)?.unwrap_or_else(|| default.into());
        Ok(match name.as_str() {
            "relu" => Activation::Relu,
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" => Activation::GeluNew,
            "gelu_fast" => Activation::GeluFast,
            "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_accurate" => Activation::GeluPytorchTanh,
            "quick_gelu" => Activation::QuickGelu,
            "silu" | "swish" => Activation::Silu,
            "xielu" => Activation::Xielu,
            _ => return Err(self.refuse(fields[0], name, "this activation function is not supported")),
        })
    }
}
