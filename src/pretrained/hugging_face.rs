//! A model as a Hugging Face checkpoint: its family's own table of names, written through.

use serde_json::{Map, Value};
use tch::{Kind, Tensor};

use super::config_json::ConfigJson;
use super::family;
use super::parts::{Entry, Part, View};
use super::state_dict::{agree, write};
use crate::model::parameters::{check_kind, PartTensor};
use crate::model::part::Location;
use crate::model::Transformer;
use crate::{Config, Result};

/// The tensors of a checkpoint, and its `config.json`.
pub(crate) type HuggingFace = (Vec<(String, Tensor)>, Map<String, Value>);

/// The model in the form of the family that `fields`, a `config.json`, names. The tensors are in `kind`.
///
/// # Errors
///
/// [`Error::Checkpoint`] for a weight that the family's checkpoints cannot hold;
/// [`Error::UnsupportedKind`](crate::Error::UnsupportedKind).
pub(crate) fn hugging_face(model: &Transformer, mut fields: Map<String, Value>, kind: Kind) -> Result<HuggingFace> {
    let json = ConfigJson::new(fields.clone());
    let family = family::find(&json)?;
    let config = family.read_config(&json)?;
    let mut table = (family.names)(&config, &json)?;
    let parts = model.parts()?;
    let tied = config.tie_word_embeddings && is_one_matrix(&parts, &table, &config)?;
    if tied {
        tie(&mut table);
    }
    let format = format!("a checkpoint of {}", family.architectures[0]);
    let tensors = write(&parts, &table, &config, &format)?;
    if tied != config.tie_word_embeddings {
        fields.insert("tie_word_embeddings".into(), tied.into());
    }
    let tensors = to_kind(tensors, &mut fields, kind)?;
    Ok((tensors, fields))
}

/// The tensors in a kind, which `fields` names from now on.
///
/// # Errors
///
/// [`UnsupportedKind`](crate::Error::UnsupportedKind).
pub(super) fn to_kind(
    tensors: Vec<(String, Tensor)>,
    fields: &mut Map<String, Value>,
    kind: Kind,
) -> Result<Vec<(String, Tensor)>> {
    check_kind(kind)?;
    // transformers writes `dtype`, and wrote `torch_dtype` before.
    let field = if fields.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    fields.insert(field.into(), dtype(kind).into());
    tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.f_to_kind(kind)?))).collect()
}

/// Has the unembedding read the embedding's tensor.
fn tie(table: &mut [Entry]) {
    let Some(name) = table.iter().find(|entry| entry.part == Part::WE).map(|entry| entry.name) else { return };
    for entry in table.iter_mut().filter(|entry| entry.part == Part::U) {
        (entry.name, entry.view) = (name, entry.view.of_the_embedding());
    }
}

/// Whether embedding and unembedding can be read from one tensor.
pub(super) fn is_one_matrix(parts: &[PartTensor], table: &[Entry], config: &Config) -> Result<bool> {
    let part = |part| parts.iter().find(|(address, _)| address.part == part).map(|(_, tensor)| tensor);
    let view = |part| table.iter().find(|entry| entry.part == part).map(|entry| entry.view);
    let (Some(embedding), Some(unembedding)) = (part(Part::WE), part(Part::U)) else { return Ok(false) };
    let (Some(e), Some(u)) = (view(Part::WE), view(Part::U)) else { return Ok(false) };
    if embedding.size() != unembedding.size() {
        return Ok(false);
    }
    let kind = embedding.f_kind()?;
    match u.of_the_embedding() {
        View::AsIs => Ok(e.read(unembedding, config, Location::default(), kind)?.f_equal(embedding)?),
        u => match e.write(embedding, config, Location::default())? {
            Some(stored) => agree(u, &u.read(&stored, config, Location::default(), kind)?, unembedding),
            None => Ok(false),
        },
    }
}

/// A kind's name in `config.json`.
fn dtype(kind: Kind) -> &'static str {
    match kind {
        Kind::BFloat16 => "bfloat16",
        Kind::Half => "float16",
        Kind::Double => "float64",
        _ => "float32",
    }
}
