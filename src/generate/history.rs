//! [`TokenHistory`]: the tokens of one row so far.

use indexmap::IndexMap;

/// The tokens of one row so far, prompt and continuation, and how often each occurred.
///
/// Padding is not part of it.
///
/// ```
/// use tch_lens::generate::TokenHistory;
/// let mut history = TokenHistory::new(&[5, 7, 5]);
/// history.push(7);
/// assert_eq!((history.ids(), history.new_ids()), (&[5, 7, 5, 7][..], &[7][..]));
/// assert_eq!(history.count(5), 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenHistory {
    ids: Vec<i64>,
    prompt_len: usize,
    counts: IndexMap<i64, u32>,
}

impl TokenHistory {
    /// The history of a prompt that nothing was added to yet.
    pub fn new(prompt: &[i64]) -> Self {
        let mut history = TokenHistory { ids: Vec::new(), prompt_len: prompt.len(), counts: IndexMap::new() };
        prompt.iter().for_each(|&id| history.push(id));
        history
    }

    /// Adds a token at the end.
    pub fn push(&mut self, id: i64) {
        self.ids.push(id);
        *self.counts.entry(id).or_default() += 1;
    }

    /// All tokens: the prompt's and those added.
    pub fn ids(&self) -> &[i64] {
        &self.ids
    }

    /// The tokens added after the prompt.
    pub fn new_ids(&self) -> &[i64] {
        &self.ids[self.prompt_len..]
    }

    /// How often a token occurred, in the prompt or after it.
    pub fn count(&self, id: i64) -> u32 {
        self.counts.get(&id).copied().unwrap_or(0)
    }

    /// Each token that occurred, once, with its count.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (i64, u32)> + '_ {
        self.counts.iter().map(|(&id, &count)| (id, count))
    }
}

impl AsRef<TokenHistory> for TokenHistory {
    fn as_ref(&self) -> &TokenHistory {
        self
    }
}

impl From<&[i64]> for TokenHistory {
    fn from(prompt: &[i64]) -> Self {
        TokenHistory::new(prompt)
    }
}
