//! [`Mapped`]: a file mapped into memory, and tensors that are views of it.

use std::path::Path;

use memmap2::Mmap;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// A file mapped into memory, read only.
#[derive(Debug)]
pub(crate) struct Mapped(Mmap);

/// Where a tensor lies in a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// The first entry's first byte.
    pub(crate) start: usize,
    pub(crate) kind: Kind,
    pub(crate) shape: Vec<i64>,
    /// In entries, none negative.
    pub(crate) strides: Vec<i64>,
}

impl Place {
    /// A contiguous tensor from `start` on.
    pub(crate) fn contiguous(start: usize, kind: Kind, shape: Vec<i64>) -> Self {
        let mut strides = vec![1i64; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i].saturating_mul(shape[i]);
        }
        Place { start, kind, shape, strides }
    }

    /// How many bytes there are from the first entry to the end of the last; `None` where no file has so many, or a
    /// stride or size is negative.
    pub(crate) fn len(&self) -> Option<usize> {
        if self.shape.len() != self.strides.len() {
            return None;
        }
        let mut entries = 1usize;
        for (n, stride) in self.shape.iter().zip(&self.strides) {
            let (n, stride) = (usize::try_from(*n).ok()?, usize::try_from(*stride).ok()?);
            if self.shape.contains(&0) {
                return Some(0);
            }
            entries = entries.checked_add((n - 1).checked_mul(stride)?)?;
        }
        entries.checked_mul(self.kind.elt_size_in_bytes())
    }
}

impl Mapped {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(Error::io(path))?;
        // SAFETY: as with every map, the file must not be cut while it is mapped; checkpoints are written once
        // and replaced by renaming, and the map lives only as long as the model loads.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        Ok(Mapped(map))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Has the system take back the pages that were read, so that a file being copied from is not counted as this process'
    /// memory twice over. They come again when they are read again, from the system's file cache.
    pub(crate) fn let_go(&self) {
        // Where the system refuses, or knows no such advice, the pages stay: nothing but their count depends on it.
        #[cfg(unix)]
        // SAFETY: the map is of a file, read only and shared, so no write can be lost and what is read again is the same.
        let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }

    /// The tensor at `place`, which must be dropped before this is.
    pub(crate) fn tensor(&self, place: &Place) -> Result<Tensor> {
        let Place { start, kind, shape, strides } = place;
        let bytes = place.len().and_then(|len| self.0.get(*start..start.checked_add(len)?));
        let Some(bytes) = bytes else {
            return Err(Error::invalid(format!("a tensor of shape {shape:?} lies outside its file")));
        };
        if bytes.is_empty() {
            return Ok(Tensor::f_zeros(shape, (*kind, Device::Cpu))?);
        }
        // libtorch reads whole entries; a header of odd length leaves them unaligned.
        if !(bytes.as_ptr() as usize).is_multiple_of(kind.elt_size_in_bytes()) {
            let entries = (bytes.len() / kind.elt_size_in_bytes()) as i64;
            let copy = Tensor::f_from_data_size(bytes, &[entries], *kind)?;
            return Ok(copy.f_as_strided(shape, strides, 0)?);
        }
        // SAFETY: the bytes reach from the first entry to the last by these strides, are aligned, and stay mapped while
        // `self` lives: the checkpoint, which owns `self`, outlives the views that the builder copies from; nothing
        // writes to them.
        Ok(unsafe { Tensor::f_from_blob(bytes.as_ptr(), shape, strides, *kind, Device::Cpu)? })
    }
}
