//! Checkpoints of a model without its head, such as those of `BertModel`, `LlamaModel` and `T5EncoderModel`.

use super::config_json::ConfigJson;
use super::parts::{Entry, Part};
use crate::config::AttentionDir;
use crate::{Config, Error, Result};

/// What an architecture without a head is called in transformers. Those of [`FAMILIES`](super::family::FAMILIES) come first, as
/// `GPT2LMHeadModel` ends so as well.
pub(crate) fn is_named(json: &ConfigJson) -> bool {
    json.architecture().is_some_and(|name| name.ends_with("Model"))
}

/// The prefix that names of the checkpoint lack where it was saved without a head: the family's own, or the module that holds the embedding.
pub(crate) fn prefix(of_family: &'static str, names: &[Entry]) -> String {
    let embedding = names.iter().find(|entry| entry.part == Part::WE).map_or("", |entry| entry.name);
    match (of_family, embedding.split_once('.')) {
        ("", Some((root, _))) => format!("{root}."),
        _ => of_family.to_string(),
    }
}

/// Takes the head from a shape and its table of names: a model whose queries see all positions ends with its stream. Others have logits only
/// where the unembedding is the embedding.
///
/// # Errors
///
/// [`Error::Unsupported`] for a causal model whose unembedding is a matrix of its own.
pub(crate) fn cut(json: &ConfigJson, config: &mut Config, names: &mut Vec<Entry>) -> Result<()> {
    let architecture = json.architecture().unwrap_or_default();
    match config.attention.direction {
        AttentionDir::Bidirectional => {
            tracing::info!("{architecture} has no head: runs end with the stream");
            *config = Config { head: None, tie_word_embeddings: false, ..config.clone() }.encoder();
            names.retain(|entry| !is_of_head(entry.part));
            Ok(())
        }
        AttentionDir::Causal if config.tie_word_embeddings => {
            tracing::info!("{architecture} has no head: the embedding is the unembedding");
            Ok(())
        }
        AttentionDir::Causal => Err(Error::unsupported(format!(
            "{architecture} has no unembedding, and `tie_word_embeddings` is false: load a checkpoint that has one, or set the field if the embedding is the unembedding"
        ))),
    }
}

/// Whether a part stands behind the last norm.
fn is_of_head(part: Part) -> bool {
    matches!(part, Part::HeadW | Part::HeadB | Part::HeadLnW | Part::HeadLnB | Part::U | Part::UB)
}
