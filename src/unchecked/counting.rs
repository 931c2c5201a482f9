//! For tests: counts the allocations that this thread makes through Rust's allocator.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// The number of allocations of this thread so far. Allocations of libtorch do not count: it uses another allocator.
pub(crate) fn allocations() -> usize {
    ALLOCATIONS.get()
}

// SAFETY: every call is forwarded unchanged to the system's allocator. The counter is a plain cell without a destructor, so counting
// does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}
