//! [`FileBytes`]: a file's bytes, mapped into memory or read into it, and tensors that are views of them.

use std::path::Path;

use memmap2::Mmap;
use tch::{Device, Kind, Tensor};

use crate::format::{Dtype, Place};
use crate::{Error, Result};

/// The bytes of a file.
#[derive(Debug)]
pub(crate) enum FileBytes {
    /// Mapped, read only: the system reads a page when it is looked at.
    Mapped(Mmap),
    /// Read, as a whole.
    Read(Vec<u8>),
}

/// How a file is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Access {
    #[default]
    Map,
    Read,
}

impl FileBytes {
    pub(crate) fn open(path: &Path, access: Access) -> Result<Self> {
        if access == Access::Read {
            return std::fs::read(path).map(FileBytes::Read).map_err(Error::io(path));
        }
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        // SAFETY: the file must not be cut or changed while it is mapped. That is a condition on whoever owns the file, which
        // `Load::open` documents and `Load::memory_map` lifts; the map lives only as long as the model loads.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        Ok(FileBytes::Mapped(map))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map,
            FileBytes::Read(bytes) => bytes,
        }
    }

    /// Has the system take back the pages of a mapped file that were read, so that a file being copied from is not counted as
    /// this process' memory twice over. They come again when they are read again, from the system's file cache.
    pub(crate) fn release_pages(&self) {
        #[cfg(unix)]
        if let FileBytes::Mapped(map) = self {
            // Where the system refuses, or knows no such advice, the pages stay: nothing but their count depends on it.
            // SAFETY: the map is of a file, read only and shared, so no write can be lost and what is read again is the same.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    /// The tensor at `place`, which must be dropped before `self` is. `path` is the file's, for errors.
    pub(crate) fn tensor(&self, place: &Place, path: &Path) -> Result<Tensor> {
        let Place { dtype, shape, strides, .. } = place;
        let bytes = place.bytes().and_then(|range| self.as_slice().get(range));
        let Some(bytes) = bytes else {
            return Err(Error::malformed(path, format!("a tensor of shape {shape:?} lies outside the file")));
        };
        let kind = kind(*dtype);
        if bytes.is_empty() {
            return Ok(Tensor::f_zeros(shape, (kind, Device::Cpu))?);
        }
        // libtorch reads whole entries; a header of odd length leaves them unaligned.
        if !(bytes.as_ptr() as usize).is_multiple_of(dtype.width()) {
            let entries = (bytes.len() / dtype.width()) as i64;
            let copy = Tensor::f_from_data_size(bytes, &[entries], kind)?;
            return Ok(copy.f_as_strided(shape, strides, 0)?);
        }
        // SAFETY: the bytes reach from the first entry to the last by these strides, are aligned, and stay where they are while
        // `self` lives: the checkpoint, which owns `self`, outlives the views that the builder copies from; nothing
        // writes to them.
        Ok(unsafe { Tensor::f_from_blob(bytes.as_ptr(), shape, strides, kind, Device::Cpu)? })
    }
}

/// libtorch's kind of a file's dtype.
pub(crate) fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::Bool => Kind::Bool,
    }
}

/// The dtype of one of libtorch's kinds in a file; `None` for kinds that no file holds.
pub(crate) fn dtype(wanted: Kind) -> Option<Dtype> {
    Dtype::ALL.into_iter().find(|dtype| kind(*dtype) == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtypes_are_kinds_of_the_same_width() {
        for one in Dtype::ALL {
            assert_eq!(dtype(kind(one)), Some(one));
            assert_eq!(kind(one).elt_size_in_bytes(), one.width());
        }
        assert_eq!(dtype(Kind::ComplexFloat), None);
    }

    #[test]
    fn tensors_are_the_same_mapped_and_read_aligned_or_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("numbers");
        let numbers: Vec<u8> = (0..6).flat_map(|n| (n as f32).to_le_bytes()).collect();
        for offset in 0..4 {
            std::fs::write(&path, [&vec![0; offset][..], &numbers].concat()).unwrap();
            for access in [Access::Map, Access::Read] {
                let file = FileBytes::open(&path, access).unwrap();
                let place = Place { start: offset, dtype: Dtype::F32, shape: vec![3, 2], strides: vec![1, 3] };
                let tensor = file.tensor(&place, &path).unwrap();
                assert_eq!(Vec::<f32>::try_from(tensor.reshape(-1)).unwrap(), [0., 3., 1., 4., 2., 5.]);
                file.release_pages();
                assert_eq!(tensor.sum(Kind::Float).double_value(&[]), 15.0);
                let outside = Place { start: offset + 1, ..place };
                assert!(matches!(file.tensor(&outside, &path), Err(Error::Malformed { .. })));
            }
        }
    }
}
