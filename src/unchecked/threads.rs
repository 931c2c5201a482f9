//! [`SharedTensor`]: a tensor that several threads may read.

use std::ops::Deref;

use tch::Tensor;

/// A tensor that is only read, by any number of threads.
///
/// tch's `Tensor` is `Send` but not `Sync`, because every handle of a tensor can change it in place. libtorch allows any number of
/// threads to read a tensor at the same time. Clones share the tensor's memory.
#[derive(Debug)]
pub(crate) struct SharedTensor(Tensor);

// SAFETY: nothing in this crate changes the tensor of a `SharedTensor` in place. The forward pass and the analyses get it by shared
// reference and only read it, and libtorch's reference counts are atomic. A caller that changes a weight from an accessor in place while
// another thread runs the model violates libtorch's rule, as with every tensor that tch can clone and send. The type contains only a
// tensor, so it makes no other type `Sync`.
unsafe impl Sync for SharedTensor {}

impl From<Tensor> for SharedTensor {
    fn from(tensor: Tensor) -> Self {
        SharedTensor(tensor)
    }
}

impl Clone for SharedTensor {
    fn clone(&self) -> Self {
        SharedTensor(self.0.shallow_clone())
    }
}

impl Deref for SharedTensor {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.0
    }
}
