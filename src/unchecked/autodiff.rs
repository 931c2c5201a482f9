//! [`AutodiffGuard`]: libtorch's record of operations, switched for a scope.

use std::marker::PhantomData;

/// While this lives, libtorch records operations for gradients on this thread, or does not; then it is as it was before.
///
/// TransformerLens' `toggle_autodiff`, as a scope rather than a global switch. Models record nothing unless something that they are
/// given, or their weights, requires a gradient.
///
/// ```
/// use tch_lens::autodiff;
/// use tch::{Device, Kind, Tensor};
/// let x = Tensor::ones([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
/// let off = autodiff(false);
/// assert!(!(&x * 2.0).requires_grad());
/// let on = autodiff(true); // within the other
/// assert!((&x * 2.0).requires_grad());
/// drop(on);
/// assert!(!(&x * 2.0).requires_grad());
/// drop(off);
/// assert!((&x * 2.0).requires_grad());
/// ```
#[must_use = "autodiff is switched back when the guard is dropped"]
#[derive(Debug)]
pub struct AutodiffGuard {
    before: bool,
    /// The switch is the thread's own, so the guard stays on it.
    on_this_thread: PhantomData<*const ()>,
}

/// Switches libtorch's record of operations on or off until the guard is dropped: TransformerLens' `toggle_autodiff`.
pub fn autodiff(enabled: bool) -> AutodiffGuard {
    AutodiffGuard { before: set(enabled), on_this_thread: PhantomData }
}

impl Drop for AutodiffGuard {
    fn drop(&mut self) {
        set(self.before);
    }
}

/// Sets the switch, and returns how it was.
fn set(enabled: bool) -> bool {
    // SAFETY: sets a flag of this thread's, and takes and gives a number.
    unsafe { torch_sys::at_grad_set_enabled(enabled.into()) != 0 }
}
