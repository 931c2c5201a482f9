//! Hook points: their names, what to do there, and what a run must compute because of it.
//!
//! A point is a value ([`HookPoint`]), made by the functions here or from TransformerLens' names and short
//! hand ([`HookName`]). Several are chosen by a [`Select`], observed and replaced through [`Hooks`]; what
//! a run has to compute for them is its [`Plan`].

mod hooks;
mod name;
mod plan;
mod point;
mod presence;
mod select;
mod shape;
mod tap;

pub use hooks::{HookError, Hooks};
pub use name::HookName;
pub use plan::Plan;
pub use point::*;
pub use select::{Name, Select};

pub(crate) use presence::{all_points, presence, Presence};
pub(crate) use tap::{Flow, Halt, Tap};
