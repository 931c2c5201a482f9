//! [`SharedTensor`]: a tensor that several threads read.

use std::ops::Deref;

use tch::Tensor;

/// A tensor that is only read from now on, by any number of threads.
///
/// tch's `Tensor` is `Send` but not `Sync`, since a tensor can be changed in place through any of its handles. libtorch itself
/// allows any number of threads to read one tensor at a time. Clones are handles on the same memory.
#[derive(Debug)]
pub(crate) struct SharedTensor(Tensor);

// SAFETY: nothing in this crate changes a tensor within a `SharedTensor` in place: it is handed out by shared reference only, the
// forward pass and the analyses read it, and libtorch's reference counts are atomic. A caller who changes a weight that an
// accessor returned, while another thread runs the model, breaks libtorch's own rule, as with any tensor that tch lets one
// clone and send. The type holds a tensor and nothing else, so nothing but a tensor becomes `Sync` by it.
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
