//! [`Budget`]: kept activations in memory as long as a budget lasts, and in the CPU's memory or files after that.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Device, Tensor};

use super::{HookError, Sink, SinkEntry};
use crate::hook::HookPoint;
use crate::{Error, Result};

/// What a run may keep in the memory of its device, and how much of it is left.
#[derive(Debug)]
pub(crate) struct Budget {
    left: u64,
    /// The device from which entries are on their way to the CPU.
    pending: Option<Device>,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        Budget { left: bytes, pending: None }
    }
}

impl Sink for Budget {
    /// The entry itself while there is room; after that, this and every later entry elsewhere.
    fn keep(&mut self, entry: SinkEntry<'_>) -> Result<Option<Tensor>, HookError> {
        let SinkEntry { point, tensor, .. } = entry;
        let bytes = tensor.numel() as u64 * tensor.f_kind()?.elt_size_in_bytes() as u64;
        if bytes <= self.left {
            self.left -= bytes;
            return Ok(Some(tensor));
        }
        self.left = 0;
        match tensor.device() {
            Device::Cpu => Ok(Some(to_file(point, &tensor)?)),
            device => {
                // Without waiting for it: libtorch copies into pinned memory while the run goes on.
                self.pending = Some(device);
                Ok(Some(tensor.f_to_device_(Device::Cpu, tensor.f_kind()?, true, false)?))
            }
        }
    }

    /// Waits for what is still on its way to the CPU.
    fn finish(&mut self) -> Result<(), HookError> {
        if let Some(Device::Cuda(index)) = self.pending.take() {
            tch::Cuda::synchronize(index as i64);
        }
        Ok(())
    }
}

/// A copy of an activation in a file without a name, mapped into memory: the system reads the parts that are used and may
/// drop them again. The file goes with the last tensor on it.
///
/// The file is written as one, not through the map, so that a full disk is an error and not the end of the process.
fn to_file(point: HookPoint, tensor: &Tensor) -> Result<Tensor> {
    if tensor.requires_grad() {
        return Err(Error::unsupported(format!(
            "`{point}` requires a gradient, so it cannot be moved to a file: raise the budget"
        )));
    }
    let (size, kind) = (tensor.size(), tensor.f_kind()?);
    let file = Unnamed::new()?;
    write(&file.path, tensor).map_err(|error| match error {
        WriteError::Torch(error) => Error::from(error),
        WriteError::Io(error) => Error::io(&file.path)(error),
    })?;
    let name = file.path.to_str().ok_or_else(|| {
        Error::unsupported(format!("{} is not UTF-8: set TMPDIR to another folder", file.path.display()))
    })?;
    let numel = tensor.numel() as i64;
    if numel == 0 {
        return Ok(Tensor::f_empty(&size, (kind, Device::Cpu))?);
    }
    Ok(Tensor::f_from_file(name, false, numel, (kind, Device::Cpu))?.f_view(size.as_slice())?)
}

/// A file of the temporary folder that is removed when this is dropped; what is mapped by then stays readable.
struct Unnamed {
    path: PathBuf,
}

impl Unnamed {
    fn new() -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        loop {
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = std::env::temp_dir().join(format!("tch-lens-{}-{n}", std::process::id()));
            match options.open(&path) {
                Ok(_) => return Ok(Unnamed { path }),
                // Left behind by a process of this number that was killed.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(&path)(error)),
            }
        }
    }
}

impl Drop for Unnamed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

enum WriteError {
    Torch(tch::TchError),
    Io(std::io::Error),
}

/// Entries written at a time.
const CHUNK: i64 = 1 << 20;

fn write(path: &std::path::Path, tensor: &Tensor) -> Result<(), WriteError> {
    let mut file = std::fs::OpenOptions::new().write(true).open(path).map_err(WriteError::Io)?;
    let flat = tensor.f_contiguous().and_then(|t| t.f_view(-1)).map_err(WriteError::Torch)?;
    let width = flat.f_kind().map_err(WriteError::Torch)?.elt_size_in_bytes();
    let numel = flat.numel() as i64;
    let mut bytes = vec![0u8; (numel.min(CHUNK)) as usize * width];
    let mut start = 0;
    while start < numel {
        let n = (numel - start).min(CHUNK);
        let part = flat.f_narrow(0, start, n).map_err(WriteError::Torch)?;
        let bytes = &mut bytes[..n as usize * width];
        part.f_copy_data_u8(bytes, n as usize).map_err(WriteError::Torch)?;
        file.write_all(bytes).map_err(WriteError::Io)?;
        start += n;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook;
    use tch::Kind;

    #[test]
    fn what_goes_to_a_file_comes_back_bit_for_bit_and_leaves_no_file() {
        let before = ours();
        for kind in [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16, Kind::Int64, Kind::Bool] {
            let tensor = Tensor::randn([3, 5, 7], (Kind::Float, Device::Cpu)).to_kind(kind).transpose(0, 2);
            let moved = to_file(hook::q(0), &tensor).unwrap();
            assert_eq!((moved.size(), moved.kind()), (tensor.size(), kind));
            assert!(moved.equal(&tensor), "{kind:?}");
            let clone = moved.shallow_clone();
            drop(moved);
            assert!(clone.equal(&tensor), "{kind:?}");
        }
        assert_eq!(to_file(hook::q(0), &Tensor::zeros([0, 4], (Kind::Float, Device::Cpu))).unwrap().size(), [0, 4]);
        assert_eq!(ours(), before);
    }

    /// This process' files in the temporary folder.
    fn ours() -> usize {
        let start = format!("tch-lens-{}-", std::process::id());
        let folder = std::fs::read_dir(std::env::temp_dir()).unwrap();
        folder.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&start)).count()
    }
}
