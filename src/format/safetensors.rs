//! safetensors files: where each tensor lies in one, a writer that holds one tensor at a time, and the index of shards.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Map, Value};

use super::error::quoted;
use super::{Dtype, FormatError, PartFile, Place};

/// The header's field that is not a tensor.
const METADATA: &str = "__metadata__";

/// Each tensor of a safetensors file: its name, and where it lies.
///
/// # Errors
///
/// [`FormatError::Safetensors`] for a broken header, or data that is not what the header announces;
/// [`FormatError::Unsupported`] for a dtype without a counterpart in libtorch.
pub(crate) fn entries(bytes: &[u8]) -> Result<Vec<(String, Place)>, FormatError> {
    let file = SafeTensors::deserialize(bytes)?;
    let base = bytes.as_ptr() as usize;
    file.iter()
        .map(|(name, view)| {
            let tensor = || format!("tensor `{}`", quoted(name));
            let dtype = view.dtype().to_string();
            let dtype = Dtype::from_safetensors_name(&dtype)
                .ok_or_else(|| FormatError::unsupported(tensor(), format!("has dtype {dtype}")))?;
            let shape = view.shape().iter().map(|n| i64::try_from(*n)).collect::<Result<_, _>>();
            let shape = shape.map_err(|_| FormatError::out_of_bounds(tensor(), "the file"))?;
            let start = view.data().as_ptr() as usize - base; // the view is a part of `bytes`
            Ok((name.to_string(), Place::contiguous(start, dtype, shape)))
        })
        .collect()
}

/// The text of a field of a safetensors file's metadata, if it has that.
///
/// # Errors
///
/// [`FormatError::Safetensors`] for a broken header.
pub(crate) fn metadata(bytes: &[u8], field: &str) -> Result<Option<String>, FormatError> {
    let (_, header) = SafeTensors::read_metadata(bytes)?;
    Ok(header.metadata().as_ref().and_then(|metadata| metadata.get(field).cloned()))
}

/// The shards that an index file names, each a plain file name, in alphabetical order.
///
/// # Errors
///
/// [`FormatError::Json`]; [`FormatError::Missing`] where it names none; [`FormatError::OutOfBounds`] for a name that leads
/// out of the index's folder.
pub(crate) fn shards(index: &[u8]) -> Result<Vec<PathBuf>, FormatError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(index)?;
    let mut files: Vec<String> = index.weight_map.into_values().collect();
    files.sort();
    files.dedup();
    if files.is_empty() {
        return Err(FormatError::missing("shards: its `weight_map` is empty"));
    }
    let plain = |file: String| match Path::new(&file).components().collect::<Vec<_>>().as_slice() {
        [Component::Normal(_)] => Ok(PathBuf::from(file)),
        _ => Err(FormatError::out_of_bounds(format!("shard `{}`", quoted(&file)), "the folder of its index")),
    };
    files.into_iter().map(plain).collect()
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<i64>,
}

impl Entry {
    /// How many bytes its data takes; `None` for a negative size, or more than a file can hold.
    pub(crate) fn len(&self) -> Option<usize> {
        let mut sizes = self.shape.iter().map(|n| usize::try_from(*n).ok());
        sizes.try_fold(self.dtype.width(), |product, n| product.checked_mul(n?))
    }
}

/// What a header says of a tensor whose data lies at `start..end`.
pub(super) fn described(entry: &Entry, start: usize, end: usize) -> Value {
    serde_json::json!({ "dtype": entry.dtype.safetensors_name(), "shape": entry.shape, "data_offsets": [start, end] })
}

/// A header with this metadata, where there is any.
pub(super) fn with_metadata(metadata: &[(&str, &str)], mut header: Map<String, Value>) -> Map<String, Value> {
    if !metadata.is_empty() {
        let metadata: Map<String, Value> = metadata.iter().map(|(k, v)| (k.to_string(), (*v).into())).collect();
        header.insert(METADATA.into(), metadata.into());
    }
    header
}

/// Writes a safetensors file tensor by tensor, so that only one of them need be in memory.
///
/// The file appears under its name when it is finished; one that is dropped before leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Writer {
    file: PartFile,
    /// The lengths of the tensors that are still to come, the next one last.
    due: Vec<usize>,
}

impl Writer {
    /// Begins a file that will hold these tensors in this order.
    ///
    /// Readers that map the file are fastest where each tensor's data is aligned, which an order from wide dtypes to narrow
    /// ones ensures.
    ///
    /// # Errors
    ///
    /// Those of the file system; [`io::ErrorKind::InvalidInput`] for two entries of one name, or sizes that no file can hold.
    pub(crate) fn create(path: &Path, entries: &[Entry], metadata: &[(&str, &str)]) -> io::Result<Self> {
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
        let mut header = with_metadata(metadata, Map::new());
        let mut start = 0usize;
        let mut due = Vec::with_capacity(entries.len());
        for entry in entries {
            let len = entry.len();
            let end = len.and_then(|len| start.checked_add(len));
            let (Some(len), Some(end)) = (len, end) else {
                return Err(invalid(format!("tensor `{}` of shape {:?} fits into no file", entry.name, entry.shape)));
            };
            if entry.name == METADATA || header.insert(entry.name.clone(), described(entry, start, end)).is_some() {
                return Err(invalid(format!("the name `{}` is taken", entry.name)));
            }
            due.push(len);
            start = end;
        }
        due.reverse();
        let mut header = serde_json::to_vec(&header)?;
        header.resize(header.len().next_multiple_of(8), b' '); // so that the data begins aligned
        let mut file = PartFile::create(path)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        Ok(Writer { file, due })
    }

