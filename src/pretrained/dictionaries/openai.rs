//! OpenAI's format: one file that torch wrote, with `encoder.weight`, `latent_bias`, `pre_bias` and `decoder.weight`.
//!
//! It says neither which activation it reads nor its activation function, so the caller does.

use std::path::Path;

use super::options::DictionaryOptions;
use super::tensors::{finished, Orientation, Tensors};
use crate::format::torch_file;
use crate::sae::{Dictionary, DictionaryConfig, Encoder, InputNormalization};
use crate::{Error, Result};

/// Whether a file is of this kind.
pub(super) fn is_one(tensors: &Tensors) -> bool {
    tensors.has("latent_bias") && tensors.has("pre_bias")
}

pub(super) fn open(path: &Path, options: &DictionaryOptions) -> Result<Dictionary> {
    let tensors = Tensors::open(path, torch_file::entries, options)?;
    if !is_one(&tensors) {
        return Err(tensors.malformed("it has no `latent_bias` and `pre_bias`, so it is none of OpenAI's dictionaries"));
    }
    let (Some(read), Some(activation)) = (options.hook_in, options.activation) else {
        let what = "the file says neither which activation it reads nor its activation function: give them with \
                    `DictionaryOptions::hook_in` and `DictionaryOptions::activation`";
        return Err(Error::malformed(path, what));
    };
    let encoder = Encoder {
        w_enc: tensors.by_feature("encoder.weight", Orientation::ByFeature)?,
        b_enc: tensors.need("latent_bias")?,
        b_dec: tensors.need("pre_bias")?,
        w_skip: None,
        threshold: None,
        b_gate: None,
        r_mag: None,
    };
    let decoder = tensors.decoder("decoder.weight", Orientation::ByColumn, None)?;
    tensors.skip("stats_last_nonzero");
    tensors.finish()?;
    let config = DictionaryConfig {
        // Version 5 has a norm before the encoder, which every TopK dictionary of theirs has.
        normalization: options.normalization.unwrap_or(InputNormalization::LayerNorm),
        hook_out: options.hook_out.unwrap_or(read),
        ..DictionaryConfig::new(read, activation)
    };
    finished(config, encoder, decoder)
}
