//! Encoder-decoders to folders.

use std::path::Path;

use serde_json::Map;
use tch::Kind;

use super::HookedEncoderDecoder;
use crate::hooked_transformer::write_json;
use crate::pretrained::checkpoint::SAFETENSORS;
use crate::pretrained::encoder_decoder::{hugging_face, SavedPair, PAIR_VERSION, SAVED_PAIR};
use crate::tensor::file::write_safetensors;
use crate::{Error, Result};

impl HookedEncoderDecoder {
    /// Writes a folder that [`LoadOptions::open_encoder_decoder`](crate::LoadOptions::open_encoder_decoder) loads as the same model: a
    /// folder for each stack, as [`HookedTransformer::save_pretrained`](crate::HookedTransformer::save_pretrained) writes it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`TokenizerError`](crate::TokenizerError) if the tokenizer cannot be written.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        self.encoder.save_pretrained(folder.join("encoder"))?;
        self.decoder.save_pretrained(folder.join("decoder"))?;
        let saved = SavedPair { version: PAIR_VERSION, start_token: self.start_token };
        write_json(&folder.join(SAVED_PAIR), &saved)
    }

    /// Writes a Hugging Face folder of the family that the model was read as, with the weights in `kind`.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a model that was not read from a Hugging Face folder; [`CheckpointError::NotRepresentable`](crate::CheckpointError::NotRepresentable) for a weight that the
    /// family's folders have no place for; [`Error::UnsupportedKind`]; [`Error::Io`].
    pub fn save_hugging_face(&self, folder: impl AsRef<Path>, kind: Kind) -> Result<()> {
        let folder = folder.as_ref();
        let Some(fields) = &self.hugging_face else {
            return Err(Error::unsupported(
                "this encoder-decoder was not read from a Hugging Face folder, whose form is not known: use `save_pretrained`",
            ));
        };
        let mut fields = Map::clone(fields);
        if let Some(start) = self.start_token {
            fields.insert("decoder_start_token_id".into(), start.into());
        }
        let (tensors, fields) = hugging_face(&self.encoder, &self.decoder, fields, kind)?;
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mark = folder.join(SAVED_PAIR);
        if mark.exists() {
            std::fs::remove_file(&mark).map_err(Error::io(&mark))?; // it would say that the stacks are in folders of their own
        }
        write_safetensors(&folder.join(SAFETENSORS), tensors)?;
        self.decoder.write_tokenizer(folder)?;
        write_json(&folder.join("config.json"), &fields)
    }
}
