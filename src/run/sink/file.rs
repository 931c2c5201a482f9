//! [`FileSink`]: kept activations in a safetensors file.

use std::collections::VecDeque;
use std::path::PathBuf;

use tch::Tensor;

use super::{HookError, PlannedEntry, Sink, SinkEntry};
use crate::format::safetensors::{Entry, Writer};
use crate::tensor::file::copy_bytes;
use crate::unchecked::mapped::dtype;
use crate::Error;

/// Writes what a run keeps to a safetensors file as the run goes, under TransformerLens' names: one activation at a time is in
/// memory. The file appears, in place of one of its name, when the run has ended well.
///
/// ```
/// use tch_lens::{FileSink, HookedTransformer, RunOptions};
/// let model = HookedTransformer::toy()?;
/// let folder = tempfile::tempdir().unwrap();
/// let path = folder.path().join("activations.safetensors");
/// let run = RunOptions::new().cache("resid_post").sink(FileSink::new(&path));
/// model.run("When Mary and John went to the shop", run)?;
/// let read = tch::Tensor::read_safetensors(&path).unwrap();
/// assert_eq!(read.len(), 4);
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// The rows of experts are refused: the file begins with all shapes, and how many rows an expert gets is known late.
#[derive(Debug)]
pub struct FileSink {
    path: PathBuf,
    writer: Option<Writer>,
    due: VecDeque<PlannedEntry>,
    bytes: Vec<u8>,
}

impl FileSink {
    /// A file at `path`; nothing is written before a run.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        FileSink { path: path.into(), writer: None, due: VecDeque::new(), bytes: Vec::new() }
    }
}

impl Sink for FileSink {
    fn begin(&mut self, planned: &[PlannedEntry]) -> Result<(), HookError> {
        let entry = |planned: &PlannedEntry| {
            let (point, kind) = (planned.point, planned.kind);
            let shape = planned.shape.clone().ok_or_else(|| {
                Error::unsupported(format!(
                    "`{point}` cannot be written to a file as the run goes, since how many rows an expert gets is known late: keep it \
                     in memory"
                ))
            })?;
            let dtype =
                dtype(kind).ok_or_else(|| Error::unsupported(format!("no file holds tensors of kind {kind:?}")))?;
            Ok(Entry { name: point.to_string(), dtype, shape })
        };
        let entries = planned.iter().map(entry).collect::<Result<Vec<_>, Error>>()?;
        self.writer = Some(Writer::create(&self.path, &entries, &[("format", "pt")]).map_err(Error::io(&self.path))?);
        self.due = planned.iter().cloned().collect();
        Ok(())
    }

    fn keep(&mut self, entry: SinkEntry<'_>) -> Result<Option<Tensor>, HookError> {
        let (Some(writer), Some(due)) = (&mut self.writer, self.due.pop_front()) else {
            return Err(Error::wrong_input(format!("`{}` came without being announced", entry.point)).into());
        };
        let (shape, kind) = (entry.tensor.size(), entry.tensor.f_kind()?);
        if (due.point, due.shape.as_deref(), due.kind) != (entry.point, Some(&shape), kind) {
            let sentence = format!("`{}` came as {kind:?} {shape:?}, but {due:?} was announced", entry.point);
            return Err(Error::wrong_input(sentence).into());
        }
        copy_bytes(&entry.tensor, &mut self.bytes)?;
        writer.write(&self.bytes).map_err(Error::io(&self.path))?;
        Ok(None)
    }

    fn finish(&mut self) -> Result<(), HookError> {
        self.bytes = Vec::new();
        match self.writer.take() {
            Some(writer) => Ok(writer.finish().map_err(Error::io(&self.path))?),
            None => Ok(()),
        }
    }
}
