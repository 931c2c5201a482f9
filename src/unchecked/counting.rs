//! For tests: how often this thread has asked Rust's allocator for memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The allocations of this thread so far. libtorch's are not among them: it has an allocator of its own.
pub(crate) fn allocations() -> usize {
    ALLOCATIONS.get()
}

// SAFETY: everything is passed on to the system's allocator as it came. The counter is a plain cell that needs neither memory nor a
// destructor, so counting never allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}
