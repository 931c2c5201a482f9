//! Encoder-decoders: one checkpoint of two stacks, each read as a model of its own.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use super::checkpoint::Checkpoint;
use super::config_json::ConfigJson;
use super::family::encoder_decoder::{find, EncoderDecoder, OfStacks};
use super::hugging_face::{is_one_matrix, to_kind, HuggingFace};
use super::parts::{Entry, Part};
use super::quantized::Quantization;
use super::source::Found;
use super::state_dict::write;
use super::{read_json, LoadOptions, Pretrained};
use crate::model::Transformer;
use crate::text::tokenizer::Tokenizer;
use crate::{CheckpointError, Config, Error, Result};

pub(crate) use super::family::encoder_decoder::supported;

/// An encoder-decoder as it was read.
#[derive(Debug)]
pub(crate) struct PretrainedPair {
    pub(crate) encoder: Pretrained,
    pub(crate) decoder: Pretrained,
    /// The token with which the decoder's input begins.
    pub(crate) start_token: Option<i64>,
}

/// The file that marks a folder in our own form: the stacks are in folders of it.
pub(crate) const SAVED_PAIR: &str = "encoder_decoder.json";

/// The contents of [`SAVED_PAIR`].
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedPair {
    pub(crate) version: u32,
    pub(crate) start_token: Option<i64>,
}

/// Of [`SAVED_PAIR`].
pub(crate) const PAIR_VERSION: u32 = 1;

impl LoadOptions {
    /// The encoder-decoder of a folder or of a name on the hub.
    pub(crate) fn read_encoder_decoder(&self, name_or_folder: &Path) -> Result<PretrainedPair> {
        crate::unchecked::cuda::load();
        let Found { folder, name } = self.source.find(name_or_folder)?;
        let mark = folder.join(SAVED_PAIR);
        if mark.is_file() {
            let text = std::fs::read(&mark).map_err(Error::io(&mark))?;
            let saved: SavedPair = serde_json::from_slice(&text).map_err(|error| Error::malformed(&mark, error))?;
            if saved.version != PAIR_VERSION {
                let why = format!("it is of version {}, and only {PAIR_VERSION} is known", saved.version);
                return Err(Error::malformed(mark, why));
            }
            let [encoder, decoder] = ["encoder", "decoder"].map(|stack| self.read_saved(&folder.join(stack)));
            return Ok(PretrainedPair { encoder: encoder?, decoder: decoder?, start_token: saved.start_token });
        }
        let fields = read_json(&folder.join("config.json"))?;
        let tokenizer = Tokenizer::from_folder(&folder)?;
        self.pair(fields, name, tokenizer, Checkpoint::open(&folder, self.access)?)
    }

    /// The encoder of an encoder-decoder whose checkpoint has no decoder, or one that is left out.
    pub(crate) fn encoder_alone(
        &self,
        family: &EncoderDecoder,
        json: &ConfigJson,
        name: Option<String>,
        tokenizer: Option<Tokenizer>,
        checkpoint: impl FnOnce(&Config, &[Entry]) -> Result<Checkpoint>,
    ) -> Result<Pretrained> {
        let configs = (family.config)(json)?;
        let mut names = (family.names)(&configs, json)?;
        json.check_fields_of_all()?;
        let mut config = configs.encoder;
        config.validate()?;
        config.original_architecture = family.architectures[0].into();
        config.model_name = name.unwrap_or(config.model_name);
        let mut checkpoint = checkpoint(&config, &names.encoder)?;
        if checkpoint.lacks_prefix(family.prefix, &names.encoder) {
            checkpoint = checkpoint.with_prefix(family.prefix, &names.encoder);
        }
        let embeddings = find_embeddings(&mut names, family, &checkpoint);
        let is_decoders = |name: &&str| names.decoder.iter().any(|entry| entry.is_named(name));
        let decoder: Vec<&str> = checkpoint.names().filter(is_decoders).collect();
        if let Some(first) = decoder.first() {
            tracing::info!("{} tensors of the decoder are left out, such as `{first}`", decoder.len());
        }
        let ignored = [family.ignored, embeddings.as_slice(), &decoder].concat();
        self.assemble(config, &checkpoint, names.encoder.clone(), &ignored, || Ok(tokenizer))
    }

