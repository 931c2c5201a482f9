//! Hook points: what they are, their names, which of them a model has, and filters over them.
//!
//! A point is a value ([`HookPoint`]), made by the functions here or from TransformerLens' names and short
//! hand ([`HookName`]). Several are chosen by a [`HookFilter`]. All that is known about a point follows from the row of its
//! [`Site`] in one table.

mod filter;
mod name;
mod nearest;
mod part;
mod point;
mod presence;
mod section;
mod set;
mod shape;
mod site;

pub use crate::config::Stack;
pub use filter::{HookFilter, Name};
pub use name::HookName;
pub use part::{HookPart, HookTarget};
pub use point::{Axes, HookPoint};
pub use site::*;

pub(crate) use name::whole;
pub(crate) use part::{indices, LastAxis, Selection};
pub(crate) use presence::{all_points, embedding, presence, stream_after, Presence};
pub(crate) use section::{End, Section, Start};
pub(crate) use set::PointSet;
pub(crate) use site::{Extent, Place};
