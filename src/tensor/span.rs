//! [`Span`]: which positions a run computes.

use std::ops::Range;

/// The positions that a run computes: columns `past..past + new` of its tokens.
///
/// A run over whole sequences has no past. A run that continues a key-value store attends to the `past`
/// positions of the store as well, so its scores and patterns have `past + new` keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// Positions that earlier runs computed.
    pub past: usize,
    /// Positions that this run computes.
    pub new: usize,
}

impl Span {
    /// All positions of sequences of `new` tokens.
    pub fn whole(new: usize) -> Self {
        Span { past: 0, new }
    }

    /// The keys that a query can look at: those of the past and the new ones.
    pub fn keys(self) -> usize {
        self.past.saturating_add(self.new)
    }

    /// The columns computed.
    pub fn columns(self) -> Range<i64> {
        self.past as i64..self.keys() as i64
    }
}

impl From<usize> for Span {
    fn from(new: usize) -> Self {
        Span::whole(new)
    }
}
