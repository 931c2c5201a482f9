//! The only `unsafe` code of the crate. Each block states why it is sound.
//!
//! The modules cover the allocator's settings, libtorch's gradient recording, its CUDA library, files mapped into memory, oneDNN's
//! matrix product, products of few rows, operations with numbers, and tensors shared between threads.
#![allow(unsafe_code)]

pub(crate) mod allocator;
pub(crate) mod autodiff;
#[cfg(test)]
pub(crate) mod counting;
pub(crate) mod cuda;
pub(crate) mod few_rows;
pub(crate) mod mapped;
pub(crate) mod onednn;
pub(crate) mod scalar;
pub(crate) mod threads;
