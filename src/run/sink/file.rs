//! [`FileSink`]: kept activations in a safetensors file.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use tch::Tensor;

use super::{HookError, PlannedEntry, RunDescription, Sink, SinkEntry};
use crate::format::safetensors::Entry;
use crate::format::LateWriter;
use crate::tensor::file::copy_bytes;
use crate::text::input::Tokens;
use crate::unchecked::mapped::dtype;
use crate::{Error, Result};

/// The field of a file's metadata that describes the run.
pub(crate) const FIELD: &str = "activation_cache";
/// The names of the tokens, of which of them are real, and of their types.
pub(crate) const TOKENS: [&str; 3] = ["tokens", "mask", "token_types"];

/// Writes what a run keeps to a safetensors file as the run goes, under TransformerLens' names: one activation at a time is in
/// memory. The file appears, in place of one of its name, when the run has ended well.
///
/// It is the file that [`ActivationCache::save`](crate::ActivationCache::save) writes:
/// [`ActivationCache::open`](crate::ActivationCache::open) reads it.
///
/// ```
/// use tch_lens::{FileSink, HookedTransformer, RunOptions};
/// let model = HookedTransformer::toy()?;
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("activations.safetensors");
/// let run = RunOptions::new().cache("resid_post").sink(FileSink::new(&path));
/// model.run("When Mary and John went to the shop", run)?;
/// assert_eq!(model.open_cache(&path)?.len(), 4);
/// let read = tch::Tensor::read_safetensors(&path).unwrap();
/// assert_eq!(read.len(), 4 + 1); // and the tokens
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    writer: Option<LateWriter>,
    due: VecDeque<PlannedEntry>,
    run: Option<RunDescription>,
    bytes: Vec<u8>,
}

impl FileSink {
    /// A file at `path`; nothing is written before a run.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        FileSink { path: path.into(), writer: None, due: VecDeque::new(), run: None, bytes: Vec::new() }
    }

    /// The file's metadata.
    fn metadata(run: Option<&RunDescription>) -> Vec<(&'static str, &str)> {
        let description = run.map(|run| (FIELD, run.text.as_str()));
        [("format", "pt")].into_iter().chain(description).collect()
    }
}

impl Sink for FileSink {
    fn describe(&mut self, run: &dyn Fn() -> Result<RunDescription>) -> Result<(), HookError> {
        self.run = Some(run()?);
        Ok(())
    }

    fn begin(&mut self, planned: &[PlannedEntry]) -> Result<(), HookError> {
        // An expert's rows: [row, width].
        let dims = |entry: &PlannedEntry| entry.shape.as_ref().map_or(2, Vec::len);
        let tensors: Vec<_> = planned.iter().map(|entry| (entry.point.to_string(), dims(entry))).collect();
        self.due = planned.iter().cloned().collect();
        Ok(self.begin_tensors(&tensors)?)
    }

    fn keep(&mut self, entry: SinkEntry<'_>) -> Result<Option<Tensor>, HookError> {
        let Some(due) = self.due.pop_front() else {
            return Err(Error::wrong_input(format!("`{}` came without being announced", entry.point)).into());
        };
        let (shape, kind) = (entry.tensor.size(), entry.tensor.f_kind()?);
        let fits = due.shape.as_ref().map_or(shape.len() == 2, |due| *due == shape);
        if (due.point, due.kind, true) != (entry.point, kind, fits) {
            let sentence = format!("`{}` came as {kind:?} {shape:?}, but {due:?} was announced", entry.point);
            return Err(Error::wrong_input(sentence).into());
        }
        self.put(entry.point.to_string(), &entry.tensor)?;
        Ok(None)
    }

    fn finish(&mut self) -> Result<(), HookError> {
        self.bytes = Vec::new();
        let run = self.run.take();
        match self.writer.take() {
            Some(writer) => Ok(writer.finish(&FileSink::metadata(run.as_ref())).map_err(Error::io(&self.path))?),
            None => Ok(()),
        }
    }
}

impl FileSink {
    /// Begins a file of tensors of these names and numbers of dimensions.
    pub(crate) fn begin_tensors(&mut self, tensors: &[(String, usize)]) -> Result<()> {
        let entries = tensors.iter().map(|(name, dims)| (name.as_str(), *dims)).chain(TOKENS.map(|name| (name, 2)));
        let metadata = FileSink::metadata(self.run.as_ref());
        let mut writer = LateWriter::create(&self.path, entries, &metadata).map_err(Error::io(&self.path))?;
        // They come first, as they have the widest numbers: so activations begin aligned.
        if let Some(run) = &self.run {
            let Tokens { ids, mask, types } = &run.tokens;
            let tensors = TOKENS.into_iter().zip([Some(ids), mask.as_ref(), types.as_ref()]);
            for (name, tensor) in tensors {
                if let Some(tensor) = tensor {
                    write(&mut writer, &self.path, name.into(), tensor, &mut self.bytes)?;
                }
            }
        }
        self.writer = Some(writer);
        Ok(())
    }

    /// Writes a tensor that was announced.
    pub(crate) fn put(&mut self, name: String, tensor: &Tensor) -> Result<()> {
        match &mut self.writer {
            Some(writer) => write(writer, &self.path, name, tensor, &mut self.bytes),
            None => Err(Error::wrong_input(format!("`{name}` came without being announced"))),
        }
    }
}

/// Writes a tensor, through `bytes`.
fn write(writer: &mut LateWriter, path: &Path, name: String, tensor: &Tensor, bytes: &mut Vec<u8>) -> Result<()> {
    let kind = tensor.f_kind()?;
    let dtype = dtype(kind).ok_or_else(|| Error::unsupported(format!("no file holds tensors of kind {kind:?}")))?;
    copy_bytes(tensor, bytes)?;
    writer.write(&Entry { name, dtype, shape: tensor.size() }, bytes).map_err(Error::io(path))
}
