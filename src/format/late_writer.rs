//! [`LateWriter`]: a safetensors file whose header is written last.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Map, Value};

use super::part_file::PartFile;
use super::safetensors::{described, with_metadata, Entry};

/// The most digits of a number in a header.
const DIGITS: usize = 20;

/// Writes a safetensors file tensor by tensor, where shapes and metadata are known only at the end: room for the header is reserved.
///
/// The file appears under its name when it is finished; one that is dropped before leaves nothing behind.
#[derive(Debug)]
pub(crate) struct LateWriter {
    file: PartFile,
    /// How many bytes the header has.
    reserved: usize,
    header: Map<String, Value>,
    /// Where the data of the next tensor starts, counted from the end of the header.
    start: usize,
}

impl LateWriter {
    /// Begins a file with room for tensors of these names and numbers of dimensions, and for this metadata.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub(crate) fn create<'n>(
        path: &Path,
        tensors: impl IntoIterator<Item = (&'n str, usize)>,
        metadata: &[(&str, &str)],
    ) -> io::Result<Self> {
        let mut reserved = serde_json::to_vec(&with_metadata(metadata, Map::new()))?.len();
        for (name, dims) in tensors {
            let (name, fixed) = (serde_json::to_string(name)?, r#",:{"dtype":"","shape":[],"data_offsets":[,]}"#);
            reserved += name.len() + fixed.len() + "F8_E4M3".len() + (DIGITS + 1) * (dims + 2);
        }
        let reserved = reserved.next_multiple_of(8); // so that the data begins aligned
        let mut file = PartFile::create(path)?;
        io::copy(&mut io::Read::take(io::repeat(b' '), 8 + reserved as u64), &mut file)?;
        Ok(LateWriter { file, reserved, header: Map::new(), start: 0 })
    }

    /// Writes the data of a tensor: its entries in order, little endian.
    ///
    /// # Errors
    ///
    /// Those of the file system; [`io::ErrorKind::InvalidInput`] for a name that was written before, and data of another length than the
    /// tensor has.
    pub(crate) fn write(&mut self, entry: &Entry, data: &[u8]) -> io::Result<()> {
        let end = self.start.checked_add(data.len()).filter(|_| entry.len() == Some(data.len()));
        let Some(end) = end else {
            let what = format!("tensor `{}` of shape {:?} came with {} bytes", entry.name, entry.shape, data.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        };
        if self.header.insert(entry.name.clone(), described(entry, self.start, end)).is_some() {
            let what = format!("tensor `{}` came twice", entry.name);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        self.start = end;
        self.file.write_all(data)
    }

    /// Writes the header and puts the file in its place.
    ///
    /// # Errors
    ///
    /// Those of the file system; [`io::ErrorKind::InvalidInput`] where more came than there is room for.
    pub(crate) fn finish(mut self, metadata: &[(&str, &str)]) -> io::Result<()> {
        let mut header = serde_json::to_vec(&with_metadata(metadata, self.header))?;
        if header.len() > self.reserved {
            let what = format!("the header takes {} bytes, and {} are reserved", header.len(), self.reserved);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        header.resize(self.reserved, b' ');
        self.file.write_at_start(&[&(self.reserved as u64).to_le_bytes()[..], &header].concat())?;
        self.file.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{safetensors, Dtype};
    use super::*;

    fn entry(name: &str, dtype: Dtype, shape: &[i64]) -> Entry {
        Entry { name: name.into(), dtype, shape: shape.into() }
    }

    #[test]
    fn what_comes_late_is_in_the_header() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let names = [("x \"y\"", 2), ("none", 2), ("bits", 1)];
        let mut writer = LateWriter::create(&path, names, &[("format", "pt"), ("say", "a longer text")]).unwrap();
        writer.write(&entry("x \"y\"", Dtype::BF16, &[3, 2]), &[7; 12]).unwrap();
        writer.write(&entry("none", Dtype::F32, &[0, 4]), &[]).unwrap();
        writer.write(&entry("bits", Dtype::F8E4M3, &[5]), &[9; 5]).unwrap();
        assert!(!path.exists());
        writer.finish(&[("format", "pt"), ("say", "short")]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let mut read = safetensors::entries(&bytes).unwrap();
        read.sort_by_key(|(_, place)| place.start);
        let (name, place) = &read[0];
        assert_eq!((name.as_str(), place.dtype, &place.shape[..]), ("x \"y\"", Dtype::BF16, &[3, 2][..]));
        assert_eq!(bytes[place.bytes().unwrap()], [7; 12]);
        assert_eq!(read.len(), 3);
        assert_eq!(safetensors::metadata(&bytes, "say").unwrap().as_deref(), Some("short"));
    }

    #[test]
    fn what_does_not_fit_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let create = || LateWriter::create(&path, [("a", 1)], &[]).unwrap();
        let a = entry("a", Dtype::U8, &[2]);
        let mut writer = create();
        let error = writer.write(&a, &[0; 3]).unwrap_err().to_string();
        assert_eq!(error, "tensor `a` of shape [2] came with 3 bytes");
        writer.write(&a, &[0; 2]).unwrap();
        assert_eq!(writer.write(&a, &[0; 2]).unwrap_err().to_string(), "tensor `a` came twice");
        drop(writer);
        let error = create().finish(&[("a", &"long ".repeat(100))]).unwrap_err().to_string();
        assert!(error.starts_with("the header takes "), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
