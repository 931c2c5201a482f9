//! From a name or folder to a model: its configuration, its tokenizer, its weights.

pub(crate) mod aliases;
mod build;
pub(crate) mod checkpoint;
mod config_json;
pub(crate) mod dictionaries;
pub(crate) mod encoder_decoder;
mod family;
mod further_tokens;
#[cfg(any(fuzzing, test))] // tests only compile it
#[cfg_attr(test, allow(dead_code))]
pub mod fuzzing;
mod gguf;
mod headless;
#[cfg(feature = "hub")]
pub(crate) mod hub;
pub(crate) mod hugging_face;
mod multimodal;
mod options;
mod parts;
pub(crate) mod processing;
pub(crate) mod quantized;
mod reader;
mod rope;
pub(crate) mod saved;
mod source;
pub(crate) mod state_dict;
mod steps;
pub(crate) mod supported;
mod tasks;
mod tied;

use std::path::Path;

use serde_json::{Map, Value};
use tch::Tensor;

use self::checkpoint::{Checkpoint, Generated};
use self::config_json::ConfigJson;
use self::family::transformer_lens;
use self::parts::Entry;
use self::processing::{Processing, Processor};
use self::quantized::Quantization;
use self::source::Found;
use crate::model::Transformer;
use crate::text::tokenizer::Tokenizer;
use crate::{Config, Error, Result};

pub use self::options::LoadOptions;

/// A model as it was read: the network, its tokenizer, and what was done to its weights.
#[derive(Debug)]
pub(crate) struct Pretrained {
    pub(crate) model: Transformer,
    pub(crate) tokenizer: Option<Tokenizer>,
    /// Whether texts get the BOS token first where a call does not say.
    pub(crate) default_prepend_bos: bool,
    pub(crate) processing: Vec<Processing>,
    /// The `config.json` of a Hugging Face folder.
    pub(crate) hugging_face: Option<Map<String, Value>>,
}

impl LoadOptions {
    /// The model of a folder or of a name on the hub.
    pub(crate) fn read(&self, name_or_folder: &Path) -> Result<Pretrained> {
        crate::unchecked::cuda::load();
        if gguf::is_file(name_or_folder) {
            return self.read_gguf(name_or_folder);
        }
        let Found { folder, name } = self.source.find(name_or_folder)?;
        let folder = folder.as_path();
        if gguf::is_file(folder) {
            return self.read_gguf(folder);
        }
        if folder.join(saved::SAVED).is_file() {
            return self.read_saved(folder);
        }
        let (config, json) = (folder.join("config.json"), folder.join("cfg.json"));
        if json.is_file() && !config.is_file() {
            let fields = read_json(&json)?;
            return self.transformer_lens(fields, Checkpoint::open(folder, self.access)?);
        }
        if let Some(file) = gguf::find(folder)? {
            return self.read_gguf(&file);
        }
        let fields = read_json(&config)?;
        read_with_tokenizer(folder, |tokenizer| {
            self.hugging_face(fields, name, tokenizer, |_, _| Checkpoint::open(folder, self.access))
        })
    }

    /// The model of this configuration and tensors under TransformerLens' names.
    pub(crate) fn with_tensors(
        &self,
        config: Config,
        tensors: impl IntoIterator<Item = (String, Tensor)>,
    ) -> Result<Pretrained> {
        self.named(config, &Checkpoint::in_memory(tensors))
    }

    /// The model of this configuration, whose tensors under TransformerLens' names are made when they are read.
    ///
    /// # Errors
    ///
    /// libtorch's own, at once, where the system cannot have so much memory.
    pub(crate) fn generated(
        &self,
        config: Config,
        tensors: impl FnOnce(&Config) -> Result<Vec<(String, Generated)>>,
    ) -> Result<Pretrained> {
        config.validate()?;
        let checkpoint = Checkpoint::generated(tensors(&config)?);
        // Systems promise more memory than they have, and end a program that uses it, but refuse what they can never have.
        let count = |name: &str| checkpoint.shape(name).map_or(0, |shape| shape.iter().product::<i64>());
        let numbers = checkpoint.names().map(count).fold(0i64, i64::saturating_add);
        drop(Tensor::f_empty([numbers], (self.kind, self.device))?);
        self.named(config, &checkpoint)
    }

    /// A model from TransformerLens' `cfg.json`.
    fn transformer_lens(&self, fields: Map<String, Value>, checkpoint: Checkpoint) -> Result<Pretrained> {
        let json = ConfigJson::new(fields);
        let config = transformer_lens::config(&json)?;
        let default_prepend_bos = json.get_or("default_prepend_bos", true)?;
        Ok(Pretrained { default_prepend_bos, ..self.named(config, &checkpoint)? })
    }

    fn named(&self, config: Config, checkpoint: &Checkpoint) -> Result<Pretrained> {
        config.validate()?;
        let names = transformer_lens::names(&config, |name| checkpoint.has(name));
        let ignored = ["attn.mask", "attn.IGNORE", "attn.rotary_sin", "attn.rotary_cos"];
        self.assemble(config, checkpoint, names, &ignored, || Ok(None))
    }

