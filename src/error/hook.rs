//! [`HookFailure`]: how a hook at a point failed.

use tch::{Device, Kind};

use super::message::{first_line, shortened};

/// How a hook failed. [`Error::Hook`](crate::Error::Hook) adds the hook point.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HookFailure {
    /// A user's hook returned an error of its own.
    #[error("failed: {}", first_line(.0))]
    Failed(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A user's hook panicked.
    #[error("panicked: {}", shortened(.message))]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// A hook returned a tensor that cannot stand where it should.
    #[error("returned {found_kind:?} {found:?} on {found_device:?}, but must return what it replaces: {expected_kind:?} {expected:?} on {expected_device:?}")]
    Replacement {
        /// The shape that the hook got.
        expected: Vec<i64>,
        /// The kind that the hook got.
        expected_kind: Kind,
        /// The device of what the hook got.
        expected_device: Device,
        /// The shape that it returned.
        found: Vec<i64>,
        /// The kind that it returned.
        found_kind: Kind,
        /// The device of what it returned.
        found_device: Device,
    },
    /// A hook changed in place a tensor that it was only shown.
    #[error("changed in place a tensor that it was only shown: use `Hooks::edit`, which gives it a copy to change")]
    EditedInPlace,
    /// A hook or a patch put NaN where there were numbers.
    #[error(
        "left NaN where there were numbers: check what it computes, such as a division by zero, or a query that may look at nothing"
    )]
    NaN,
    /// A part of an activation that a hook cannot get.
    #[error("cannot act: {why}")]
    Part {
        /// Why not.
        why: String,
    },
}
