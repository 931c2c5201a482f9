//! Hook points: what they are, their names, which of them a model has, and filters over them.
//!
//! A point is a value ([`HookPoint`]), made by the functions here or from TransformerLens' names and short
//! hand ([`HookName`]). Several are chosen by a [`HookFilter`].

mod filter;
mod name;
mod point;
mod presence;
mod shape;

pub use filter::{HookFilter, Name};
pub use name::HookName;
pub use point::*;

pub(crate) use point::{OUTSIDE, SITES};
pub(crate) use presence::{all_points, presence, Presence};
