//! [`TopTokens`]: lists of tokens with values.

use std::collections::HashMap;

/// Lists of tokens, each with a value: what is likeliest at each place.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TopTokens {
    pub(super) value_name: String,
    /// The longest list.
    pub(super) k: usize,
    /// Each token once.
    pub(super) tokens: Vec<String>,
    /// `k` for each list: places in `tokens`; `u32::MAX` for none.
    pub(super) ids: Vec<u32>,
    /// `k` for each list.
    pub(super) values: Vec<f32>,
}

impl TopTokens {
    /// Lists of tokens, in descending order; `value_name` says what the values are, such as `probability`.
    pub fn new(value_name: impl Into<String>, lists: &[Vec<(String, f32)>]) -> Self {
        let k = lists.iter().map(Vec::len).max().unwrap_or(0);
        let mut top = TopTokens { value_name: value_name.into(), k, ..TopTokens::default() };
        let mut places: HashMap<&str, u32> = HashMap::new();
        for list in lists {
            for i in 0..k {
                let Some((token, value)) = list.get(i) else {
                    top.ids.push(u32::MAX);
                    top.values.push(f32::NAN);
                    continue;
                };
                let next = top.tokens.len() as u32;
                let place = *places.entry(token).or_insert(next);
                if place == next {
                    top.tokens.push(token.clone());
                }
                top.ids.push(place);
                top.values.push(*value);
            }
        }
        top
    }

    /// How many lists there are.
    pub fn len(&self) -> usize {
        self.ids.len().checked_div(self.k).unwrap_or(0)
    }

    /// Whether there is no list with a token.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// A list: tokens and values.
    pub fn list(&self, index: usize) -> impl Iterator<Item = (&str, f32)> {
        let places = (index * self.k).min(self.ids.len())..((index + 1) * self.k).min(self.ids.len());
        let entries = places.map(|i| (self.ids[i], self.values[i]));
        entries.filter_map(|(id, value)| Some((self.tokens.get(id as usize)?.as_str(), value)))
    }
}
