//! libtorch's operations that take a number, with failures returned as errors.
//!
//! tch's functions (such as `f_mul_scalar`) drop the number before they read the error of the operation, and dropping it panics while an
//! error is pending. A failed allocation would therefore end the program. The functions here read the error first. A test checks that
//! no other file calls the functions of tch.

use std::ffi::CStr;

use tch::{TchError, Tensor};
use torch_sys::c_generated as torch;
use torch_sys::{C_scalar, C_tensor};

/// A number in libtorch's representation. Dropping it frees the memory.
struct Scalar(*mut C_scalar);

impl Scalar {
    fn float(value: f64) -> Self {
        // SAFETY: the call returns a new object that this value owns. It allocates only a few bytes.
        Scalar(unsafe { torch_sys::ats_float(value) })
    }

    fn int(value: i64) -> Self {
        // SAFETY: as in `float`.
        Scalar(unsafe { torch_sys::ats_int(value) })
    }
}

impl Drop for Scalar {
    fn drop(&mut self) {
        // SAFETY: the pointer comes from `ats_float` or `ats_int` and is freed only here.
        unsafe { torch_sys::ats_free(self.0) }
    }
}

/// Takes the pending error of this thread, if there is one.
fn take_error() -> Result<(), TchError> {
    // SAFETY: the call returns null or a C string made by `strdup`, which the caller owns.
    let message = unsafe { torch_sys::get_and_reset_last_err() };
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the message is a C string that this function owns, and `free` releases the memory of `strdup`.
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

/// Runs `operation` and returns the tensor that it stores in its argument.
fn run_operation(operation: impl FnOnce(*mut *mut C_tensor)) -> Result<Tensor, TchError> {
    let mut out = std::ptr::null_mut();
    operation(&mut out);
    take_error()?;
    // SAFETY: the operation succeeded, so `out` is a new handle that the caller owns, as in tch's wrappers.
    Ok(unsafe { Tensor::from_ptr(out) })
}

fn pointer(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

// SAFETY of every block below: the handles belong to tensors and scalars that outlive the call. The C++ wrapper catches exceptions and
// stores their text for `take_error`. The signatures are those of torch-sys.

macro_rules! operations_with_number {
    ($($(#[$doc:meta])* $name:ident => $function:ident,)*) => {
        $(
            $(#[$doc])*
            pub(crate) fn $name(tensor: &Tensor, number: f64) -> Result<Tensor, TchError> {
                let number = Scalar::float(number);
                run_operation(|out| unsafe { torch::$function(out, pointer(tensor), number.0) })
            }
        )*
    };
}

operations_with_number! {
    add => atg_add_scalar,
    mul => atg_mul_scalar,
    div => atg_div_scalar,
    clamp_min => atg_clamp_min,
    clamp_max => atg_clamp_max,
    gt => atg_gt,
    fill => atg_fill_,
}

/// `tensor == number` for integers, including those that an `f64` cannot represent exactly.
pub(crate) fn eq_int(tensor: &Tensor, number: i64) -> Result<Tensor, TchError> {
    let number = Scalar::int(number);
    run_operation(|out| unsafe { torch::atg_eq(out, pointer(tensor), number.0) })
}

/// `tensor + number` for integers.
pub(crate) fn add_int(tensor: &Tensor, number: i64) -> Result<Tensor, TchError> {
    let number = Scalar::int(number);
    run_operation(|out| unsafe { torch::atg_add_scalar(out, pointer(tensor), number.0) })
}

/// `tensor · number` for integers.
pub(crate) fn mul_int(tensor: &Tensor, number: i64) -> Result<Tensor, TchError> {
    let number = Scalar::int(number);
    run_operation(|out| unsafe { torch::atg_mul_scalar(out, pointer(tensor), number.0) })
}

/// `max(tensor, number)` for integers.
pub(crate) fn clamp_min_int(tensor: &Tensor, number: i64) -> Result<Tensor, TchError> {
    let number = Scalar::int(number);
    run_operation(|out| unsafe { torch::atg_clamp_min(out, pointer(tensor), number.0) })
}

/// `min(max(tensor, low), high)`.
pub(crate) fn clamp(tensor: &Tensor, low: f64, high: f64) -> Result<Tensor, TchError> {
    let (low, high) = (Scalar::float(low), Scalar::float(high));
    run_operation(|out| unsafe { torch::atg_clamp(out, pointer(tensor), low.0, high.0) })
}

/// `tensor` with `number` in the entries where `mask` is true.
pub(crate) fn masked_fill(tensor: &Tensor, mask: &Tensor, number: f64) -> Result<Tensor, TchError> {
    let number = Scalar::float(number);
    run_operation(|out| unsafe { torch::atg_masked_fill(out, pointer(tensor), pointer(mask), number.0) })
}

/// `beta tensor + alpha (left right)`, for batches of matrices.
pub(crate) fn baddbmm(
    tensor: &Tensor,
    left: &Tensor,
    right: &Tensor,
    beta: f64,
    alpha: f64,
) -> Result<Tensor, TchError> {
    let (beta, alpha) = (Scalar::float(beta), Scalar::float(alpha));
    run_operation(|out| unsafe {
        torch::atg_baddbmm(out, pointer(tensor), pointer(left), pointer(right), beta.0, alpha.0);
    })
}

/// The `p`-norm over the dimensions `dims`.
pub(crate) fn norm(tensor: &Tensor, p: f64, dims: &[i64], keep: bool) -> Result<Tensor, TchError> {
    let p = Scalar::float(p);
    let count = dims.len() as std::ffi::c_int; // at most the number of dimensions of a tensor
    run_operation(|out| unsafe {
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
        // No error is pending: the next operation succeeds.
        assert_eq!(mul(&numbers, 2.0).unwrap(), Tensor::from_slice(&[2.0f32, 4.0, 6.0]));
    }
}
