//! What keeps a run whole whatever a hook does.

use std::panic::{catch_unwind, AssertUnwindSafe};

use tch::Tensor;

use crate::hook::HookPoint;
use crate::{Error, HookFailure, Result};

/// Runs a function of the caller's that must not change `tensor` in place.
pub(super) fn shown<T>(point: HookPoint, tensor: &Tensor, f: impl FnOnce() -> T) -> Result<T> {
    // Views share their version, so a change through any of them counts.
    let before = tensor.f_internal_version()?;
    let result = guarded(point, f)?;
    match tensor.f_internal_version()? == before {
        true => Ok(result),
        false => Err(Error::hook(point, HookFailure::EditedInPlace)),
    }
}

/// Runs a function of the caller's; a panic in it is an error that names the point, or whatever else it is of.
pub(super) fn guarded<T>(of: impl ToString, f: impl FnOnce() -> T) -> Result<T> {
    // What the function may have left half done is the caller's, who gets the error.
    catch_unwind(AssertUnwindSafe(f)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        Error::hook(of, HookFailure::Panicked { message: text.unwrap_or("it did not say why").into() })
    })
}

/// A replacement must be what it replaces: shape, kind and device.
pub(super) fn check(point: HookPoint, expected: &Tensor, found: &Tensor) -> Result<()> {
    if !found.defined() {
        return Err(Error::wrong_input(format!("the hook at `{point}` returned an undefined tensor")));
    }
    let same =
        expected.size() == found.size() && expected.f_kind()? == found.f_kind()? && expected.device() == found.device();
    if same {
        return Ok(());
    }
    let replacement = HookFailure::Replacement {
        expected: expected.size(),
        expected_kind: expected.f_kind()?,
        found: found.size(),
        found_kind: found.f_kind()?,
    };
    Err(Error::hook(point, replacement))
}
