//! The model's runs and what is kept of them.

mod collect;
mod forward;
mod pipeline;

pub(crate) use self::collect::{Collected, Column};
pub use self::pipeline::{harvest, harvest_shard, Progress};
