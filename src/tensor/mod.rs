//! Helpers over libtorch's tensors: selections, factored matrices, precision, files, and operations with numbers that return errors.

pub(crate) mod columns;
pub(crate) mod factored;
pub(crate) mod file;
pub(crate) mod precision;
pub(crate) mod routed;
pub(crate) mod scalar;
pub(crate) mod slice;
pub(crate) mod span;
pub(crate) mod split_mix;
