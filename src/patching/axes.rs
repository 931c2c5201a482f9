//! [`PatchAxis`]: what an index runs over.

use std::fmt;

/// What an index of patches runs over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PatchAxis {
    /// The layers.
    Layer,
    /// The positions; of scores and patterns, the query's.
    Pos,
    /// The heads: key-value heads of keys, values and what they read, query heads of everything else.
    Head,
    /// The positions of the query, of scores and patterns.
    DestPos,
    /// The positions of the key, of scores and patterns.
    SrcPos,
}

impl fmt::Display for PatchAxis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PatchAxis::Layer => "layer",
            PatchAxis::Pos => "pos",
            PatchAxis::Head => "head",
            PatchAxis::DestPos => "dest_pos",
            PatchAxis::SrcPos => "src_pos",
        })
    }
}

/// An axis of a [`MetricMap`](super::MetricMap): its name, and what each of its entries is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapAxis {
    /// The name, such as `layer`.
    pub name: String,
    /// A label for each entry, such as `3`.
    pub labels: Vec<String>,
}

impl MapAxis {
    pub(super) fn new(name: impl ToString, labels: impl IntoIterator<Item = impl ToString>) -> Self {
        MapAxis { name: name.to_string(), labels: labels.into_iter().map(|label| label.to_string()).collect() }
    }

    /// How many entries it has.
    pub(super) fn len(&self) -> i64 {
        self.labels.len() as i64
    }
}