    /// Writes the next tensor's data: its entries in order, little endian.
    ///
    /// # Errors
    ///
    /// Those of the file system; [`io::ErrorKind::InvalidInput`] for data of another length than announced.
    pub(crate) fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self.due.pop() {
            Some(len) if len == data.len() => self.file.write_all(data),
            expected => {
                let what = format!("{} bytes of data came, expected {expected:?}", data.len());
                Err(io::Error::new(io::ErrorKind::InvalidInput, what))
            }
        }
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    ///
    /// Those of the file system; [`io::ErrorKind::InvalidInput`] where tensors are missing.
    pub(crate) fn finish(self) -> io::Result<()> {
        match self.due.len() {
            0 => self.file.finish(),
            n => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{n} tensors were not written"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, dtype: Dtype, shape: &[i64]) -> Entry {
        Entry { name: name.into(), dtype, shape: shape.into() }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let wanted: Vec<(Entry, Vec<u8>)> = Dtype::ALL
            .into_iter()
            .map(|dtype| {
                (entry(dtype.safetensors_name(), dtype, &[2, 3]), vec![dtype.width() as u8; 6 * dtype.width()])
            })
            .chain([
                (entry("a \"quoted\" näme", Dtype::F32, &[]), vec![1; 4]),
                (entry("none", Dtype::F16, &[0, 5]), vec![]),
            ])
            .collect();
        let entries: Vec<Entry> = wanted.iter().map(|(entry, _)| entry.clone()).collect();
        let mut writer = Writer::create(&path, &entries, &[("format", "pt")]).unwrap();
        for (_, data) in &wanted {
            writer.write(data).unwrap();
        }
        assert!(!path.exists());
        writer.finish().unwrap();

        let bytes = std::fs::read(&path).unwrap();
        let read: BTreeMap<String, Place> = super::entries(&bytes).unwrap().into_iter().collect();
        assert_eq!(read.len(), wanted.len());
        for (entry, data) in wanted {
            let place = &read[&entry.name];
            assert_eq!((place.dtype, &place.shape), (entry.dtype, &entry.shape));
            assert_eq!(bytes[place.bytes().unwrap()], data);
        }
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    }

    #[test]
    fn what_cannot_be_written_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let create = |entries: &[Entry]| Writer::create(&path, entries, &[]);
        let error = |entries: &[Entry]| create(entries).unwrap_err().to_string();
        let f32s = |name: &str, n: i64| entry(name, Dtype::F32, &[n]);
        assert_eq!(error(&[f32s("a", 1), f32s("a", 1)]), "the name `a` is taken");
        assert_eq!(error(&[f32s(METADATA, 1)]), "the name `__metadata__` is taken");
        for n in [-1, i64::MAX] {
            assert_eq!(error(&[f32s("a", n)]), format!("tensor `a` of shape [{n}] fits into no file"));
        }
        let mut short = create(&[f32s("a", 1), f32s("b", 1)]).unwrap();
        let mut missing = create(&[f32s("a", 1), f32s("b", 1)]).unwrap();
        let mut none = create(&[]).unwrap();
        assert_eq!(short.write(&[0; 3]).unwrap_err().to_string(), "3 bytes of data came, expected Some(4)");
        missing.write(&[0; 4]).unwrap();
        assert_eq!(missing.finish().unwrap_err().to_string(), "1 tensors were not written");
        assert_eq!(none.write(&[]).unwrap_err().to_string(), "0 bytes of data came, expected None");
        drop((short, none));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_dtype_that_libtorch_does_not_have_is_refused() {
        let header = br#"{"a":{"dtype":"U32","shape":[1],"data_offsets":[0,4]}}"#;
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 4]].concat();
        let error = entries(&bytes).unwrap_err().to_string();
        assert_eq!(error, "tensor `a` has dtype U32, which is not supported");
    }

    #[test]
    fn an_index_names_files_of_its_own_folder() {
        let shards = |files: &[&str]| {
            let map: BTreeMap<String, &str> =
                files.iter().enumerate().map(|(i, file)| (i.to_string(), *file)).collect();
            shards(serde_json::json!({ "weight_map": map }).to_string().as_bytes()).map_err(|error| error.to_string())
        };
        assert_eq!(shards(&["b", "a", "b"]).unwrap(), [Path::new("a"), Path::new("b")]);
        assert_eq!(shards(&[]).unwrap_err(), "the file has no shards: its `weight_map` is empty");
        for outside in ["../a", "/etc/passwd", "a/b", "..", ""] {
            let error = shards(&[outside]).unwrap_err();
            assert_eq!(error, format!("shard `{outside}` lies outside the folder of its index"));
        }
    }
}
