//! Loads encoder-decoders from files.

use std::path::Path;

use super::HookedEncoderDecoder;
use crate::pretrained::encoder_decoder::supported;
use crate::pretrained::LoadOptions;
use crate::Result;

impl LoadOptions {
    /// Loads an encoder-decoder from a folder or, with the feature `hub`, from the Hugging Face hub. Weights are not processed, as in
    /// TransformerLens; each step is [reported](crate::HookedTransformer::processing) as left out.
    ///
    /// The folder is one of Hugging Face, or one that [`HookedEncoderDecoder::save_pretrained`] wrote.
    ///
    /// # Errors
    ///
    /// Those of [`LoadOptions::open`].
    pub fn open_encoder_decoder(&self, name_or_folder: impl AsRef<Path>) -> Result<HookedEncoderDecoder> {
        HookedEncoderDecoder::from_pair(self.read_encoder_decoder(name_or_folder.as_ref())?)
    }
}

impl HookedEncoderDecoder {
    /// Loads a model with the default settings of [`LoadOptions`].
    ///
    /// # Errors
    ///
    /// Those of [`LoadOptions::open`].
    pub fn from_pretrained(name_or_folder: impl AsRef<Path>) -> Result<Self> {
        LoadOptions::new().open_encoder_decoder(name_or_folder)
    }

    /// The architectures that can be loaded, with the names in `config.json`.
    ///
    /// ```
    /// use tch_lens::HookedEncoderDecoder;
    /// assert!(HookedEncoderDecoder::supported().contains(&"T5ForConditionalGeneration"));
    /// ```
    pub fn supported() -> Vec<&'static str> {
        supported()
    }
}
