//! libtorch's operations that take a number, with errors that are errors.
//!
//! tch's own forms (`f_mul_scalar` and its like) free the number before they read the operation's error, and freeing panics while an
//! error waits: a failed allocation would end the program. Here the error is read first. `tests` hold that no other file calls
//! such an operation.

use std::ffi::CStr;

use tch::{TchError, Tensor};
use torch_sys::c_generated as torch;
use torch_sys::{C_scalar, C_tensor};

/// A number as libtorch takes it; freed when dropped.
struct Scalar(*mut C_scalar);

impl Scalar {
    fn float(value: f64) -> Self {
        // SAFETY: makes a new object that this value owns; it cannot fail but for memory of a few bytes.
        Scalar(unsafe { torch_sys::ats_float(value) })
    }

    fn int(value: i64) -> Self {
        // SAFETY: as above.
        Scalar(unsafe { torch_sys::ats_int(value) })
    }
}

impl Drop for Scalar {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `ats_float` or `ats_int`, and is freed once.
        unsafe { torch_sys::ats_free(self.0) }
    }
}

/// The error that the last operation of this thread left behind, if any.
fn last_error() -> Result<(), TchError> {
    // SAFETY: libtorch's wrapper hands over a C string made by `strdup`, or null, and forgets it.
    let message = unsafe { torch_sys::get_and_reset_last_err() };
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a C string that is ours, as said above; `free` is what `strdup` asks for.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        libc_free(message.cast());
        text
    };
    Err(TchError::Torch(text))
}

unsafe extern "C" {
    #[link_name = "free"]
    fn libc_free(pointer: *mut std::ffi::c_void);
}

/// What `operation` puts into its first argument.
fn result_of(operation: impl FnOnce(*mut *mut C_tensor)) -> Result<Tensor, TchError> {
    let mut out = std::ptr::null_mut();
    operation(&mut out);
    last_error()?;
    // SAFETY: the operation succeeded, so `out` is a new handle that the caller owns, as in tch's own wrappers.
    Ok(unsafe { Tensor::from_ptr(out) })
}

fn pointer(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

// SAFETY of every block below: the handles are of live tensors and scalars, which outlive the call; the wrapper catches C++ exceptions and
// keeps their text for `last_error`; the signatures are those of torch-sys.

macro_rules! with_number {
    ($($(#[$doc:meta])* $name:ident => $function:ident,)*) => {
        $(
            $(#[$doc])*
            pub(crate) fn $name(tensor: &Tensor, number: f64) -> Result<Tensor, TchError> {
                let number = Scalar::float(number);
                result_of(|out| unsafe { torch::$function(out, pointer(tensor), number.0) })
            }
        )*
    };
}

with_number! {
    add => atg_add_scalar,
    mul => atg_mul_scalar,
    div => atg_div_scalar,
    clamp_min => atg_clamp_min,
    clamp_max => atg_clamp_max,
    gt => atg_gt,
    fill => atg_fill_,
}

/// `tensor == number`, of whole numbers beyond those that an `f64` holds exactly, too.
pub(crate) fn eq_int(tensor: &Tensor, number: i64) -> Result<Tensor, TchError> {
    let number = Scalar::int(number);
    result_of(|out| unsafe { torch::atg_eq(out, pointer(tensor), number.0) })
}

/// `tensor + number` that keeps whole numbers whole.
pub(crate) fn add_int(tensor: &Tensor, number: i64) -> Result<Tensor, TchError> {
    let number = Scalar::int(number);
    result_of(|out| unsafe { torch::atg_add_scalar(out, pointer(tensor), number.0) })
}

/// `max(tensor, number)` that keeps whole numbers whole.
pub(crate) fn clamp_min_int(tensor: &Tensor, number: i64) -> Result<Tensor, TchError> {
    let number = Scalar::int(number);
    result_of(|out| unsafe { torch::atg_clamp_min(out, pointer(tensor), number.0) })
}

/// `min(max(tensor, low), high)`.
pub(crate) fn clamp(tensor: &Tensor, low: f64, high: f64) -> Result<Tensor, TchError> {
    let (low, high) = (Scalar::float(low), Scalar::float(high));
    result_of(|out| unsafe { torch::atg_clamp(out, pointer(tensor), low.0, high.0) })
}

/// `tensor`, with `number` where `mask` is true.
pub(crate) fn masked_fill(tensor: &Tensor, mask: &Tensor, number: f64) -> Result<Tensor, TchError> {
    let number = Scalar::float(number);
    result_of(|out| unsafe { torch::atg_masked_fill(out, pointer(tensor), pointer(mask), number.0) })
}

/// `beta tensor + alpha (left right)`, matrix by matrix.
pub(crate) fn baddbmm(
    tensor: &Tensor,
    left: &Tensor,
    right: &Tensor,
    beta: f64,
    alpha: f64,
) -> Result<Tensor, TchError> {
    let (beta, alpha) = (Scalar::float(beta), Scalar::float(alpha));
    result_of(|out| unsafe {
        torch::atg_baddbmm(out, pointer(tensor), pointer(left), pointer(right), beta.0, alpha.0);
    })
}

/// The `p`-norm over some dimensions.
pub(crate) fn norm(tensor: &Tensor, p: f64, dims: &[i64], keep: bool) -> Result<Tensor, TchError> {
    let p = Scalar::float(p);
    let count = dims.len() as std::ffi::c_int; // at most the number of dimensions
    result_of(|out| unsafe {
        torch::atg_norm_scalaropt_dim(out, pointer(tensor), p.0, dims.as_ptr(), count, keep.into());
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_an_error() {
        let (flags, numbers) = (Tensor::from_slice(&[true, false]), Tensor::from_slice(&[1.0f32, 2.0, 3.0]));
        assert!(masked_fill(&numbers, &flags, 0.0).is_err());
        assert!(clamp(&Tensor::from_slice(&[1i64]).to_kind(tch::Kind::ComplexFloat), 0.0, 1.0).is_err());
        // The error was read: the next operation succeeds.
        assert_eq!(mul(&numbers, 2.0).unwrap(), Tensor::from_slice(&[2.0f32, 4.0, 6.0]));
    }
}
