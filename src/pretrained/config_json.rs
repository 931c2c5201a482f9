//! [`ConfigJson`]: a `config.json` that records which of its fields were read, so that none is skipped in silence.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::config::Activation;
use crate::{Error, Result};

/// A `config.json`, or an object within one. It records the fields that were read.
#[derive(Debug, Default)]
pub(crate) struct ConfigJson {
    fields: Map<String, Value>,
    /// The prefix of the fields' full names: empty, or `rope_scaling.` for the object in that field.
    path: String,
    /// Full names of the fields that were read. An object that is read field by field has its name with the dot.
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

    /// The field; `None` where it is absent or null.
    pub(crate) fn get<T: DeserializeOwned>(&self, field: &str) -> Result<Option<T>> {
        self.ignore(&[field]);
        match self.fields.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|error| self.refuse(field, value, &format!("it cannot be read: {error}"))),
        }
    }

    /// The field, or this default where it is absent. A null is `None`: it does not mean the default.
    pub(crate) fn get_unless_null<T: DeserializeOwned>(&self, field: &str, default: Option<T>) -> Result<Option<T>> {
        match self.fields.contains_key(field) {
            true => self.get(field),
            false => Ok(default),
        }
    }

    /// The object in this field. Its own fields are recorded, too. An empty object counts as absent.
    pub(crate) fn object(&self, field: &str) -> Result<Option<ConfigJson>> {
        let fields: Map<String, Value> = self.get_or(field, Map::new())?;
        let path = format!("{}{field}.", self.path);
        self.read.borrow_mut().insert(path.clone());
        Ok((!fields.is_empty()).then(|| ConfigJson { fields, path, read: self.read.clone() }))
    }

    /// The field, or transformers' default.
    pub(crate) fn get_or<T: DeserializeOwned>(&self, field: &str, default: T) -> Result<T> {
        Ok(self.get(field)?.unwrap_or(default))
    }

    /// The field; its absence is an error.
    pub(crate) fn require<T: DeserializeOwned>(&self, field: &str) -> Result<T> {
        self.get(field)?.ok_or_else(|| self.refuse(field, "absent", "it is needed here"))
    }

    /// The field under the first of these names that the file has.
    pub(crate) fn get_any<T: DeserializeOwned>(&self, fields: &[&str]) -> Result<Option<T>> {
        self.ignore(fields);
        for field in fields {
            if let Some(value) = self.get(field)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// Whether one of these fields is present and not null.
    pub(crate) fn has_any(&self, fields: &[&str]) -> bool {
        fields.iter().any(|field| self.fields.get(*field).is_some_and(|value| !value.is_null()))
    }

    /// Refuses every value of a field but the supported one.
    pub(crate) fn expect_only<T>(&self, field: &str, supported: T) -> Result<()>
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

    /// Marks fields as read that change nothing in a forward pass, such as dropout.
    pub(crate) fn ignore(&self, fields: &[&str]) {
        self.read.borrow_mut().extend(fields.iter().map(|field| format!("{}{field}", self.path)));
    }

    /// An error that has the field's full name and its value.
    pub(crate) fn refuse(&self, field: &str, value: impl ToString, why: &str) -> Error {
        Error::field(&format!("{}{field}", self.path), value, why)
    }

    /// Checks the fields that mean the same for every architecture.
    pub(crate) fn check_common_fields(&self) -> Result<()> {
        self.expect_only("is_encoder_decoder", false)?;
        self.check_fields_of_all()
    }

    /// Checks the fields that mean the same for every architecture, encoder-decoders included.
    pub(crate) fn check_fields_of_all(&self) -> Result<()> {
        self.expect_only("add_cross_attention", false)?;
        for field in ["quantization_config", "pruned_heads"] {
            match self.get::<Value>(field)? {
                Some(Value::Object(object)) if object.is_empty() => {}
                Some(value) => return Err(self.refuse(field, value, "it is not supported")),
                None => {}
            }
        }
        Ok(())
    }

    /// An error where the file sets fields of single layers that the family does not read.
    pub(crate) fn refuse_layer_config(&self) -> Result<()> {
        let field = "per_layer_config";
        let is_read = self.read.borrow().contains(&format!("{}{field}.", self.path));
        match self.get::<Map<String, Value>>(field)? {
            Some(layers) if !layers.is_empty() && !is_read => Err(self.refuse(
                field,
                Value::Object(layers),
                "fields of single layers are not supported in this family",
            )),
            _ => Ok(()),
        }
    }

    /// An error where a field was not read.
    pub(crate) fn refuse_unread(&self) -> Result<()> {
        match self.unread().first() {
            Some(field) => Err(Error::field(field, "set", "this field of a single layer is not supported")),
            None => Ok(()),
        }
    }

    /// The fields that were not read. transformers does not know them for this architecture either.
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

    /// The activation function that one of these fields names as transformers does.
    pub(crate) fn activation(&self, fields: &[&str], default: &str) -> Result<Activation> {
        let name: String = self.get_any(fields)?.unwrap_or_else(|| default.into());
        self.activation_named(fields.first().unwrap_or(&"hidden_act"), &name)
    }

    /// The activation function that transformers calls so. `field` is where the name comes from.
    pub(crate) fn activation_named(&self, field: &str, name: &str) -> Result<Activation> {
        Ok(match name {
            "relu" => Activation::Relu,
            "relu2" => Activation::Relu2,
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" => Activation::GeluNew,
            "gelu_fast" => Activation::GeluFast,
            "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_accurate" => Activation::GeluPytorchTanh,
            "quick_gelu" => Activation::QuickGelu,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            "xielu" => Activation::Xielu,
            _ => return Err(self.refuse(field, name, "this activation function is not supported")),
        })
    }
}
