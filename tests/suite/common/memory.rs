//! How much memory this process has, and has at most.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Arc;

/// The bytes of this process that are no file's.
pub fn anonymous() -> usize {
    status("RssAnon:")
}

/// A line of `/proc/self/status`, in bytes.
pub fn status(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() << 10
}

/// What a function gives, and by how many bytes the process grew while it ran, at most, as the system remembers it. Where it cannot be told
/// to forget what was before, [`peak_of`].
pub fn largest_of<T>(f: impl FnOnce() -> T) -> (T, usize) {
    if std::fs::write("/proc/self/clear_refs", "5").is_err() {
        return peak_of(f);
    }
    let before = status("VmRSS:");
    let result = f();
    (result, status("VmHWM:").saturating_sub(before))
}

/// What a function gives, and by how many bytes the process grew while it ran, at most: looked at many times a millisecond.
pub fn peak_of<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = anonymous();
    let (peak, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let watch = {
        let (peak, done) = (peak.clone(), done.clone());
        std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(std::time::Duration::from_micros(100));
            }
        })
    };
    let result = f();
    peak.fetch_max(anonymous(), Ordering::Relaxed);
    done.store(true, Ordering::Relaxed);
    watch.join().unwrap();
    (result, peak.load(Ordering::Relaxed).saturating_sub(before))
}
