//! The toy model, which is part of the crate.

use std::path::Path;

use super::HookedTransformer;
use crate::pretrained::checkpoint::Checkpoint;
use crate::pretrained::LoadOptions;
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result};

/// The bytes of a file in `models/toy`, which are compiled into the crate.
macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../../models/toy/", $name))
    };
}

impl HookedTransformer {
    /// The trained toy model, which is part of the crate: 4 layers with 4 heads each, `d_model` 128, and a word-level tokenizer.
    ///
    /// It was trained on sentences of a generator, so the tasks that it learned are known: indirect objects, facts, repeated spans, agreement of
    /// subject and verb, and years. `models/toy/README.md` describes them.
    ///
    /// # Errors
    ///
    /// [`Error::Torch`] if libtorch fails, for example for lack of memory.
    pub fn toy() -> Result<Self> {
        LoadOptions::new().toy()
    }
}

impl LoadOptions {
    /// [`HookedTransformer::toy`] with these settings.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`] for a device that is not available; [`Error::Torch`] if libtorch fails, for example for lack of memory.
    pub fn toy(&self) -> Result<HookedTransformer> {
        let path = |name: &str| Path::new("models/toy").join(name);
        let fields = serde_json::from_slice(file!("config.json"))
            .map_err(|error| Error::malformed(path("config.json"), error))?;
        let tokenizer = Tokenizer::from_bytes(file!("tokenizer.json"), Some(file!("tokenizer_config.json")))?;
        self.hugging_face(
            fields,
            Some("toy".into()),
            || Ok(Some(tokenizer)),
            |_, _| Checkpoint::from_safetensors(file!("model.safetensors"), &path("model.safetensors")),
        )
        .map(HookedTransformer::from)
    }
}
