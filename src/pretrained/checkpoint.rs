//! [`Checkpoint`]: named tensors, as views of files mapped into memory: safetensors, or what `torch.save` writes.

use std::collections::btree_map::{BTreeMap, Entry};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};

use super::{parts, torch_file};
use crate::unchecked::mapped::{Mapped, Place};
use crate::unchecked::threads::SharedTensor;
use crate::{Error, Result};

/// The weights' usual file, and the older one.
pub(crate) const SAFETENSORS: &str = "model.safetensors";
pub(crate) const TORCH: &str = "pytorch_model.bin";

/// Adds the tensors of a file.
type Add = fn(&mut Checkpoint, &Path) -> Result<()>;

/// Named tensors, none of which is read before it is used.
#[derive(Debug, Default)]
pub(crate) struct Checkpoint {
    tensors: BTreeMap<String, Stored>,
    files: Vec<Mapped>,
}

#[derive(Debug)]
enum Stored {
    /// Within the mapped file of this index.
    Mapped { file: usize, place: Place },
    /// In memory already.
    Own(SharedTensor),
}

impl Checkpoint {
    /// The weights of a Hugging Face folder: the first that it has of `model.safetensors`, shards with their
    /// index, `pytorch_model.bin`, and shards of that.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] and [`Error::Malformed`], naming the file.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let mut checkpoint = Checkpoint::default();
        for (single, add) in [(SAFETENSORS, Self::add_safetensors as Add), (TORCH, Self::add_torch as Add)] {
            let index = folder.join(format!("{single}.index.json"));
            let single = folder.join(single);
            if single.is_file() {
                add(&mut checkpoint, &single)?;
                return Ok(checkpoint);
            }
            if index.is_file() {
                for shard in shards(&index)? {
                    add(&mut checkpoint, &folder.join(shard))?;
                }
                return Ok(checkpoint);
            }
        }
        let why = format!("no weights here: expected {SAFETENSORS}, {TORCH}, or shards of either and their index");
        Err(Error::malformed(folder, why))
    }

    /// Tensors in memory.
    pub(crate) fn of(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let own = |(name, tensor): (String, Tensor)| (name, Stored::Own(tensor.into()));
        Checkpoint { tensors: tensors.into_iter().map(own).collect(), files: Vec::new() }
    }

    /// A safetensors file in memory: the toy model's.
    #[cfg(any(feature = "toy", fuzzing))]
    pub(crate) fn of_safetensors(bytes: &[u8], path: &Path) -> Result<Self> {
        let mut tensors = Vec::new();
        for (name, Place { start, kind, shape, .. }, len) in entries(bytes, path)? {
            tensors.push((name, Tensor::f_from_data_size(&bytes[start..start + len], &shape, kind)?));
        }
        Ok(Checkpoint::of(tensors))
    }

    /// Whether every tensor lies in a file.
    pub(crate) fn is_of_files(&self) -> bool {
        self.tensors.values().all(|stored| matches!(stored, Stored::Mapped { .. }))
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
            Stored::Mapped { place, .. } => place.shape.clone(),
            Stored::Own(tensor) => tensor.size(),
        })
    }

    /// A tensor, as a view of the file: to be copied, never to be changed, and to be dropped before the checkpoint is.
    pub(crate) fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        match self.tensors.get(name) {
            None => Ok(None),
            Some(Stored::Own(tensor)) => Ok(Some(tensor.shallow_clone())),
            Some(Stored::Mapped { file, place }) => self.files[*file].tensor(place).map(Some),
        }
    }

    /// Has the system take back what was read of the files: their tensors can be read again, if more slowly.
    pub(crate) fn let_go(&self) {
        self.files.iter().for_each(|file| file.let_go());
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

    fn add_safetensors(&mut self, path: &Path) -> Result<()> {
        let file = Mapped::open(path)?;
        let entries = entries(file.bytes(), path)?;
        self.add(path, file, entries.into_iter().map(|(name, place, _)| (name, place)))
    }

    fn add_torch(&mut self, path: &Path) -> Result<()> {
        let file = Mapped::open(path)?;
        let entries = torch_file::entries(file.bytes()).map_err(|what| Error::malformed(path, what))?;
        self.add(path, file, entries)
    }

    fn add(&mut self, path: &Path, file: Mapped, tensors: impl IntoIterator<Item = (String, Place)>) -> Result<()> {
        let index = self.files.len();
        self.files.push(file);
        for (name, place) in tensors {
            match self.tensors.entry(name) {
                Entry::Vacant(entry) => entry.insert(Stored::Mapped { file: index, place }),
                Entry::Occupied(entry) => {
                    let what = format!("tensor `{}` is there twice, here or in another shard", entry.key());
                    return Err(Error::malformed(path, what));
                }
            };
        }
        Ok(())
    }
}

/// The shards that an index names, each a plain file name.
pub(crate) fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    shards_in(&std::fs::read(index).map_err(Error::io(index))?, index)
}

/// [`shards`] of an index's contents.
pub(crate) fn shards_in(text: &[u8], index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parsed: Index = serde_json::from_slice(text).map_err(|error| Error::malformed(index, error))?;
    let mut files: Vec<String> = parsed.weight_map.into_values().collect();
    files.sort();
    files.dedup();
    if files.is_empty() {
        return Err(Error::malformed(index, "it names no shards"));
    }
    files
        .into_iter()
        .map(|file| match Path::new(&file).components().collect::<Vec<_>>().as_slice() {
            [std::path::Component::Normal(_)] => Ok(PathBuf::from(file)),
            _ => Err(Error::malformed(index, format!("shard `{file}` is no plain file name"))),
        })
        .collect()
}

/// Name, place and length in bytes of each tensor of a safetensors file.
type Entries = Vec<(String, Place, usize)>;

fn entries(bytes: &[u8], path: &Path) -> Result<Entries> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| {
        let what = format!("this is no whole safetensors file: {error}");
        Error::malformed(path, what)
    })?;
    let base = bytes.as_ptr() as usize;
    file.iter()
        .map(|(name, view)| {
            let kind = kind(view.dtype())
                .ok_or_else(|| Error::malformed(path, format!("tensor `{name}` is of kind {}", view.dtype())))?;
            let shape = view.shape().iter().map(|n| *n as i64).collect();
            let data = view.data();
            Ok((name.to_string(), Place::contiguous(data.as_ptr() as usize - base, kind, shape), data.len()))
        })
        .collect()
}

fn kind(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::I16 => Kind::Int16,
        Dtype::I8 => Kind::Int8,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}
