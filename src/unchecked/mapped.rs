//! [`FileBytes`]: the bytes of a file, mapped or read into memory, and tensors that are views of them.

use std::path::Path;

use memmap2::Mmap;
use tch::{Device, Kind, Tensor};

use crate::format::{Dtype, Place};
use crate::{Error, Result};

/// The bytes of a file.
#[derive(Debug)]
pub(crate) enum FileBytes {
    /// The file is mapped read-only. The system reads a page on its first access.
    Mapped(Mmap),
    /// The whole file was read.
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
        // SAFETY: the file must not be truncated or changed while it is mapped. `LoadOptions::open` documents this condition, and
        // `LoadOptions::memory_map(false)` avoids it. The map is dropped when loading ends.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        Ok(FileBytes::Mapped(map))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map,
            FileBytes::Read(bytes) => bytes,
        }
    }

    /// Tells the system that the pages of a mapped file are not needed for now, so that data that was already copied from the file does
    /// not count as memory of this process a second time. A later access reads the pages again, usually from the system's file cache.
    pub(crate) fn release_pages(&self) {
        #[cfg(unix)]
        if let FileBytes::Mapped(map) = self {
            // If the system refuses the advice, the pages stay in memory, which affects only the memory count.
            // SAFETY: the map is a read-only, shared map of a file. No write can be lost, and reading again gives the same bytes.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }

    /// The tensor at `place`, a view of this file's bytes: the caller must drop it before `self`. `path` is used in errors.
    pub(crate) fn tensor(&self, place: &Place, path: &Path) -> Result<Tensor> {
        let Place { dtype, shape, strides, .. } = place;
        let bytes = place.bytes().and_then(|range| self.as_slice().get(range));
        let Some(bytes) = bytes else {
            return Err(Error::malformed(path, format!("a tensor of shape {shape:?} lies outside the file")));
        };
        if *dtype == Dtype::F8E8M0 {
            return Err(Error::malformed(path, "a scale of eight bits (F8_E8M0) stands where a weight is needed"));
        }
        let kind = kind(*dtype);
        if bytes.is_empty() {
            return Ok(Tensor::f_zeros(shape, (kind, Device::Cpu))?);
        }
        // libtorch requires aligned entries. They are unaligned after a header of odd length, and are then copied.
        if !(bytes.as_ptr() as usize).is_multiple_of(dtype.width()) {
            let entries = (bytes.len() / dtype.width()) as i64;
            let copy = Tensor::f_from_data_size(bytes, &[entries], kind)?;
            return Ok(copy.f_as_strided(shape, strides, 0)?);
        }
        // SAFETY: the slice covers all entries that the shape and strides address, and it is aligned. The bytes do not move while
        // `self` is alive: the checkpoint owns `self` and outlives the views, which the builder copies from. Nothing writes to them.
        Ok(unsafe { Tensor::f_from_blob(bytes.as_ptr(), shape, strides, kind, Device::Cpu)? })
    }
}

/// The libtorch kind that corresponds to a file's dtype.
pub(crate) fn kind(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F8E4M3 => Kind::Float8e4m3fn,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 | Dtype::F8E8M0 => Kind::Uint8, // the bits of a scale
        Dtype::Bool => Kind::Bool,
    }
}

/// The file dtype that corresponds to a libtorch kind; `None` if files have no such dtype.
pub(crate) fn dtype(tensor_kind: Kind) -> Option<Dtype> {
    Dtype::ALL.into_iter().find(|dtype| kind(*dtype) == tensor_kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtypes_are_kinds_of_the_same_width() {
        for one in Dtype::ALL {
            // A scale's bits are bytes.
            let back = if one == Dtype::F8E8M0 { Dtype::U8 } else { one };
            assert_eq!(dtype(kind(one)), Some(back));
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