    fn pair(
        &self,
        mut fields: Map<String, Value>,
        name: Option<String>,
        tokenizer: Option<Tokenizer>,
        mut checkpoint: Checkpoint,
    ) -> Result<PretrainedPair> {
        let quantization = Quantization::take(&mut fields)?;
        let json = ConfigJson::new(fields.clone());
        let family = find(&json)?;
        let mut configs = (family.config)(&json)?;
        let mut names = (family.names)(&configs, &json)?;
        let bos: Option<i64> = json.get("bos_token_id")?;
        let start_token = json.get("decoder_start_token_id")?.or(family.start_token).or(bos);
        for field in json.unread() {
            tracing::warn!("config.json: `{field}` is not a field of {}; it is not used", family.architectures[0]);
        }
        for config in [&mut configs.encoder, &mut configs.decoder] {
            config.validate()?;
            config.original_architecture = family.architectures[0].into();
            config.model_name = name.clone().unwrap_or_else(|| config.model_name.clone());
        }
        let all = |names: &OfStacks<Vec<Entry>>| [names.encoder.as_slice(), &names.decoder].concat();
        if let Some(quantization) = quantization {
            quantization.apply(&mut checkpoint, &all(&names), family.prefix)?;
        }
        if checkpoint.lacks_prefix(family.prefix, &all(&names)) {
            checkpoint = checkpoint.with_prefix(family.prefix, &all(&names));
        }
        let embeddings = find_embeddings(&mut names, family, &checkpoint);
        let stack = |config: Config, names: &[Entry], others: &[Entry]| {
            let is_theirs = |name: &&str| others.iter().any(|entry| entry.is_named(name));
            let theirs: Vec<&str> = checkpoint.names().filter(is_theirs).collect();
            let ignored = [family.ignored, embeddings.as_slice(), &theirs].concat();
            self.assemble(config, &checkpoint, names.to_vec(), &ignored, || Ok(tokenizer.clone()))
        };
        let encoder = stack(configs.encoder, &names.encoder, &names.decoder)?;
        let decoder = stack(configs.decoder, &names.decoder, &names.encoder)?;
        let decoder = Pretrained { hugging_face: Some(fields), ..decoder };
        Ok(PretrainedPair { encoder, decoder, start_token })
    }
}

/// Has the stacks read their embeddings where the checkpoint has them. The names that it has besides.
fn find_embeddings(
    names: &mut OfStacks<Vec<Entry>>,
    family: &EncoderDecoder,
    checkpoint: &Checkpoint,
) -> Vec<&'static str> {
    for entry in names.encoder.iter_mut().chain(&mut names.decoder).filter(|entry| entry.part == Part::WE) {
        if !checkpoint.has(entry.name)
            && let Some(other) = family.embeddings.iter().find(|name| checkpoint.has(name))
        {
            entry.name = other;
        }
    }
    let is_used = |name: &&&str| names.encoder.iter().chain(&names.decoder).any(|entry| entry.name == **name);
    family.embeddings.iter().filter(|name| !is_used(name)).copied().collect()
}

/// An encoder-decoder in the form of the family that `fields`, a `config.json`, names. The tensors are in `kind`.
///
/// # Errors
///
/// [`CheckpointError::NotRepresentable`](crate::CheckpointError::NotRepresentable) for a weight that the family's checkpoints cannot hold, such as embeddings of the two stacks that differ;
/// [`Error::UnsupportedKind`].
pub(crate) fn hugging_face(
    encoder: &Transformer,
    decoder: &Transformer,
    mut fields: Map<String, Value>,
    kind: Kind,
) -> Result<HuggingFace> {
    let json = ConfigJson::new(fields.clone());
    let family = find(&json)?;
    let configs = (family.config)(&json)?;
    let mut names = (family.names)(&configs, &json)?;
    let format = format!("a checkpoint of {}", family.architectures[0]);
    let parts = decoder.parts()?;
    if configs.decoder.tie_word_embeddings && is_one_matrix(&parts, &names.decoder, &configs.decoder)? {
        // transformers reads both from the embedding.
        names.decoder.retain(|entry| entry.part != Part::U);
    }
    let untied = names.decoder.iter().any(|entry| entry.part == Part::U);
    let parts = parts.into_iter().filter(|(address, _)| untied || address.part != Part::U).collect::<Vec<_>>();
    let mut tensors = write(&encoder.parts()?, &names.encoder, &configs.encoder, &format)?;
    for (name, tensor) in write(&parts, &names.decoder, &configs.decoder, &format)? {
        match tensors.iter().find(|(known, _)| *known == name) {
            None => tensors.push((name, tensor)),
            Some((_, known)) if known.f_equal(&tensor)? => {}
            Some(_) => {
                let why = "the format has one tensor for both stacks, and here the two differ".into();
                return Err(CheckpointError::NotRepresentable { format, name, why }.into());
            }
        }
    }
    let tensors: Vec<(String, Tensor)> = to_kind(tensors, &mut fields, kind)?;
    Ok((tensors, fields))
}