    /// A model from a Hugging Face configuration and checkpoint.
    pub(crate) fn hugging_face(
        &self,
        fields: Map<String, Value>,
        name: Option<String>,
        tokenizer: impl FnOnce() -> Result<Option<Tokenizer>>,
        checkpoint: impl FnOnce(&Config, &[Entry]) -> Result<Checkpoint>,
    ) -> Result<Pretrained> {
        let mut fields = fields;
        let quantization = Quantization::take(&mut fields)?;
        let within = multimodal::language_model(&fields)?;
        let is_within = within.is_some();
        let mut fields = within.unwrap_or(fields);
        if let Some(architecture) = self.architecture {
            fields.insert("architectures".into(), vec![architecture].into());
        }
        let json = ConfigJson::new(fields.clone());
        if let Some(family) = family::encoder_decoder::of_encoder(&json) {
            return self.encoder_alone(family, &json, name, tokenizer()?, checkpoint);
        }
        let family = family::find(&json)?;
        let mut config = family.read_config(&json)?;
        let mut names = (family.names)(&config, &json)?;
        let is_headless = json.architecture().is_some_and(|name| !family.architectures.contains(&name));
        if is_headless {
            headless::cut(&json, &mut config, &mut names)?;
        }
        for field in json.unread() {
            tracing::warn!("config.json: `{field}` is not a field of {}; it is not used", family.architectures[0]);
        }
        config.validate()?;
        config.original_architecture = family.architectures[0].into();
        if let Some(name) = name {
            config.model_name = name;
        }
        let mut checkpoint = checkpoint(&config, &names)?.with_names_of_today();
        if let Some(quantization) = quantization {
            quantization.apply(&mut checkpoint, &names, family.prefix)?;
        }
        if is_within {
            checkpoint = multimodal::tensors(checkpoint, &names, family);
            let unembedding = names.iter().find(|entry| entry.part == parts::Part::U);
            if !json.has_any(&["tie_word_embeddings"]) && unembedding.is_some_and(|entry| !checkpoint.has(entry.name)) {
                config.tie_word_embeddings = true;
            }
            // What is saved is the language model by itself.
            fields.insert("architectures".into(), vec![family.architectures[0]].into());
            fields.insert("model_type".into(), family.model_type.into());
            fields.insert("tie_word_embeddings".into(), config.tie_word_embeddings.into());
        }
        let prefix = headless::prefix(family.prefix, &names);
        if checkpoint.lacks_prefix(&prefix, &names) {
            checkpoint = checkpoint.with_prefix(&prefix, &names);
        }
        let is_left_out = |name: &&str| {
            (family.left_out)(&json, name)
                || further_tokens::is_theirs(&json, config.n_layers, name)
                || (is_headless && name.contains("pooler."))
        };
        let left_out: Vec<&str> = checkpoint.names().filter(is_left_out).collect();
        if let Some(first) = left_out.first() {
            tracing::info!(
                "{} tensors are left out, as no run over tokens reaches them, such as `{first}`",
                left_out.len()
            );
        }
        let ignored = [family.ignored, &left_out].concat();
        let read = self.assemble(config, &checkpoint, names, &ignored, tokenizer)?;
        Ok(Pretrained { hugging_face: Some(fields), ..read })
    }

    /// Lays out the weights, and processes them as the options say.
    fn assemble(
        &self,
        mut config: Config,
        checkpoint: &Checkpoint,
        mut names: Vec<Entry>,
        ignored: &[&str],
        tokenizer: impl FnOnce() -> Result<Option<Tokenizer>>,
    ) -> Result<Pretrained> {
        crate::unchecked::cuda::check(self.device)?;
        let unread = tied::tie(&mut config, &mut names, checkpoint)?;
        let ignored: Vec<&str> = ignored.iter().copied().chain(unread).collect();
        let processor = Processor::new(self.processing, &config);
        let weights = build::build(&config, checkpoint, &names, &ignored, self, &processor)?;
        config.norms = processor.norms(&config);
        config.tie_word_embeddings = weights.is_tied();
        let model = Transformer::new(config, weights);
        Ok(Pretrained {
            model,
            tokenizer: tokenizer()?,
            default_prepend_bos: true,
            processing: processor.report(),
            hugging_face: None,
        })
    }
}

/// Loads a model while another thread reads the folder's tokenizer, which takes a tenth of the time of a small model's weights.
fn read_with_tokenizer<T>(
    folder: &Path,
    load: impl FnOnce(Box<dyn FnOnce() -> Result<Option<Tokenizer>> + '_>) -> Result<T>,
) -> Result<T> {
    std::thread::scope(|scope| {
        let read = || Tokenizer::from_folder(folder);
        let thread = tasks::start(scope, read);
        load(Box::new(move || match thread {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => read(),
        }))
    })
}

/// A JSON object from a file.
fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(|error| Error::malformed(path, error))
}
