//! [`Span`]: the positions that a run computes.

use std::ops::Range;

/// The positions that a run computes: the token columns `past..past + new`.
///
/// `past` is 0 in a run over whole sequences. A run that continues a key-value store also attends to the `past` positions in the store,
/// so its scores and patterns have `past + new` keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// The number of positions that earlier runs computed.
    pub past: usize,
    /// The number of positions that this run computes.
    pub new: usize,
}

impl Span {
    /// The span of a run over whole sequences of `new` tokens.
    pub fn whole(new: usize) -> Self {
        Span { past: 0, new }
    }

    /// The number of keys that a query can attend to: `past + new`.
    pub fn keys(self) -> usize {
        self.past.saturating_add(self.new)
    }

    /// The token columns that the run computes.
    pub fn columns(self) -> Range<i64> {
        let clamped = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        clamped(self.past)..clamped(self.keys())
    }
}

impl From<usize> for Span {
    fn from(new: usize) -> Self {
        Span::whole(new)
    }
}
