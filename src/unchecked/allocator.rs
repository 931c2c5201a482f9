//! [`tune_allocator`]: keeps freed memory in the process between runs.

/// What [`tune_allocator`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllocatorTuning {
    /// The allocator is glibc's. It now keeps freed memory for the next tensor.
    KeepsMemory,
    /// Nothing changed: musl, macOS and Windows have no such settings.
    NotAvailable,
    /// Nothing changed: glibc refused the settings.
    Refused,
}

/// Makes glibc's allocator keep freed memory instead of returning the memory of every large tensor to the system.
///
/// By default glibc takes each block above 32 MB, and smaller ones at first, from the system and returns it when it is freed.
/// The system then has to provide and zero the pages of the next tensor, with one page fault per 4 kB. With a full cache this takes a
/// fifth to a third of a run (`docs/performance.md`). After this call the process keeps its peak memory until it ends. The call is
/// meant for programs that run models repeatedly: call it once, early in `main`, and not from a library.
///
/// The settings exist in glibc only (Linux without musl). On other systems the function does nothing and returns
/// [`AllocatorTuning::NotAvailable`]. Where another allocator, such as jemalloc, replaces glibc's, the settings have no effect, and the
/// return value does not show this.
///
/// ```
/// use tch_lens::{tune_allocator, AllocatorTuning};
/// let done = tune_allocator();
/// assert_eq!(done == AllocatorTuning::KeepsMemory, cfg!(all(target_os = "linux", target_env = "gnu")));
/// ```
pub fn tune_allocator() -> AllocatorTuning {
    tune()
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn tune() -> AllocatorTuning {
    let settings = [
        // Serve all blocks from the heap, none by a mapping of its own. Raising the threshold (M_MMAP_THRESHOLD) is not enough: its
        // maximum is 32 MB, and the logits of a few hundred positions are larger.
        (libc::M_MMAP_MAX, 0),
        // Never return the free end of the heap to the system (-1: no threshold).
        (libc::M_TRIM_THRESHOLD, -1),
        // Grow the heap by at least this many bytes.
        (libc::M_TOP_PAD, 64 << 20),
    ];
    // SAFETY: mallopt may be called at any time from any thread. It only sets numbers within the allocator.
    let accepted = settings.iter().all(|(parameter, value)| unsafe { libc::mallopt(*parameter, *value) } == 1);
    if accepted {
        AllocatorTuning::KeepsMemory
    } else {
        AllocatorTuning::Refused
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn tune() -> AllocatorTuning {
    AllocatorTuning::NotAvailable
}
