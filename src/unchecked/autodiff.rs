//! [`AutodiffGuard`]: turns libtorch's recording of gradients on or off for a scope.

use std::marker::PhantomData;

/// The scope of a call of [`autodiff`]. Dropping it restores the previous setting of this thread.
///
/// This is TransformerLens' `toggle_autodiff` as a scope instead of a global switch. A model records operations only if its weights or
/// a tensor passed to it require a gradient.
///
/// ```
/// use tch_lens::autodiff;
/// use tch::{Device, Kind, Tensor};
/// let x = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let off = autodiff(false);
/// assert!(!(&x * 2.0).requires_grad());
/// let on = autodiff(true); // nested in the first scope
/// assert!((&x * 2.0).requires_grad());
/// drop(on);
/// assert!(!(&x * 2.0).requires_grad());
/// drop(off);
/// assert!((&x * 2.0).requires_grad());
/// ```
#[must_use = "dropping the guard restores the previous setting"]
#[derive(Debug)]
pub struct AutodiffGuard {
    previous: bool,
    /// The setting belongs to the thread, so the guard must not be sent to another one.
    not_send: PhantomData<*const ()>,
}

/// Turns libtorch's recording of operations for gradients on or off on this thread, until the guard is dropped.
///
/// TransformerLens' `toggle_autodiff`.
pub fn autodiff(enabled: bool) -> AutodiffGuard {
    AutodiffGuard { previous: set(enabled), not_send: PhantomData }
}

impl Drop for AutodiffGuard {
    fn drop(&mut self) {
        set(self.previous);
    }
}

/// Changes the setting of this thread and returns the previous one.
fn set(enabled: bool) -> bool {
    // SAFETY: the call takes and returns a number and sets a thread-local flag.
    unsafe { torch_sys::at_grad_set_enabled(enabled.into()) != 0 }
}
