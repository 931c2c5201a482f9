//! oneDNN's matrix product, used where it is faster than libtorch's default.
//!
//! For fp32, libtorch uses Intel's MKL. On AMD processors MKL does not use AVX-512 and reaches half the speed of oneDNN, which the same
//! libtorch contains (measurements: `docs/performance.md`). libtorch's compiler, Inductor, calls oneDNN through a stable C interface of
//! libtorch, and this module calls the same function. Other kinds, devices and processors, and products that record gradients, use
//! libtorch's default.

use std::ffi::{c_char, CStr};
use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

/// An elementwise operation that oneDNN fuses with the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Epilogue {
    Identity,
    Relu,
    /// `x Φ(x)`.
    Gelu,
    /// The tanh approximation of GELU.
    GeluTanh,
    /// `x σ(x)`.
    Silu,
}

impl Epilogue {
    /// oneDNN's name of the operation and of its variant.
    fn names(self) -> (&'static CStr, Option<&'static CStr>) {
        match self {
            Epilogue::Identity => (c"none", None),
            Epilogue::Relu => (c"relu", None),
            Epilogue::Gelu => (c"gelu", Some(c"none")),
            Epilogue::GeluTanh => (c"gelu", Some(c"tanh")),
            Epilogue::Silu => (c"swish", None),
        }
    }
}

/// `aoti_torch_cpu__linear_pointwise`, declared in libtorch's `torch/csrc/inductor/aoti_torch/c/shim_cpu.h`.
///
/// It returns zero on success and then stores an owned tensor in the last argument. The signature is the same in libtorch 2.11 and
/// 2.13; the tests ran with both.
type LinearPointwise = unsafe extern "C" fn(
    x: *mut C_tensor,
    w: *mut C_tensor,
    b: *const *mut C_tensor,
    attr: *const c_char,
    scalars: *const *const f64,
    n_scalars: i64,
    algorithm: *const *const c_char,
    out: *mut *mut C_tensor,
) -> i32;

/// `epilogue(x wᵀ + b)`: `[…, in]` and `[out, in]` to `[…, out]`; `None` where the caller must use libtorch's product.
pub(crate) fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>, epilogue: Epilogue) -> Option<Tensor> {
    let function = function().filter(|_| !memory_is_limited())?;
    let plain = |t: &Tensor| t.device() == Device::Cpu && t.f_kind().ok() == Some(Kind::Float) && !t.requires_grad();
    if !(plain(x) && plain(w) && b.is_none_or(plain)) {
        return None;
    }
    let (size, weight, strides) = (x.size(), w.size(), w.stride());
    let [out, features] = weight[..] else { return None };
    let fits = size.len() > 1
        && size.last() == Some(&features)
        && size.iter().chain(&weight).all(|n| *n > 0)
        && strides.contains(&1)
        && b.is_none_or(|b| b.size() == [out] && b.is_contiguous());
    if !fits {
        return None;
    }
    let (attr, variant) = epilogue.names();
    let variant = variant.map(CStr::as_ptr);
    let bias = b.map(|b| b.as_ptr().cast_mut());
    let mut result = std::ptr::null_mut();
    // SAFETY: the function is part of libtorch's stable C interface, so it has this signature in every libtorch that has the symbol.
    // Its tensor handles are pointers to `at::Tensor`, as tch's are. It reads `x`, `w` and `b`, which are alive until it returns, and
    // does not keep their handles. The optional arguments are null or point to values on this stack. The kinds, devices and shapes
    // were checked above, and no argument requires a gradient, which the function would not record.
    let failed = unsafe {
        function(
            x.as_ptr().cast_mut(),
            w.as_ptr().cast_mut(),
            bias.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
            attr.as_ptr(),
            std::ptr::null(),
            0,
            variant.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
            &mut result,
        )
    };
    if failed != 0 || result.is_null() {
        return None;
    }
    // SAFETY: `result` is a new `at::Tensor` that the caller owns, like the result of tch's own calls.
    Some(unsafe { Tensor::from_ptr(result) })
}

