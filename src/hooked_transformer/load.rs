//! Loads models from files: [`LoadOptions::open`] and its short forms.

use std::path::Path;

use tch::Tensor;

use super::HookedTransformer;
use crate::pretrained::supported::{supported, SupportedArchitecture};
use crate::pretrained::LoadOptions;
#[cfg(doc)]
use crate::Error;
use crate::{Config, Result};

impl LoadOptions {
    /// Loads a model from a folder or, with the feature `hub`, from the Hugging Face hub.
    ///
    /// On the hub, TransformerLens' names such as `gpt2-small` and `pythia-70m` are supported as well. If a folder has the given name, it is
    /// loaded instead. A GGUF file is opened by its own path. Four kinds of folders are supported:
    ///
    /// - Hugging Face folders with `config.json`, with `model.safetensors` or otherwise `pytorch_model.bin` (or shards of either with their
    ///   index), and optionally with `tokenizer.json`;
    /// - folders with one GGUF file and no other weights;
    /// - folders with TransformerLens' `cfg.json` and a `model.safetensors` with TransformerLens' names;
    /// - folders that [`HookedTransformer::save_pretrained`] wrote. These are loaded as saved, and settings for processing are ignored.
    ///
    /// Weights that are quantised, in GGUF files or as `quantization_config` says (GPTQ, AWQ, bitsandbytes, FP8, MXFP4), are dequantised
    /// one by one, with the numbers of the format's reference, into the kind of [`LoadOptions::kind`].
    ///
    /// Weight files are mapped into memory while the model loads, so no program may truncate or change them meanwhile: truncating a mapped
    /// file ends this process with the signal `SIGBUS`. [`LoadOptions::memory_map`] makes `open` read the files instead.
    ///
    /// # Errors
    ///
    /// - [`Error::Io`] if a file cannot be read, [`Error::Malformed`] if its contents are invalid;
    /// - [`Error::Hub`] if the hub does not provide the model, [`Error::NoCheckpoint`] for an unknown training checkpoint;
    /// - [`Error::UnknownArchitecture`] and [`Error::ConfigField`] for configurations that are not supported;
    /// - [`Error::Checkpoint`] if the weights do not match the configuration;
    /// - [`Error::NoDevice`] for a device that is not available, [`Error::Torch`] if memory runs out.
    pub fn open(&self, name_or_folder: impl AsRef<Path>) -> Result<HookedTransformer> {
        self.read(name_or_folder.as_ref()).map(HookedTransformer::from)
    }

    /// Makes a model from a configuration and weights with TransformerLens' names and shapes, such as `blocks.0.attn.W_Q` with the shape
    /// `[head, d_model, d_head]`.
    ///
    /// # Errors
    ///
    /// [`Error::ConfigField`] for an invalid configuration; [`Error::Checkpoint`] if
    /// the weights do not match the configuration.
    pub fn state_dict(
        &self,
        config: Config,
        tensors: impl IntoIterator<Item = (String, Tensor)>,
    ) -> Result<HookedTransformer> {
        self.with_tensors(config, tensors).map(HookedTransformer::from)
    }
}

impl HookedTransformer {
    /// Loads a model with the default settings of [`LoadOptions`], which include TransformerLens' weight processing.
    ///
    /// # Errors
    ///
    /// Those of [`LoadOptions::open`].
    pub fn from_pretrained(name_or_folder: impl AsRef<Path>) -> Result<Self> {
        LoadOptions::new().open(name_or_folder)
    }

    /// Loads a model without weight processing.
    ///
    /// # Errors
    ///
    /// Those of [`LoadOptions::open`].
    pub fn from_pretrained_no_processing(name_or_folder: impl AsRef<Path>) -> Result<Self> {
        LoadOptions::new().no_processing().open(name_or_folder)
    }

    /// The architectures that can be loaded, each with the tiny checkpoints on which it was compared with transformers or TransformerLens,
    /// and the largest differences. `docs/conformance.md` has the same as a table, and more.
    ///
    /// ```
    /// let supported = tch_lens::HookedTransformer::supported();
    /// let llama = supported.iter().find(|it| it.architecture == "LlamaForCausalLM").unwrap();
    /// assert_eq!(llama.model_type, "llama");
    /// assert!(llama.comparisons.len() > 1 && llama.largest_difference() < 1e-4);
    /// println!("{llama}");
    /// ```
    pub fn supported() -> Vec<SupportedArchitecture> {
        supported()
    }
}
