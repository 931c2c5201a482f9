//! [`Checkpoint`]: named tensors, as views of files: safetensors, GGUF, or what `torch.save` writes.

use std::collections::btree_map::{BTreeMap, Entry};
use std::fmt;
use std::path::{Path, PathBuf};

use tch::Tensor;

use super::parts;
use super::quantized::weight::{Layout, QuantizedWeight};
use crate::format::quantized::Method;
use crate::format::{safetensors, torch_file, Place};
use crate::unchecked::mapped::{Access, FileBytes};
use crate::unchecked::threads::SharedTensor;
use crate::{CheckpointError, Error, Result};

/// The weights' usual file, and the older one.
pub(crate) const SAFETENSORS: &str = "model.safetensors";
pub(crate) const TORCH: &str = "pytorch_model.bin";

/// Names and places of the tensors in a file.
pub(crate) type ReadFormat = fn(&[u8]) -> Result<Vec<(String, Place)>, crate::FormatError>;

/// Named tensors, none of which is read before it is used.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    tensors: BTreeMap<String, Stored>,
    files: Vec<(PathBuf, FileBytes)>,
}

#[derive(Debug)]
enum Stored {
    /// Within the file of this index.
    InFile {
        file: usize,
        place: Place,
    },
    InMemory(SharedTensor),
    Generated(Generated),
    /// Several tensors of the files, read as one of plain numbers.
    Quantized(QuantizedWeight),
}

/// A tensor that is made when it is read.
pub(crate) struct Generated {
    shape: Vec<i64>,
    make: Box<dyn Fn() -> Result<Tensor> + Send + Sync>,
}

impl Generated {
    /// A tensor of this shape.
    pub(crate) fn new(shape: Vec<i64>, make: impl Fn() -> Result<Tensor> + Send + Sync + 'static) -> Self {
        Generated { shape, make: Box::new(make) }
    }
}

