//! libtorch's other matrix product: oneDNN's, where it is the faster one.
//!
//! For fp32 libtorch takes Intel's MKL, which leaves AVX-512 unused on AMD's processors and reaches half of what oneDNN does
//! there, within the same libtorch (`docs/performance.md` has the figures). libtorch's compiler, Inductor, calls oneDNN through
//! a C interface that is part of libtorch and kept stable; so does this. What it cannot do (other kinds, devices, gradients,
//! other processors) stays with libtorch's own choice, so nobody has to know.

use std::ffi::{c_char, CStr};
use std::sync::OnceLock;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

/// What is done to the product's entries while they are still in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Nothing,
    Relu,
    /// `x Φ(x)`.
    Gelu,
    /// Its tanh approximation.
    GeluTanh,
    /// `x σ(x)`.
    Silu,
}

impl Then {
    /// oneDNN's names: the operation, and its variant.
    fn names(self) -> (&'static CStr, Option<&'static CStr>) {
        match self {
            Then::Nothing => (c"none", None),
            Then::Relu => (c"relu", None),
            Then::Gelu => (c"gelu", Some(c"none")),
            Then::GeluTanh => (c"gelu", Some(c"tanh")),
            Then::Silu => (c"swish", None),
        }
    }
}

/// `aoti_torch_cpu__linear_pointwise` of libtorch's `torch/csrc/inductor/aoti_torch/c/shim_cpu.h`: returns zero where it
/// succeeded, and then an owned tensor in the last argument. The same in libtorch 2.11 and 2.13, with both of which the tests ran.
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

/// `then(x wᵀ + b)`: `[…, in]` and `[out, in]` to `[…, out]`; nothing where libtorch's own product is to be taken.
pub(crate) fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>, then: Then) -> Option<Tensor> {
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
    let (attr, variant) = then.names();
    let variant = variant.map(CStr::as_ptr);
    let bias = b.map(|b| b.as_ptr().cast_mut());
    let mut result = std::ptr::null_mut();
    // SAFETY: the function has this signature in every libtorch that has the symbol: it is part of libtorch's stable C
    // interface. Its tensor handles are pointers to `at::Tensor`, as tch's are; it reads through those of `x`, `w`
    // and `b`, which live until it returns, and does not keep them. The optional arguments are null or point to a value on
    // this stack. Kinds, devices and shapes are those that it takes, as checked above, and it records no gradient, which
    // nobody asked for.
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
    // SAFETY: `result` is a new `at::Tensor`, owned by the caller: what tch's own calls return, freed as these are.
    Some(unsafe { Tensor::from_ptr(result) })
}

/// The function, where it is there and faster than libtorch's choice.
fn function() -> Option<LinearPointwise> {
    static FUNCTION: OnceLock<Option<LinearPointwise>> = OnceLock::new();
    *FUNCTION.get_or_init(|| {
        let wanted = match std::env::var("TCH_LENS_ONEDNN").as_deref() {
            Ok("0") => false,
            Ok("1") => true,
            _ => mkl_is_slow(),
        };
        wanted.then(find).flatten()
    })
}

/// Whether the process may have only so much memory (`ulimit -v`). Then an allocation can fail, and oneDNN, which does not check its
/// own, ends the process there. libtorch's other product gives an error.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn memory_is_limited() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes the limit into the value on this stack.
    let known = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) } == 0;
    known && limit.rlim_cur != libc::RLIM_INFINITY
}

/// Other systems were not tried.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn memory_is_limited() -> bool {
    false
}

/// Whether this is a processor on which MKL does not use what oneDNN does.
#[cfg(target_arch = "x86_64")]
fn mkl_is_slow() -> bool {
    // SAFETY: every x86-64 processor has the instruction, and leaf 0, the vendor's name.
    #[allow(unused_unsafe)] // safe in newer Rust
    let leaf = unsafe { std::arch::x86_64::__cpuid(0) };
    let vendor: Vec<u8> = [leaf.ebx, leaf.edx, leaf.ecx].iter().flat_map(|part| part.to_le_bytes()).collect();
    vendor != b"GenuineIntel"
}

/// Elsewhere libtorch takes oneDNN or the system's library by itself.
#[cfg(not(target_arch = "x86_64"))]
fn mkl_is_slow() -> bool {
    false
}

/// Looks the function up among what is loaded.
#[cfg(unix)]
fn find() -> Option<LinearPointwise> {
    let program = libloading::os::unix::Library::this();
    // SAFETY: the symbol, where there is one, is libtorch's function of that signature.
    let found = unsafe { program.get::<LinearPointwise>(b"aoti_torch_cpu__linear_pointwise\0") };
    // libtorch stays loaded as long as the program runs, as it is linked to it.
    found.ok().map(|symbol| *symbol)
}

/// Windows' libtorch was never tried.
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
            return; // this libtorch, or this processor, does without
        }
        let (x, w, b) = (Tensor::randn([2, 5, 7], CPU), Tensor::randn([3, 7], CPU), Tensor::randn([3], CPU));
        let transposed = w.tr().contiguous().tr();
        for weight in [&w, &transposed] {
            for bias in [None, Some(&b)] {
                let plain = x.linear(weight, bias);
                for (then, theirs) in [
                    (Then::Nothing, plain.shallow_clone()),
                    (Then::Relu, plain.relu()),
                    (Then::Gelu, plain.gelu("none")),
                    (Then::GeluTanh, plain.gelu("tanh")),
                    (Then::Silu, plain.silu()),
                ] {
                    let ours = linear(&x, weight, bias, then).unwrap();
                    assert_eq!(ours.size(), [2, 5, 3]);
                    let diff = (ours - theirs).abs().max().double_value(&[]);
                    assert!(diff < 1e-5, "{then:?}: {diff}");
                }
            }
        }
        // A view that is not contiguous is a tensor like any other.
        let view = Tensor::randn([7, 5], CPU).tr();
        let diff = (linear(&view, &w, None, Then::Nothing).unwrap() - view.linear(&w, None::<&Tensor>)).abs().max();
        assert!(diff.double_value(&[]) < 1e-5);
    }

    #[test]
    fn leaves_to_libtorch_what_it_cannot_do() {
        let (x, w) = (Tensor::randn([5, 7], CPU), Tensor::randn([3, 7], CPU));
        assert!(linear(&x.set_requires_grad(true), &w, None, Then::Nothing).is_none());
        assert!(linear(&x.to_kind(Kind::Double), &w.to_kind(Kind::Double), None, Then::Nothing).is_none());
        assert!(linear(&Tensor::randn([5, 6], CPU), &w, None, Then::Nothing).is_none());
        assert!(linear(&Tensor::randn([0, 7], CPU), &w, None, Then::Nothing).is_none());
    }
}
