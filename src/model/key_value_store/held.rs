//! [`Held`]: what attention looks at.

use tch::Tensor;

use crate::model::indexer::IndexReads;
use crate::Result;

/// What a run computes of its positions in a layer.
#[derive(Clone, Copy)]
pub(crate) struct NewKeys<'r> {
    /// Rotated: `[batch, pos, kv_head, d_head]`.
    pub(crate) keys: &'r Tensor,
    /// `[batch, pos, kv_head, d_value]`
    pub(crate) values: &'r Tensor,
    /// What a store holds in their place, where keys and values are made of latents: `[batch, pos, rank + rotated]`.
    pub(crate) latents: Option<&'r Tensor>,
    /// What an indexer makes of the positions.
    pub(crate) index: Option<&'r IndexReads>,
    /// Whether attention records gradients.
    pub(crate) records: bool,
}

impl NewKeys<'_> {
    /// The new positions alone.
    pub(crate) fn block(&self) -> Result<KeyValueBlock> {
        Ok(KeyValueBlock { keys: self.keys.f_transpose(1, 2)?, values: self.values.f_transpose(1, 2)? })
    }

    /// The keys of an indexer: `[batch, 1, pos, width]`.
    pub(crate) fn index_keys(&self) -> Result<Option<Tensor>> {
        self.index.map(|index| Ok(index.keys.f_unsqueeze(1)?)).transpose()
    }
}

/// What attention looks at: the positions of the past and the new ones, in blocks of consecutive positions.
pub(crate) struct Held {
    pub(crate) keys: HeldKeys,
    /// The keys of an indexer: of each block `[row, 1, key, width]`.
    pub(crate) index: Vec<Tensor>,
}

/// Keys and values, or what they are made of.
pub(crate) enum HeldKeys {
    KeysAndValues(Vec<KeyValueBlock>),
    /// Of each block `[row, 1, key, rank + rotated]`.
    Latents(Vec<Tensor>),
}

/// Keys and values of consecutive positions: `[row, kv_head, key, d_head]` and `[row, kv_head, key, d_value]`.
///
/// Where the batch has more rows, each row here is that of as many rows of the batch in turn.
pub(crate) struct KeyValueBlock {
    pub(crate) keys: Tensor,
    pub(crate) values: Tensor,
}

impl KeyValueBlock {
    /// The same keys and values.
    pub(crate) fn handle(&self) -> Self {
        KeyValueBlock { keys: self.keys.shallow_clone(), values: self.values.shallow_clone() }
    }

    /// How many positions it has.
    pub(crate) fn len(&self) -> i64 {
        self.keys.size()[2]
    }

    /// Some of its positions.
    pub(crate) fn narrow(&self, start: i64, len: i64) -> Result<Self> {
        let part = |x: &Tensor| Ok::<_, crate::Error>(x.f_narrow(2, start, len)?);
        Ok(KeyValueBlock { keys: part(&self.keys)?, values: part(&self.values)? })
    }
}
