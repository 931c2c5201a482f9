//! The GPU half of libtorch, loaded when the program runs.
//!
//! libtorch keeps CUDA in a library of its own, `libtorch_cuda.so`, which makes itself known when it is loaded.
//! No Rust code calls into it, so the linker drops it from every binary (`--as-needed`), and libtorch then answers
//! that there is no CUDA, on a machine with a GPU too. Loading it by hand before the first such question cures that,
//! in whatever binary uses this crate and without asking anything of its build.

use std::path::{Path, PathBuf};
use std::sync::Once;
use tch::Device;

use crate::{Error, Result};

/// The first GPU, or the CPU where libtorch sees none.
///
/// Ask this rather than [`Device::cuda_if_available`]: libtorch remembers its first answer about CUDA, and tch's
/// question may come before libtorch's CUDA library is loaded.
///
/// ```
/// let device = tch_lens::cuda_if_available();
/// println!("running on {device:?}");
/// ```
pub fn cuda_if_available() -> Device {
    load();
    Device::cuda_if_available()
}

/// Whether libtorch can compute on a device.
///
/// # Errors
///
/// [`Error::NoDevice`], with what there is.
pub(crate) fn check(device: Device) -> Result<()> {
    let why = match device {
        Device::Cpu => return Ok(()),
        Device::Cuda(index) => {
            load();
            match tch::Cuda::device_count() {
                n if i64::try_from(index).is_ok_and(|index| index < n) => return Ok(()),
                n if n > 0 => format!("libtorch sees {n} GPU(s), Cuda(0) to Cuda({})", n - 1),
                _ => "libtorch sees no GPU, so use the CPU; `cuda_if_available` picks what there is".into(),
            }
        }
        Device::Mps if tch::utils::has_mps() => return Ok(()),
        Device::Vulkan if tch::utils::has_vulkan() => return Ok(()),
        Device::Mps | Device::Vulkan => "this libtorch was built without it, so use the CPU".into(),
    };
    Err(Error::NoDevice { device, why })
}

/// Loads libtorch's CUDA library, once, if the libtorch in use has one; every way into the crate calls this first.
///
/// A library that cannot be loaded (no driver, a missing package) leaves the CPU, and a warning says why.
pub(crate) fn load() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
            return; // not Linux: Macs have no CUDA, and Windows is not served
        };
        let Some(library) = beside_libtorch_cpu(&maps).filter(|path| path.exists()) else {
            return; // a libtorch for the CPU
        };
        if let Err(error) = open(&library) {
            tracing::warn!("CUDA is not available: {} cannot be loaded: {error}", library.display());
        }
    });
}

/// Where the CUDA library of the libtorch that this process runs on would lie, from its map of memory: never
/// another libtorch's, whose parts do not fit together.
fn beside_libtorch_cpu(maps: &str) -> Option<PathBuf> {
    // 7f3a4000-7f3b0000 r-xp 00000000 fe:00 1234    /path/libtorch_cpu.so
    maps.lines()
        .filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])))
        .find(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"))
        .map(|path| path.with_file_name("libtorch_cuda.so"))
}

/// Loads a library for good, its symbols seen by libraries loaded later.
#[cfg(unix)]
fn open(library: &Path) -> Result<(), libloading::Error> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: loading runs the library's initialisers. They are libtorch's own, which a binary linked with the library
    // would run at its start, and this library is the one built with the libtorch that is already running.
    let library = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) }?;
    std::mem::forget(library); // closing it would pull the registered kernels from under libtorch
    Ok(())
}

/// Nothing to do: [`load`] finds no library to load.
#[cfg(not(unix))]
fn open(_: &Path) -> Result<(), libloading::Error> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cuda_library_is_the_one_beside_the_libtorch_in_use() {
        let maps = "\
7f0000000000-7f0000001000 r--p 00000000 fe:00 11                         /usr/lib/libc.so.6
7f0000002000-7f0000003000 rw-p 00000000 00:00 0                          [heap]
7f0000004000-7f0000005000 rw-p 00000000 00:00 0
7f0000006000-7f0000007000 r-xp 00000000 fe:00 12                         /my torch/lib/libtorch_cpu.so
7f0000008000-7f0000009000 r-xp 00000000 fe:00 13                         /other/lib/libtorch_cpu.so";
        assert_eq!(beside_libtorch_cpu(maps), Some(PathBuf::from("/my torch/lib/libtorch_cuda.so")));
        assert_eq!(beside_libtorch_cpu("7f00-7f01 r--p 0 fe:00 1 /usr/lib/libtorch_cpu.so.d/x"), None);
        assert_eq!(beside_libtorch_cpu(""), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_runs_on_a_libtorch_that_is_found() {
        let _ = tch::Tensor::from(1.0); // so that libtorch is linked in
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let library = beside_libtorch_cpu(&maps).unwrap();
        assert!(library.with_file_name("libtorch_cpu.so").exists());
    }

    #[test]
    fn the_device_is_a_gpu_exactly_where_libtorch_counts_one() {
        let device = cuda_if_available();
        assert_eq!(device.is_cuda(), tch::Cuda::device_count() > 0);
        assert_eq!(device, cuda_if_available());
    }
}
