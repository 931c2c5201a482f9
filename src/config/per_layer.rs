//! [`PerLayer`]: a setting that is the same in every layer, or has one value for each.

use serde::{Deserialize, Serialize};

/// A setting that is the same in every layer, or has one value for each.
///
/// ```
/// use tch_lens::config::{PerLayer, Reach};
/// let reach = PerLayer::Each(vec![Reach::Window(128), Reach::Global]);
/// assert_eq!(reach.get(1), Some(&Reach::Global));
/// assert_eq!(PerLayer::All(Reach::Global).get(7), Some(&Reach::Global));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PerLayer<T> {
    /// Every layer has this value.
    All(T),
    /// Layer `l` has entry `l`; the list has one entry for each layer.
    Each(Vec<T>),
}

impl<T> PerLayer<T> {
    /// The value of one layer; `None` past the end of the list.
    pub fn get(&self, layer: usize) -> Option<&T> {
        match self {
            PerLayer::All(value) => Some(value),
            PerLayer::Each(values) => values.get(layer),
        }
    }

    /// The distinct entries as they are stored: one, or one for each layer.
    pub(crate) fn values(&self) -> &[T] {
        match self {
            PerLayer::All(value) => std::slice::from_ref(value),
            PerLayer::Each(values) => values,
        }
    }
}

impl<T> PerLayer<T> {
    /// Another setting, by this one in each layer.
    pub fn map<U>(&self, mut change: impl FnMut(&T) -> U) -> PerLayer<U> {
        match self {
            PerLayer::All(value) => PerLayer::All(change(value)),
            PerLayer::Each(values) => PerLayer::Each(values.iter().map(change).collect()),
        }
    }
}

impl<T: PartialEq> PerLayer<T> {
    /// One value for each layer, stored as a single value where all are equal.
    pub fn from_layers(mut values: Vec<T>) -> Self {
        match values.as_slice() {
            [first, rest @ ..] if rest.iter().all(|value| value == first) => PerLayer::All(values.swap_remove(0)),
            _ => PerLayer::Each(values),
        }
    }
}

impl<T: Default> Default for PerLayer<T> {
    fn default() -> Self {
        PerLayer::All(T::default())
    }
}
