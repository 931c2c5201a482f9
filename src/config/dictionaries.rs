//! [`AttachedDictionaries`]: the sizes of the dictionaries that are spliced into a model's runs.

/// The dictionaries that are spliced into the runs of a handle on a model, as far as hook points depend on them: their names and shapes.
///
/// Empty in every model but those that [`HookedTransformer::with_saes`](crate::HookedTransformer::with_saes) returns, and never in a file. So
/// names, filters and plans ask one value about all points.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttachedDictionaries {
    entries: Vec<AttachedDictionary>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AttachedDictionary {
    /// The layer and the name, without `blocks.L.`, of the activation that it reconstructs.
    pub(crate) at: (Option<usize>, &'static str),
    pub(crate) d_in: usize,
    pub(crate) d_sae: usize,
    pub(crate) d_out: usize,
    /// Whether its error is added to its reconstruction.
    pub(crate) error_term: bool,
}

impl AttachedDictionaries {
    /// The number of dictionaries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no dictionary is attached.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn push(&mut self, dictionary: AttachedDictionary) {
        self.entries.push(dictionary);
    }

    /// The one that reconstructs the activation of this name in this layer.
    #[inline]
    pub(crate) fn at(&self, layer: Option<usize>, name: &str) -> Option<&AttachedDictionary> {
        self.entries.iter().find(|entry| entry.at.0 == layer && entry.at.1 == name)
    }
}