impl fmt::Debug for Generated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generated").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// The weights of a Hugging Face folder: the first that it has of `model.safetensors`, shards with their
    /// index, `pytorch_model.bin`, and shards of that.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Malformed`], naming the file.
    pub(crate) fn open(folder: &Path, access: Access) -> Result<Self> {
        let formats = [(SAFETENSORS, safetensors::entries as ReadFormat), (TORCH, torch_file::entries)];
        for (single, format) in formats {
            let index = folder.join(format!("{single}.index.json"));
            let single = folder.join(single);
            let files = if single.is_file() {
                vec![single]
            } else if index.is_file() {
                shards(&index)?.into_iter().map(|shard| folder.join(shard)).collect()
            } else {
                continue;
            };
            let mut checkpoint = Checkpoint::default();
            for file in files {
                checkpoint.add(file, format, access)?;
            }
            return Ok(checkpoint);
        }
        let why = format!("no weights here: expected {SAFETENSORS}, {TORCH}, or shards of either and their index");
        Err(Error::malformed(folder, why))
    }

    /// The tensors of one file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Malformed`], naming the file.
    pub(crate) fn open_file(path: &Path, format: ReadFormat, access: Access) -> Result<Self> {
        let mut checkpoint = Checkpoint::default();
        checkpoint.add(path.into(), format, access)?;
        Ok(checkpoint)
    }

    /// Files, of whose tensors none is named yet.
    pub(crate) fn of_files(files: Vec<(PathBuf, FileBytes)>) -> Self {
        Checkpoint { tensors: BTreeMap::new(), files }
    }

    /// Tensors in memory.
    pub(crate) fn in_memory(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let stored = |(name, tensor): (String, Tensor)| (name, Stored::InMemory(tensor.into()));
        Checkpoint { tensors: tensors.into_iter().map(stored).collect(), files: Vec::new() }
    }

    /// Tensors that are made when they are read.
    pub(crate) fn generated(tensors: impl IntoIterator<Item = (String, Generated)>) -> Self {
        let stored = |(name, generated)| (name, Stored::Generated(generated));
        Checkpoint { tensors: tensors.into_iter().map(stored).collect(), files: Vec::new() }
    }

    /// A safetensors file in memory: the toy model's. `path` is its name in errors.
    #[cfg(feature = "toy")]
    pub(crate) fn from_safetensors(bytes: &'static [u8], path: &Path) -> Result<Self> {
        let mut tensors = Vec::new();
        for (name, place) in safetensors::entries(bytes).map_err(|what| Error::malformed(path, what))? {
            let data = place.bytes().and_then(|range| bytes.get(range));
            let data = data.ok_or_else(|| Error::malformed(path, "a tensor lies outside the file"))?;
            let kind = crate::unchecked::mapped::kind(place.dtype);
            tensors.push((name, Tensor::f_from_data_size(data, &place.shape, kind)?));
        }
        Ok(Checkpoint::in_memory(tensors))
    }

    /// Whether every tensor lies in a file.
    pub(crate) fn is_in_files(&self) -> bool {
        self.tensors.values().all(|stored| matches!(stored, Stored::InFile { .. } | Stored::Quantized(_)))
    }

    /// The names, in alphabetical order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor.
    pub(crate) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.tensors.get(name).map(|stored| match stored {
            Stored::InFile { place, .. } => place.shape.clone(),
            Stored::InMemory(tensor) => tensor.size(),
            Stored::Generated(generated) => generated.shape.clone(),
            Stored::Quantized(weight) => weight.shape().to_vec(),
        })
    }

    /// A tensor, as a view of the file: to be copied, never to be changed, and to be dropped before the checkpoint is.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        match self.tensors.get(name) {
            None => Ok(None),
            Some(Stored::InMemory(tensor)) => Ok(Some(tensor.shallow_clone())),
            Some(Stored::Generated(generated)) => (generated.make)().map(Some),
            Some(Stored::Quantized(weight)) => weight.read(&self.files).map(Some),
            Some(Stored::InFile { file, place }) => {
                let (path, bytes) = &self.files[*file];
                bytes.tensor(place, path).map(Some)
            }
        }
    }

    /// One expert of a quantised tensor of all experts: `[1, …]`; `None` of another tensor, which can be read as a whole.
    pub(crate) fn expert(&self, name: &str, expert: usize) -> Result<Option<Tensor>> {
        match self.tensors.get(name) {
            Some(Stored::Quantized(weight)) => weight.read_expert(&self.files, expert),
            _ => Ok(None),
        }
    }

    /// The bytes of a tensor that lies in a file, and where that is.
    pub(crate) fn bytes(&self, name: &str) -> Option<(&Place, &[u8])> {
        match self.tensors.get(name) {
            Some(Stored::InFile { file, place }) => {
                Some((place, self.files.get(*file)?.1.as_slice().get(place.bytes()?)?))
            }
            _ => None,
        }
    }

    /// Adds a plain tensor of a file.
    pub(crate) fn put(&mut self, file: usize, name: String, place: Place) {
        self.tensors.insert(name, Stored::InFile { file, place });
    }

    /// Adds a quantised weight of a file.
    pub(crate) fn put_quantized(
        &mut self,
        file: usize,
        name: String,
        method: Method,
        place: Place,
        shape: Vec<i64>,
        layout: Layout,
    ) -> Result<()> {
        let weight = QuantizedWeight::new(&self.files, method, vec![(file, place)], Some(shape), layout)?;
        self.tensors.insert(name, Stored::Quantized(weight));
        Ok(())
    }

    /// Puts a quantised weight in place of the tensors that it is stored in.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] where these do not go together, [`Error::Checkpoint`] where one is absent.
    pub(crate) fn quantize(
        &mut self,
        name: String,
        method: Method,
        parts: &[String],
        shape: Option<Vec<i64>>,
        layout: Layout,
    ) -> Result<()> {
        let mut places = Vec::with_capacity(parts.len());
        for part in parts {
            match self.tensors.remove(part) {
                Some(Stored::InFile { file, place }) => places.push((file, place)),
                _ => return Err(CheckpointError::MissingTensor { name: part.clone(), expected: Vec::new() }.into()),
            }
        }
        let weight = QuantizedWeight::new(&self.files, method, places, shape, layout)?;
        self.tensors.insert(name, Stored::Quantized(weight));
        Ok(())
    }

    /// Leaves a tensor out.
    pub(crate) fn remove(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// Has the system take back what was read of mapped files: their tensors can be read again, if more slowly.
    pub(crate) fn release_pages(&self) {
        self.files.iter().for_each(|(_, bytes)| bytes.release_pages());
    }

    /// Whether the names lack a prefix: `transformer.` in the oldest GPT-2 files.
    pub(crate) fn lacks_prefix(&self, prefix: &str, names: &[parts::Entry]) -> bool {
        let bare = |entry: &parts::Entry| entry.name.strip_prefix(prefix).is_some_and(|name| self.has(name));
        !prefix.is_empty() && !self.tensors.keys().any(|name| name.starts_with(prefix)) && names.iter().any(bare)
    }

    /// Adds a prefix to the names, but for those that have none in the table either: the unembedding's.
    pub(crate) fn with_prefix(self, prefix: &str, names: &[parts::Entry]) -> Self {
        let with = |name: String| match names.iter().any(|entry| entry.name == name) {
            true => name,
            false => format!("{prefix}{name}"),
        };
        let tensors = self.tensors.into_iter().map(|(name, stored)| (with(name), stored));
        Checkpoint { tensors: tensors.collect(), files: self.files }
    }

    /// The tensors of norms under the names of today: files of the first years have `gamma` and `beta`, and transformers reads these.
    pub(crate) fn with_names_of_today(self) -> Self {
        const NAMES: [(&str, &str); 2] =
            [("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")];
        let of_today = |name: &str, (old, new): &(&str, &str)| Some(format!("{}{new}", name.strip_suffix(old)?));
        match self.tensors.keys().any(|name| NAMES.iter().any(|(old, _)| name.ends_with(old))) {
            true => {
                self.renamed(|name| NAMES.iter().find_map(|pair| of_today(name, pair)).or_else(|| Some(name.into())))
            }
            false => self,
        }
    }

    /// The tensors under other names. A tensor for which `rename` returns `None` is left out.
    pub(crate) fn renamed(self, mut rename: impl FnMut(&str) -> Option<String>) -> Self {
        let tensors = self.tensors.into_iter().filter_map(|(name, stored)| Some((rename(&name)?, stored)));
        Checkpoint { tensors: tensors.collect(), files: self.files }
    }

    /// Adds the tensors of a file.
    fn add(&mut self, path: PathBuf, format: ReadFormat, access: Access) -> Result<()> {
        let bytes = FileBytes::open(&path, access)?;
        let tensors = format(bytes.as_slice()).map_err(|what| Error::malformed(&path, what))?;
        let file = self.files.len();
        for (name, place) in tensors {
            match self.tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(Stored::InFile { file, place }),
                Entry::Occupied(entry) => {
                    let what = format!("tensor `{}` is there twice, here or in another shard", entry.key());
                    return Err(Error::malformed(path, what));
                }
            };
        }
        self.files.push((path, bytes));
        Ok(())
    }
}

/// The shards that an index names, each a plain file name.
pub(crate) fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read(index).map_err(Error::io(index))?;
    safetensors::shards(&text).map_err(|what| Error::malformed(index, what))
}
