//! What the crate needs of tensors and libtorch lacks: slices, factored matrices, precision, scalars whose errors are errors.

pub(crate) mod columns;
pub(crate) mod factored;
pub(crate) mod file;
pub(crate) mod precision;
pub(crate) mod routed;
pub(crate) mod scalar;
pub(crate) mod slice;
pub(crate) mod span;
