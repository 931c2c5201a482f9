//! Tasks that are done beside each other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, Scope, ScopedJoinHandle};

use crate::Result;

/// A thread's stack, and room for what it starts with.
const THREAD_MEMORY: usize = 4 << 20;

/// Does this on another thread; `None` where there is no memory for one.
///
/// The standard library aborts where memory runs out between a thread's stack and its first instruction. So that much must be
/// there, and the thread has begun when this returns.
pub(crate) fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    task: impl FnOnce() -> T + Send + 'scope,
) -> Option<ScopedJoinHandle<'scope, T>> {
    drop(memmap2::MmapMut::map_anon(THREAD_MEMORY).ok()?);
    let (begun, wait) = sync_channel(1);
    let thread = Builder::new().spawn_scoped(scope, move || {
        let _ = begun.send(()); // the receiver waits
        task()
    });
    let thread = thread.ok()?;
    let _ = wait.recv(); // the thread has begun, or ended
    Some(thread)
}

/// The results of the tasks `0..count` in their order, `workers` of which are done at a time. Of several errors, that of the
/// first task.
pub(crate) fn run<T: Send>(workers: usize, count: usize, task: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let mut results = Vec::new();
        while !failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                break;
            }
            let result = task(index);
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
            results.push((index, result));
        }
        results
    };
    let mut results = std::thread::scope(|scope| {
        // Where there is no memory for more threads, this one does the work.
        let others: Vec<_> = (1..workers.min(count)).filter_map(|_| start(scope, work)).collect();
        let mut results = work();
        for other in others {
            results.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        results
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn results_keep_the_order_of_their_tasks_and_the_first_error_counts() {
        for workers in [1, 2] {
            assert_eq!(run(workers, 9, |index| Ok(index * index)).unwrap(), [0, 1, 4, 9, 16, 25, 36, 49, 64]);
            assert!(run(workers, 0, Ok).unwrap().is_empty());
            let failing = |index| if index < 3 { Ok(index) } else { Err(Error::wrong_input(format!("task {index}"))) };
            assert!(run(workers, 9, failing).unwrap_err().to_string().contains("task 3"));
        }
    }
}
