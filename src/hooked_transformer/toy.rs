//! The model that the crate carries.

use std::path::Path;

use super::HookedTransformer;
use crate::pretrained::checkpoint::Checkpoint;
use crate::pretrained::Load;
use crate::text::tokenizer::Tokenizer;
use crate::{Error, Result};

/// A file of `models/toy`, compiled in.
macro_rules! file {
    ($name:literal) => {
        include_bytes!(concat!("../../models/toy/", $name))
    };
}

impl HookedTransformer {
    /// The trained toy model that the crate carries: 4 layers of 4 heads, `d_model` 128, a word-level tokenizer.
    ///
    /// Its language is a generator's simple English, so what it must have learned is known: indirect objects, facts,
    /// repeated spans, agreement of subject and verb, and years. See `models/toy/README.md`.
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn toy() -> Result<Self> {
        Load::new().toy()
    }
}

impl Load {
    /// [`HookedTransformer::toy`] with choices.
    ///
    /// # Errors
    ///
    /// None but libtorch's own.
    pub fn toy(&self) -> Result<HookedTransformer> {
        let path = |name: &str| Path::new("models/toy").join(name);
        let fields = serde_json::from_slice(file!("config.json"))
            .map_err(|error| Error::malformed(path("config.json"), error))?;
        let tokenizer = Tokenizer::from_bytes(file!("tokenizer.json"), Some(file!("tokenizer_config.json")))?;
        self.hugging_face(
            fields,
            Some("toy".into()),
            || Ok(Some(tokenizer)),
            |_| Checkpoint::from_safetensors(file!("model.safetensors"), &path("model.safetensors")),
        )
        .map(HookedTransformer::from)
    }
}
