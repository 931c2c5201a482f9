//! Families of encoder-decoders: each reads the shapes of two stacks, and has a table of names for each.

use super::{bart, blenderbot, blenderbot_small, fsmt, m2m_100, marian, mbart, mt5, pegasus, t5, t5gemma, umt5};
use crate::pretrained::config_json::ConfigJson;
use crate::pretrained::parts::Entry;
use crate::{Config, Error, Result};

/// Something of each of the two stacks.
#[derive(Clone, Debug)]
pub(crate) struct OfStacks<T> {
    pub(crate) encoder: T,
    pub(crate) decoder: T,
}

/// Where the weights of both stacks lie.
type Names = fn(&OfStacks<Config>, &ConfigJson) -> Result<OfStacks<Vec<Entry>>>;

/// Everything that the crate knows about a family of encoder-decoders.
pub(crate) struct EncoderDecoder {
    /// transformers' `model_type`.
    pub(crate) model_type: &'static str,
    /// Its `architectures`: transformers' name first, then others for the same.
    pub(crate) architectures: &'static [&'static str],
    /// The prefix of the checkpoint's names. Older files lack it.
    pub(crate) prefix: &'static str,
    /// Reads the shapes of the stacks. Every field means what it means in transformers.
    pub(crate) config: fn(&ConfigJson) -> Result<OfStacks<Config>>,
    /// Where each weight lies in the checkpoint of a model whose unembedding is a tensor of its own.
    pub(crate) names: Names,
    /// Other names of the embedding that both stacks share, in files that lack the first.
    pub(crate) embeddings: &'static [&'static str],
    /// Ends of the names of tensors that no forward pass needs.
    pub(crate) ignored: &'static [&'static str],
    /// The token with which the decoder's input begins, where a file does not say; transformers' default. Without one, it is the BOS token.
    pub(crate) start_token: Option<i64>,
}

/// All families of encoder-decoders.
pub(crate) const ENCODER_DECODERS: &[&EncoderDecoder] = &[
    &t5::FAMILY,
    &mt5::FAMILY,
    &umt5::FAMILY,
    &bart::FAMILY,
    &mbart::FAMILY,
    &pegasus::FAMILY,
    &marian::FAMILY,
    &m2m_100::FAMILY,
    &blenderbot::FAMILY,
    &blenderbot_small::FAMILY,
    &fsmt::FAMILY,
    &t5gemma::FAMILY,
];

/// The family of encoder-decoders that a `config.json` names.
pub(crate) fn named(json: &ConfigJson) -> Option<&'static EncoderDecoder> {
    let is_named = |family: &&&EncoderDecoder| match (json.architecture(), json.model_type()) {
        (Some(architecture), _) => family.architectures.contains(&architecture),
        (None, model_type) => Some(family.model_type) == model_type,
    };
    ENCODER_DECODERS.iter().find(is_named).copied()
}

/// The family whose encoder alone a `config.json` names, such as that of `T5EncoderModel`.
pub(crate) fn of_encoder(json: &ConfigJson) -> Option<&'static EncoderDecoder> {
    let is_encoder = json.architecture().is_some_and(|name| name.ends_with("EncoderModel"));
    let model_type = json.model_type().filter(|_| is_encoder)?;
    ENCODER_DECODERS.iter().find(|family| family.model_type == model_type).copied()
}

/// The family of a `config.json`.
///
/// # Errors
///
/// [`Error::UnknownArchitecture`]; [`Error::ConfigField`] of a field that no family supports.
pub(crate) fn find(json: &ConfigJson) -> Result<&'static EncoderDecoder> {
    let Some(family) = named(json) else {
        let found = json.architecture().or(json.model_type()).unwrap_or("(none)");
        let why = match super::find(json) {
            Ok(_) => ": it is one stack, so open it as a `HookedTransformer`".into(),
            Err(Error::UnknownArchitecture { why, .. }) => why,
            Err(_) => String::new(),
        };
        return Err(Error::UnknownArchitecture { found: found.into(), why, known: ENCODER_DECODERS.len() });
    };
    json.expect_only("is_encoder_decoder", true)?;
    json.check_fields_of_all()?;
    Ok(family)
}

/// The architectures of encoder-decoders that can be loaded.
pub(crate) fn supported() -> Vec<&'static str> {
    ENCODER_DECODERS.iter().map(|family| family.architectures[0]).collect()
}
