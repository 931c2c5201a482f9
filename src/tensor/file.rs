//! Writes tensors to safetensors files.

use std::path::Path;

use tch::{Device, Tensor};

use crate::format::safetensors::{Entry, Writer};
use crate::unchecked::mapped::dtype;
use crate::{Error, Result};

/// Writes tensors to a safetensors file. One tensor at a time is copied to CPU memory. The file gets its name only once it is complete.
///
/// # Errors
///
/// [`Error::Io`] if the file cannot be written; [`Error::WrongInput`] for a kind that safetensors does not have.
pub(crate) fn write_safetensors(path: &Path, tensors: Vec<(String, Tensor)>) -> Result<()> {
    write_safetensors_with(path, tensors, &[("format", "pt")])
}

/// [`write_safetensors`] with this metadata in the file's header.
///
/// # Errors
///
/// Those of [`write_safetensors`].
pub(crate) fn write_safetensors_with(
    path: &Path,
    mut tensors: Vec<(String, Tensor)>,
    metadata: &[(&str, &str)],
) -> Result<()> {
    // Sorted by the width of an entry, widest first, so that the data of every tensor is aligned.
    tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.kind().elt_size_in_bytes()));
    let entries = tensors.iter().map(|(name, tensor)| {
        let kind = tensor.f_kind()?;
        let dtype = dtype(kind).ok_or_else(|| {
            Error::wrong_input(format!(
                "safetensors files cannot hold tensors of kind {kind:?}: convert the tensor first"
            ))
        })?;
        Ok(Entry { name: name.clone(), dtype, shape: tensor.size() })
    });
    let entries = entries.collect::<Result<Vec<_>>>()?;
    let mut writer = Writer::create(path, &entries, metadata).map_err(Error::io(path))?;
    let mut data = Vec::new();
    for (_, tensor) in tensors {
        copy_bytes(&tensor, &mut data)?;
        writer.write(&data).map_err(Error::io(path))?;
    }
    writer.finish().map_err(Error::io(path))
}

/// Replaces the contents of `bytes` with the entries of a tensor, in order and little-endian.
///
/// # Errors
///
/// [`Error::OutOfMemory`] if `bytes` cannot grow to this size.
pub(crate) fn copy_bytes(tensor: &Tensor, bytes: &mut Vec<u8>) -> Result<()> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    let len = tensor.numel() * tensor.f_kind()?.elt_size_in_bytes();
    bytes.clear();
    bytes.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes: len as u64 })?;
    bytes.resize(len, 0);
    Ok(tensor.f_copy_data_u8(bytes, tensor.numel())?)
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    #[test]
    fn libtorch_reads_what_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let range = |kind| Tensor::arange(6, (Kind::Float, Device::Cpu)).to_kind(kind).reshape([2, 3]);
        let kinds = [Kind::Bool, Kind::Half, Kind::Int64, Kind::Float, Kind::BFloat16, Kind::Double, Kind::Uint8];
        let mut tensors: Vec<(String, Tensor)> = kinds.map(|kind| (format!("{kind:?}"), range(kind))).into();
        tensors.push(("transposed".into(), range(Kind::Float).tr()));
        tensors.push(("empty".into(), Tensor::zeros([0, 2], (Kind::Float, Device::Cpu))));
        tensors.push(("number".into(), Tensor::from(7i64)));
        let copies = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        write_safetensors(&path, copies).unwrap();
        let read = Tensor::read_safetensors(&path).unwrap();
        assert_eq!(read.len(), tensors.len());
        for (name, theirs) in read {
            let (_, ours) = tensors.iter().find(|(ours, _)| *ours == name).unwrap();
            assert_eq!((ours.kind(), ours.size()), (theirs.kind(), theirs.size()), "{name}");
            assert!(ours.equal(&theirs), "{name}");
        }
        let bytes = std::fs::read(&path).unwrap();
        for (name, place) in crate::format::safetensors::entries(&bytes).unwrap() {
            assert!(place.start.is_multiple_of(place.dtype.width()), "{name} begins at byte {}", place.start);
        }

        let complex = Tensor::zeros([1], (Kind::ComplexFloat, Device::Cpu));
        let error = write_safetensors(&path, vec![("a".into(), complex)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "safetensors files cannot hold tensors of kind ComplexFloat: convert the tensor first"
        );
    }
}
