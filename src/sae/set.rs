//! [`DictionarySet`]: dictionaries of several layers that belong together.

use super::dictionary::Dictionary;
use crate::hook::HookPoint;
use crate::{Error, Result};

/// Dictionaries of several layers that belong together: circuit-tracer's transcoder set, or a cross-layer transcoder.
#[derive(Clone, Debug)]
pub struct DictionarySet {
    dictionaries: Vec<Dictionary>,
    /// The name under which features are shown on the web: circuit-tracer's `scan`.
    scan: Option<String>,
}

impl DictionarySet {
    /// A set of these dictionaries.
    ///
    /// # Errors
    ///
    /// [`Error::Dictionary`] if two of them write to the same activation, or there are none.
    pub fn new(dictionaries: Vec<Dictionary>) -> Result<Self> {
        let refused = |name: HookPoint, what: &str| Error::Dictionary { name: name.to_string(), what: what.into() };
        for (i, dictionary) in dictionaries.iter().enumerate() {
            if dictionaries.iter().take(i).any(|other| other.hook_out() == dictionary.hook_out()) {
                return Err(refused(dictionary.hook_out(), "two dictionaries of a set reconstruct this activation"));
            }
        }
        match dictionaries.is_empty() {
            true => Err(Error::wrong_input("a set of dictionaries needs at least one")),
            false => Ok(DictionarySet { dictionaries, scan: None }),
        }
    }

    pub(crate) fn with_scan(mut self, scan: Option<String>) -> Self {
        self.scan = scan;
        self
    }

    /// The dictionaries, in the order of their layers.
    pub fn dictionaries(&self) -> &[Dictionary] {
        &self.dictionaries
    }

    /// The dictionary of a layer; `None` where there is none.
    pub fn of_layer(&self, layer: usize) -> Option<&Dictionary> {
        self.dictionaries.iter().find(|dictionary| dictionary.hook_out().layer() == Some(layer))
    }

    /// The name under which features are shown on the web: circuit-tracer's `scan`.
    pub fn scan(&self) -> Option<&str> {
        self.scan.as_deref()
    }

    /// Whether its features contribute to later layers than their own.
    pub fn is_cross_layer(&self) -> bool {
        self.dictionaries.iter().any(Dictionary::is_cross_layer)
    }

    /// The number of features of all dictionaries.
    pub fn n_features(&self) -> usize {
        self.dictionaries.iter().map(Dictionary::d_sae).sum()
    }
}
