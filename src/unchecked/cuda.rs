//! Loads libtorch's CUDA library at run time.
//!
//! libtorch's CUDA code is in a separate library, `libtorch_cuda.so`, which registers itself when it is loaded. No Rust code calls a
//! function of it, so the linker drops it from every binary (`--as-needed`), and libtorch reports that there is no CUDA even on a
//! machine with a GPU. Loading the library before the first query solves this for every binary that uses this crate, without
//! changes to that binary's build.

use std::path::{Path, PathBuf};
use std::sync::Once;
use tch::Device;

use crate::{Error, Result};

/// The first GPU, or the CPU where libtorch finds no GPU.
///
/// Use this instead of [`Device::cuda_if_available`]: libtorch caches its first answer about CUDA, and tch's query may run before
/// libtorch's CUDA library is loaded.
///
/// ```
/// let device = tch_lens::cuda_if_available();
/// println!("running on {device:?}");
/// ```
pub fn cuda_if_available() -> Device {
    load();
    Device::cuda_if_available()
}

/// Checks that libtorch can compute on a device.
///
/// # Errors
///
/// [`Error::NoDevice`] where it cannot, with the devices that are available.
pub(crate) fn check(device: Device) -> Result<()> {
    let why = match device {
        Device::Cpu => return Ok(()),
        Device::Cuda(index) => {
            load();
            match tch::Cuda::device_count() {
                n if i64::try_from(index).is_ok_and(|index| index < n) => return Ok(()),
                n if n > 0 => format!("libtorch finds {n} GPU(s), Cuda(0) to Cuda({})", n - 1),
                _ => "libtorch finds no GPU: use the CPU, or `cuda_if_available`, which returns an available device"
                    .into(),
            }
        }
        Device::Mps if tch::utils::has_mps() => return Ok(()),
        Device::Vulkan if tch::utils::has_vulkan() => return Ok(()),
        Device::Mps | Device::Vulkan => "this libtorch was built without it: use the CPU".into(),
    };
    Err(Error::NoDevice { device, why })
}

/// Loads libtorch's CUDA library, once, if the libtorch in use has one. Every entry point of the crate calls this first.
///
/// If the library cannot be loaded (no driver, a missing package), only the CPU is available, and a logged warning gives the reason.
pub(crate) fn load() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
            return; // not Linux: macOS has no CUDA, and Windows is not supported
        };
        let Some(library) = cuda_library(&maps).filter(|path| path.exists()) else {
            return; // this libtorch is a CPU build
        };
        if let Err(error) = open(&library) {
            tracing::warn!("CUDA is not available: {} cannot be loaded: {error}", library.display());
        }
    });
}

/// The path that the CUDA library of the loaded libtorch has, if it exists: next to `libtorch_cpu.so` in the process's memory map.
/// The libraries of different libtorch builds are incompatible, so no other folder is searched.
fn cuda_library(maps: &str) -> Option<PathBuf> {
    // 7f3a4000-7f3b0000 r-xp 00000000 fe:00 1234    /path/libtorch_cpu.so
    maps.lines()
        .filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])))
        .find(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"))
        .map(|path| path.with_file_name("libtorch_cuda.so"))
}

/// Loads a library permanently and makes its symbols visible to libraries that are loaded later.
#[cfg(unix)]
fn open(library: &Path) -> Result<(), libloading::Error> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: loading runs the library's initialisers. They belong to libtorch, and a binary that links the library runs them at its
    // start. The library belongs to the libtorch build that is already loaded.
    let library = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_GLOBAL) }?;
    std::mem::forget(library); // unloading it would leave libtorch with dangling kernels
    Ok(())
}

/// Does nothing: [`load`] finds no library on these systems.
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
        assert_eq!(cuda_library(maps), Some(PathBuf::from("/my torch/lib/libtorch_cuda.so")));
        assert_eq!(cuda_library("7f00-7f01 r--p 0 fe:00 1 /usr/lib/libtorch_cpu.so.d/x"), None);
        assert_eq!(cuda_library(""), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_libtorch_of_this_process_is_found() {
        let _ = tch::Tensor::from(1.0); // so that libtorch is linked in
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let library = cuda_library(&maps).unwrap();
        assert!(library.with_file_name("libtorch_cpu.so").exists());
    }

    #[test]
    fn the_device_is_a_gpu_exactly_where_libtorch_counts_one() {
        let device = cuda_if_available();
        assert_eq!(device.is_cuda(), tch::Cuda::device_count() > 0);
        assert_eq!(device, cuda_if_available());
    }
}
