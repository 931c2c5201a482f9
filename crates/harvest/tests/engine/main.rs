//! The engine and the reading side.

#[cfg(feature = "cluster")]
mod cluster;
mod embedded;
mod query;
#[path = "../support/mod.rs"]
mod support;