/// oneDNN's product, if libtorch has it and it is enabled. It is enabled by default where it is faster than MKL.
fn function() -> Option<LinearPointwise> {
    static FUNCTION: OnceLock<Option<LinearPointwise>> = OnceLock::new();
    *FUNCTION.get_or_init(|| {
        let enabled = match std::env::var("TCH_LENS_ONEDNN").as_deref() {
            Ok("0") => false,
            Ok("1") => true,
            _ => mkl_is_slow(),
        };
        enabled.then(find).flatten()
    })
}

/// Whether the memory of the process is limited (`ulimit -v`), so that an allocation can fail. oneDNN does not check its allocations, and
/// a failure would end the process. libtorch's default product returns an error.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn memory_is_limited() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes the limit to a value on this stack.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) } == 0;
    known && limit.rlim_cur != libc::RLIM_INFINITY
}

/// Memory limits of other systems are untested.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn memory_is_limited() -> bool {
    false
}

/// Whether MKL leaves vector instructions of this processor unused: it does on all processors except Intel's.
#[cfg(target_arch = "x86_64")]
fn mkl_is_slow() -> bool {
    // SAFETY: every x86-64 processor has this instruction and its leaf 0, which contains the vendor's name.
    #[allow(unused_unsafe)] // safe in newer Rust
    let leaf = unsafe { std::arch::x86_64::__cpuid(0) };
    let vendor: Vec<u8> = [leaf.ebx, leaf.edx, leaf.ecx].iter().flat_map(|part| part.to_le_bytes()).collect();
    vendor != b"GenuineIntel"
}

/// On other architectures libtorch does not use MKL.
#[cfg(not(target_arch = "x86_64"))]
fn mkl_is_slow() -> bool {
    false
}

/// Looks up the function in the loaded libraries.
#[cfg(unix)]
fn find() -> Option<LinearPointwise> {
    let program = libloading::os::unix::Library::this();
    // SAFETY: a symbol of this name is libtorch's function, which has this signature.
    let found = unsafe { program.get::<LinearPointwise>(b"aoti_torch_cpu__linear_pointwise\0") };
    // The program is linked to libtorch, so the function stays loaded.
    found.ok().map(|symbol| *symbol)
}

/// The libtorch for Windows is untested.
#[cfg(not(unix))]
fn find() -> Option<LinearPointwise> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn agrees_with_libtorch_s_product() {
        if find().is_none() || function().is_none() {
            return; // libtorch lacks the function, or it is not enabled on this processor
        }
        let (x, w, b) = (Tensor::randn([2, 5, 7], CPU), Tensor::randn([3, 7], CPU), Tensor::randn([3], CPU));
        let transposed = w.tr().contiguous().tr();
        for weight in [&w, &transposed] {
            for bias in [None, Some(&b)] {
                let plain = x.linear(weight, bias);
                for (epilogue, expected) in [
                    (Epilogue::Identity, plain.shallow_clone()),
                    (Epilogue::Relu, plain.relu()),
                    (Epilogue::Gelu, plain.gelu("none")),
                    (Epilogue::GeluTanh, plain.gelu("tanh")),
                    (Epilogue::Silu, plain.silu()),
                ] {
                    let ours = linear(&x, weight, bias, epilogue).unwrap();
                    assert_eq!(ours.size(), [2, 5, 3]);
                    let diff = (ours - expected).abs().max().double_value(&[]);
                    assert!(diff < 1e-5, "{epilogue:?}: {diff}");
                }
            }
        }
        // Views that are not contiguous give the same result.
        let view = Tensor::randn([7, 5], CPU).tr();
        let diff =
            (linear(&view, &w, None, Epilogue::Identity).unwrap() - view.linear(&w, None::<&Tensor>)).abs().max();
        assert!(diff.double_value(&[]) < 1e-5);
    }

    #[test]
    fn unsupported_inputs_are_left_to_libtorch() {
        let (x, w) = (Tensor::randn([5, 7], CPU), Tensor::randn([3, 7], CPU));
        assert!(linear(&x.set_requires_grad(true), &w, None, Epilogue::Identity).is_none());
        assert!(linear(&x.to_kind(Kind::Double), &w.to_kind(Kind::Double), None, Epilogue::Identity).is_none());
        assert!(linear(&Tensor::randn([5, 6], CPU), &w, None, Epilogue::Identity).is_none());
        assert!(linear(&Tensor::randn([0, 7], CPU), &w, None, Epilogue::Identity).is_none());
    }
}
