//! [`Shared`]: tensors that several threads read.

/// Tensors that are written while one thread owns them, and only read from then on.
///
/// tch's `Tensor` is `Send` but not `Sync`, since a tensor can be changed in place through any of its
/// handles. libtorch itself allows any number of threads to read one tensor at a time.
#[derive(Debug)]
pub(crate) struct Shared<T>(T);

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Shared(value)
    }

    pub(crate) fn get(&self) -> &T {
        &self.0
    }
}

// SAFETY: nothing in this crate changes a tensor within a `Shared` in place: it is handed out by shared
// reference only, the forward pass and the analyses read it, and libtorch's reference counts are atomic. A caller who
// changes a weight that an accessor returned, while another thread runs the model, breaks libtorch's own
// rule, as with any tensor that tch lets one clone and send.
unsafe impl<T: Send> Sync for Shared<T> {}
