//! The crate's only `unsafe` code, each block with the claim that it rests on: weights shared between threads, files mapped into
//! memory, libtorch's CUDA library loaded at run time, its faster matrix product, the switch of its automatic differentiation, and
//! the allocator's settings.
#![allow(unsafe_code)]

pub(crate) mod allocator;
pub(crate) mod autodiff;
#[cfg(test)]
pub(crate) mod counting;
pub(crate) mod cuda;
pub(crate) mod mapped;
pub(crate) mod onednn;
pub(crate) mod scalar;
pub(crate) mod threads;
