//! [`KeyValueStoreError`]: why a run cannot continue a key-value store.

use std::ops::Range;

/// Why a [`KeyValueStore`](crate::KeyValueStore) cannot be made, or a run cannot continue it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyValueStoreError {
    /// A batch or capacity that no store can have.
    #[error("a key-value store needs at least one row and from 1 to {n_ctx} positions, the model's context, not {batch} and {capacity}")]
    Size {
        /// The rows asked for.
        batch: usize,
        /// The positions asked for.
        capacity: usize,
        /// `Config::n_ctx`.
        n_ctx: usize,
    },
    /// A model whose earlier positions depend on later ones.
    #[error("queries of this model see the positions after them, so no position can be computed before the others: run whole sequences")]
    Bidirectional,
    /// The store of other weights.
    #[error(
        "the key-value store belongs to another model, or to other weights of it: make one with `KeyValueStore::new`"
    )]
    OtherModel,
    /// An input of another batch size.
    #[error("the key-value store has {rows} row(s), and the input {found}: choose rows with `KeyValueStore::rows`")]
    Batch {
        /// The store's rows.
        rows: usize,
        /// The input's.
        found: usize,
    },
    /// A store without room for the input.
    #[error("the key-value store holds {len} of at most {capacity} positions, so {new} more do not fit: make one of a larger capacity")]
    Full {
        /// The positions held.
        len: usize,
        /// The positions of the input.
        new: usize,
        /// The most that can be held.
        capacity: usize,
    },
    /// Layers that earlier runs did not pass.
    #[error("the key-value store holds the positions of layers {held:?} only, and layers {asked:?} are needed: run all parts of a sequence from and to the same layers")]
    Layers {
        /// The layers held.
        held: Range<usize>,
        /// The layers asked for.
        asked: Range<usize>,
    },
    /// Positions that a layer with a window has overwritten.
    #[error("layer {layer} has a window and holds the positions from {first} on, so the store cannot go back to {len}: clone the store before a run that may be undone, or make it with `KeyValueStore::with_all_positions`")]
    Forgotten {
        /// The layer.
        layer: usize,
        /// The first position that it holds.
        first: usize,
        /// The length asked for.
        len: usize,
    },
    /// A hook that changes attention to positions that a layer with a window has overwritten.
    #[error("a hook changes the attention of layer {layer}, which has a window and holds the keys from position {first} on: make the store with `KeyValueStore::with_all_positions`")]
    PatternChanged {
        /// The layer.
        layer: usize,
        /// The first position that it holds.
        first: usize,
    },
    /// A file that holds the store of another model, or no store.
    #[error("{path} does not hold a key-value store of this model: {why}")]
    File {
        /// The file.
        path: String,
        /// What does not fit.
        why: String,
    },
    /// A row that grows into a length at which the model rotates all of its keys otherwise.
    #[error("row {row} grows to {grown} tokens, and its keys are rotated as those of {held}: this model's rotation depends on the length, so run the whole sequence without a store")]
    Rotation {
        /// The row.
        row: usize,
        /// The length for which the keys are rotated.
        held: usize,
        /// The row's length with its new tokens.
        grown: usize,
    },
}
