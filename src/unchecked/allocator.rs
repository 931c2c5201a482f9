//! [`tune_allocator`]: memory that stays with the process between runs.

/// What [`tune_allocator`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AllocatorTuning {
    /// glibc: freed memory is kept for the next tensor.
    KeepsMemory,
    /// Nothing: musl, macOS and Windows have no such settings.
    NotAvailable,
    /// Nothing: glibc refused the settings.
    Refused,
}

/// Has the system's allocator keep what is freed, rather than give every large tensor's memory back to the system.
///
/// glibc takes each block above 32 MB, and smaller ones at first, from the system and returns it when it is freed; the
/// next tensor's pages then have to be made anew, one fault each 4 kB, and zeroed. With a full cache that is a fifth to a third of a
/// run (`docs/performance.md`). After this call the process keeps its peak memory until it ends, so it is for programs
/// that run models over and over, and not for a library to call: call it once, early in `main`.
///
/// It speaks to glibc only (Linux, but not musl): elsewhere nothing happens, as the answer says. Neither does anything where another
/// allocator, such as jemalloc, was loaded in glibc's place, which the answer cannot know.
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
        // No block comes from the system by itself: the threshold (M_MMAP_THRESHOLD) cannot be set above 32 MB, which the
        // logits of a few hundred positions exceed.
        (libc::M_MMAP_MAX, 0),
        // The heap's free end is never given back (-1: no threshold).
        (libc::M_TRIM_THRESHOLD, -1),
        // It grows by this much at least.
        (libc::M_TOP_PAD, 64 << 20),
    ];
    // SAFETY: mallopt may be called at any time from any thread; it sets numbers within the allocator.
    let all_taken = settings.iter().all(|(what, value)| unsafe { libc::mallopt(*what, *value) } == 1);
    if all_taken {
        AllocatorTuning::KeepsMemory
    } else {
        AllocatorTuning::Refused
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn tune() -> AllocatorTuning {
    AllocatorTuning::NotAvailable
}
