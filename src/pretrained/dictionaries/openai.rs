//! OpenAI's format: one file that torch wrote, with `encoder.weight`, `latent_bias`, `pre_bias` and `decoder.weight`, statistics of the
//! training, and, in later versions, `activation` and `activation_state_dict` (`Autoencoder.state_dict` of github.com/openai/sparse_autoencoder).
//!
//! It does not say which activation it reads, so the caller does; and the activation function where the file has none.

use std::path::Path;

use super::options::DictionaryOptions;
use super::tensors::{finished, Orientation, Tensors};
use crate::format::torch_file::{leaves, Leaf};
use crate::format::{FormatError, Place};
use crate::sae::{Dictionary, DictionaryConfig, Encoder, FeatureActivation, InputNormalization};
use crate::unchecked::mapped::FileBytes;
use crate::{Error, Result};

/// Whether a file is of this kind.
pub(super) fn is_one(tensors: &Tensors) -> bool {
    tensors.has("latent_bias") && tensors.has("pre_bias")
}

/// The tensors of such a file: a class's name and settings stand among them.
fn entries(bytes: &[u8]) -> std::result::Result<Vec<(String, Place)>, FormatError> {
    let tensor = |(name, leaf)| match leaf {
        Leaf::Tensor(place) => Some((name, place)),
        Leaf::Int(_) | Leaf::Text(_) => None,
    };
    Ok(leaves(bytes)?.into_iter().filter_map(tensor).collect())
}

/// The activation function that the file names; `None` in files of the first versions, which name none.
fn named_activation(path: &Path, options: &DictionaryOptions) -> Result<Option<FeatureActivation>> {
    let file = FileBytes::open(path, options.access)?;
    let leaves = leaves(file.as_slice()).map_err(|what| Error::malformed(path, what))?;
    let text = |name: &str| match leaves.get(name) {
        Some(Leaf::Text(text)) => Some(text.as_str()),
        _ => None,
    };
    let refused = |what: String| Err(Error::malformed(path, what));
    match (text("activation"), leaves.get("activation_state_dict.k")) {
        (None, _) => Ok(None),
        (Some("ReLU"), _) => Ok(Some(FeatureActivation::Relu)),
        (Some("TopK"), Some(Leaf::Int(k))) => match (usize::try_from(*k), text("activation_state_dict.postact_fn")) {
            (Ok(k), Some("ReLU")) => Ok(Some(FeatureActivation::TopK(k))),
            (_, after) => refused(format!(
                "its activation is TopK with k = {k} and `postact_fn` {after:?}, but only `ReLU` is supported"
            )),
        },
        (Some("TopK"), _) => refused("its activation is TopK, but `activation_state_dict` has no number `k`".into()),
        (Some(other), _) => refused(format!("its activation is `{other}`, but only `ReLU` and `TopK` are supported")),
    }
}

pub(super) fn open(path: &Path, options: &DictionaryOptions) -> Result<Dictionary> {
    let tensors = Tensors::open(path, entries, options)?;
    if !is_one(&tensors) {
        return Err(tensors.malformed("it has no `latent_bias` and `pre_bias`, so it is none of OpenAI's dictionaries"));
    }
    let named = named_activation(path, options)?;
    if let (Some(named), Some(given)) = (named, options.activation)
        && named != given
    {
        let what = format!("its activation is {named}, but {given} was given: leave out `activation`");
        return Err(Error::setting("activation", what));
    }
    let (Some(read), Some(activation)) = (options.hook_in, named.or(options.activation)) else {
        let what =
            "the file does not say which activation it reads, and perhaps not its activation function: give them with \
                    `DictionaryOptions::hook_in` and `DictionaryOptions::activation`";
        return Err(Error::malformed(path, what));
    };
    // Theirs has a norm before the encoder exactly where the activation is TopK.
    let normalization = match activation {
        FeatureActivation::TopK(_) => InputNormalization::LayerNorm,
        _ => InputNormalization::None,
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
    for name in ["stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"] {
        tensors.skip(name);
    }
    tensors.finish()?;
    let config = DictionaryConfig {
        normalization: options.normalization.unwrap_or(normalization),
        hook_out: options.hook_out.unwrap_or(read),
        ..DictionaryConfig::new(read, activation)
    };
    finished(config, encoder, decoder)
}
