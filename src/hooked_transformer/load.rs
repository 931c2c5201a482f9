//! Models from files: [`Load::open`] and its short forms.

use std::path::Path;

use tch::Tensor;

use super::HookedTransformer;
use crate::pretrained::{supported, Load};
use crate::{Config, Result};

impl Load {
    /// Loads a model: from a folder, or by its name on the Hugging Face hub (feature `hub`), where TransformerLens' names
    /// such as `gpt2-small` and `pythia-70m` serve as well. A folder of that name comes first.
    ///
    /// A Hugging Face folder has `config.json`; `model.safetensors`, else `pytorch_model.bin`, or shards of either with
    /// their index; and `tokenizer.json` if there is one. A folder with TransformerLens' `cfg.json` and `model.safetensors`
    /// with its names is one as well, and so is one that [`HookedTransformer::save_pretrained`] wrote, which is loaded
    /// as it was saved, whatever processing is asked for.
    ///
    /// Files of weights are mapped into memory while the model loads, so they must not be cut or changed meanwhile: a file
    /// that another program cuts ends this process with the signal `SIGBUS`. [`Load::memory_map`] has them read instead.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Malformed`], [`Error::Hub`], [`Error::UnknownArchitecture`], [`Error::ConfigField`],
    /// [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::ExtraTensors`]: each names what is wrong.
    pub fn open(&self, name_or_folder: impl AsRef<Path>) -> Result<HookedTransformer> {
        self.read(name_or_folder.as_ref()).map(HookedTransformer::from)
    }

    /// A model of one's own configuration and TransformerLens' names: `blocks.0.attn.W_Q` of `[head, d_model, d_head]`, ….
    ///
    /// # Errors
    ///
    /// [`Error::ConfigField`], [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::ExtraTensors`].
    pub fn state_dict(
        &self,
        config: Config,
        tensors: impl IntoIterator<Item = (String, Tensor)>,
    ) -> Result<HookedTransformer> {
        self.from_tensors(config, tensors).map(HookedTransformer::from)
    }
}

impl HookedTransformer {
    /// Loads a model with the default choices of [`Load`].
    ///
    /// # Errors
    ///
    /// Those of [`Load::open`].
    pub fn from_pretrained(name_or_folder: impl AsRef<Path>) -> Result<Self> {
        Load::new().open(name_or_folder)
    }

    /// Loads a model as the checkpoint has it.
    ///
    /// # Errors
    ///
    /// Those of [`Load::open`].
    pub fn from_pretrained_no_processing(name_or_folder: impl AsRef<Path>) -> Result<Self> {
        Load::new().no_processing().open(name_or_folder)
    }

    /// The architectures that can be loaded, as in `config.json`.
    pub fn supported() -> Vec<&'static str> {
        supported()
    }
}
