//! Tied weights: one tensor for embedding and unembedding, under whichever of its two names the checkpoint has it.

use super::checkpoint::Checkpoint;
use super::parts::{Entry, Part, View};
use crate::{Config, Result};

/// Lets the embedding and the unembedding of a tied model read one tensor. The table of names is for untied weights.
///
/// A checkpoint has the tensor under the embedding's name, under the unembedding's (safetensors' `save_model` writes the
/// alphabetically first one only), or under both. Where both are there and differ, the weights are not tied, whatever the
/// configuration says: transformers does the same. Returns the name that is then not read.
///
/// # Errors
///
/// libtorch's own, of comparing the two.
pub(crate) fn tie(config: &mut Config, names: &mut [Entry], checkpoint: &Checkpoint) -> Result<Option<&'static str>> {
    let place = |part| names.iter().position(|entry: &Entry| entry.part == part);
    let (Some(embedding), Some(unembedding)) = (place(Part::WE), place(Part::U)) else { return Ok(None) };
    let (e, u) = (names[embedding], names[unembedding]);
    if !config.tie_word_embeddings {
        return Ok(None);
    }
    match (checkpoint.has(e.name), checkpoint.has(u.name)) {
        (true, true) if differ(&e, &u, checkpoint)? => {
            tracing::warn!("`{}` is not the embedding, though `tie_word_embeddings` is true: not tied", u.name);
            config.tie_word_embeddings = false;
            Ok(None)
        }
        (false, true) => {
            // TransformerLens stores the unembedding the other way round.
            let view = if u.view == View::Transposed { View::Transposed } else { e.view };
            names[embedding] = Entry { name: u.name, view, ..e };
            Ok(None)
        }
        _ => {
            names[unembedding] = Entry { name: e.name, view: u.view.of_the_embedding(), ..u };
            Ok(Some(u.name))
        }
    }
}

/// Whether the stored embedding and unembedding are different matrices.
fn differ(e: &Entry, u: &Entry, checkpoint: &Checkpoint) -> Result<bool> {
    let (Some(embedding), Some(unembedding)) = (checkpoint.tensor(e.name)?, checkpoint.tensor(u.name)?) else {
        return Ok(false);
    };
    let unembedding = match u.view {
        View::Transposed if unembedding.dim() == 2 => unembedding.f_tr()?,
        _ => unembedding,
    };
    let alike = embedding.kind() == unembedding.kind() && embedding.size() == unembedding.size();
    Ok(!alike || !embedding.f_equal(&unembedding)?)
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::super::parts::entry;
    use super::*;

    /// What becomes of the table, the configuration and the name that is not read.
    fn tied(u_view: View, tensors: &[(&str, Tensor)]) -> ([(&'static str, View); 2], bool, Option<&'static str>) {
        let mut config = Config { tie_word_embeddings: true, ..Config::new(1, 2, 1, 3, 4) };
        let mut names = [entry(Part::WE, "e", View::AsIs), entry(Part::U, "u", u_view)];
        let checkpoint =
            Checkpoint::in_memory(tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.shallow_clone())));
        let unread = tie(&mut config, &mut names, &checkpoint).unwrap();
        (names.map(|entry| (entry.name, entry.view)), config.tie_word_embeddings, unread)
    }

    #[test]
    fn either_name_will_do_and_two_matrices_are_not_tied() {
        let e = Tensor::from_slice(&[1f32, 2., 3., 4., 5., 6.]).view([3, 2]);
        let (u, other) = (e.tr(), e.tr() + 1);
        let as_is = ("e", View::AsIs);
        let transposed = View::Transposed;
        assert_eq!(tied(transposed, &[("e", e.copy())]), ([as_is, as_is], true, Some("u")));
        assert_eq!(tied(transposed, &[("e", e.copy()), ("u", u.copy())]), ([as_is, as_is], true, Some("u")));
        assert_eq!(tied(transposed, &[("u", u.copy())]), ([("u", View::Transposed), ("u", transposed)], true, None));
        assert_eq!(tied(View::AsIs, &[("u", e.copy())]), ([("u", View::AsIs), ("u", View::AsIs)], true, None));
        assert_eq!(tied(transposed, &[("e", e.copy()), ("u", other)]), ([as_is, ("u", transposed)], false, None));
        // Of neither, the embedding's name is the one to ask for.
        assert_eq!(tied(transposed, &[]), ([as_is, as_is], true, Some("u")));
    }
}
