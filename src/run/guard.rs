//! What keeps a run whole whatever a hook does.

use std::panic::{catch_unwind, AssertUnwindSafe};

use tch::{Device, Kind, Tensor};

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
    same(point, Form::of(expected)?, Form::of(found)?)
}

/// What a tensor must have in common with the one that it replaces.
#[derive(Debug, PartialEq, Eq)]
struct Form {
    size: Vec<i64>,
    kind: Kind,
    device: Device,
}

impl Form {
    fn of(x: &Tensor) -> Result<Self> {
        Ok(Form { size: x.size(), kind: x.f_kind()?, device: x.device() })
    }
}

fn same(point: HookPoint, expected: Form, found: Form) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let replacement = HookFailure::Replacement {
        expected: expected.size,
        expected_kind: expected.kind,
        expected_device: expected.device,
        found: found.size,
        found_kind: found.kind,
        found_device: found.device,
    };
    Err(Error::hook(point, replacement))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook;

    #[test]
    fn a_replacement_on_another_device_is_refused() {
        let form = |device| Form { size: vec![2, 3], kind: Kind::Float, device };
        let point = hook::z(1);
        assert!(same(point, form(Device::Cuda(1)), form(Device::Cuda(1))).is_ok());
        for (expected, found) in
            [(Device::Cpu, Device::Cuda(0)), (Device::Cuda(0), Device::Cpu), (Device::Cuda(0), Device::Cuda(1))]
        {
            let error = same(point, form(expected), form(found)).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("the hook at `blocks.1.attn.hook_z` returned Float [2, 3] on {found:?}, but must return what it replaces: Float [2, 3] on {expected:?}")
            );
        }
    }
}
