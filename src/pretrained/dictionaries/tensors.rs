//! [`Tensors`]: the tensors of a dictionary's file, each of which must be asked for; and decoders that stay in it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};
use tch::Tensor;

use super::options::DictionaryOptions;
use crate::config::Stack;
use crate::hook::{whole, HookPoint};
use crate::pretrained::checkpoint::{Checkpoint, ReadFormat};
use crate::sae::{Decoder, Dictionary, DictionaryConfig, Encoder, RowSource};
use crate::{Error, Result};

/// The tensors of one file.
pub(super) struct Tensors<'a> {
    checkpoint: Arc<Checkpoint>,
    path: PathBuf,
    options: &'a DictionaryOptions,
    asked: RefCell<BTreeSet<String>>,
}

/// How a matrix lies in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Orientation {
    /// A row for each feature.
    ByFeature,
    /// A column for each feature.
    ByColumn,
}

impl<'a> Tensors<'a> {
    pub(super) fn open(path: &Path, format: ReadFormat, options: &'a DictionaryOptions) -> Result<Self> {
        let checkpoint = Arc::new(Checkpoint::open_file(path, format, options.access)?);
        Ok(Tensors { checkpoint, path: path.into(), options, asked: RefCell::default() })
    }

    /// The tensors of a checkpoint in memory; `path` is its name in errors.
    #[cfg(feature = "toy")]
    pub(super) fn of(checkpoint: Checkpoint, path: &Path, options: &'a DictionaryOptions) -> Self {
        Tensors { checkpoint: Arc::new(checkpoint), path: path.into(), options, asked: RefCell::default() }
    }

    /// An error about this file.
    pub(super) fn malformed(&self, what: impl Into<String>) -> Error {
        Error::malformed(&self.path, what.into())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }

    pub(super) fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.checkpoint.shape(name)
    }

    /// A tensor that must be there.
    pub(super) fn need(&self, name: &str) -> Result<Tensor> {
        let names = || self.checkpoint.names().collect::<Vec<_>>().join(", ");
        self.get(name)?.ok_or_else(|| self.malformed(format!("there is no tensor `{name}`, only {}", names())))
    }

    /// A copy of a tensor, in the kind and on the device that were asked for.
    pub(super) fn get(&self, name: &str) -> Result<Option<Tensor>> {
        self.asked.borrow_mut().insert(name.into());
        let Some(view) = self.checkpoint.tensor(name)? else { return Ok(None) };
        let (kind, device) = (self.options.kind, self.options.device);
        if !view.is_floating_point() {
            return Err(self.malformed(format!(
                "tensor `{name}` is of kind {:?}, but weights are floating-point",
                view.f_kind()?
            )));
        }
        // A copy, always: the view is the file's memory.
        Ok(Some(view.f_alias_copy()?.f_to_device(device)?.f_to_kind(kind)?))
    }

    /// A matrix of features, a row for each.
    pub(super) fn by_feature(&self, name: &str, orientation: Orientation) -> Result<Tensor> {
        let matrix = self.need(name)?;
        if matrix.dim() != 2 {
            return Err(self.malformed(format!("`{name}` has shape {:?}, expected a matrix", matrix.size())));
        }
        match orientation {
            Orientation::ByFeature => Ok(matrix),
            Orientation::ByColumn => Ok(matrix.f_tr()?),
        }
    }

    /// A decoder; of a tensor `[feature, layer, d_out]`, that to one of the layers.
    pub(super) fn decoder(&self, name: &str, orientation: Orientation, layer: Option<i64>) -> Result<Decoder> {
        let size = self.shape(name).unwrap_or_default();
        let fits = match layer {
            None => size.len() == 2,
            Some(layer) => size.len() == 3 && size.get(1).is_some_and(|n| layer < *n),
        };
        if !fits && self.has(name) {
            let expected = if layer.is_some() { "[feature, layer, d_out]" } else { "a matrix" };
            return Err(self.malformed(format!("`{name}` has shape {size:?}, expected {expected}")));
        }
        if self.options.on_demand && self.has(name) {
            self.asked.borrow_mut().insert(name.into());
            let checkpoint = Arc::clone(&self.checkpoint);
            let rows = RowsOfFile { checkpoint, name: name.into(), orientation, layer };
            return Ok(Decoder::OnDemand(Arc::new(rows)));
        }
        let whole = self.need(name)?;
        let matrix = match layer {
            Some(layer) => whole.f_select(1, layer)?.f_contiguous()?,
            None => whole,
        };
        // Rows are read one by one, so they lie together.
        let matrix = if orientation == Orientation::ByColumn { matrix.f_tr()?.f_contiguous()? } else { matrix };
        Ok(Decoder::Memory(matrix.into()))
    }

    /// A tensor that may be there and changes nothing.
    pub(super) fn skip(&self, name: &str) {
        self.asked.borrow_mut().insert(name.into());
    }

    /// That every tensor of the file was asked for.
    pub(super) fn finish(self) -> Result<()> {
        let asked = self.asked.borrow();
        let extra: Vec<&str> = self.checkpoint.names().filter(|name| !asked.contains(*name)).collect();
        match extra.is_empty() {
            true => Ok(()),
            false => Err(self.malformed(format!("no dictionary of this kind uses its tensors {}", extra.join(", ")))),
        }
    }
}

/// The dictionary with this decoder, which writes to `hook_out` alone.
pub(super) fn finished(config: DictionaryConfig, encoder: Encoder, decoder: Decoder) -> Result<Dictionary> {
    let outputs = vec![(config.hook_out, decoder)];
    Dictionary::with_decoders(config, encoder, outputs)
}

/// The hook point of a whole name.
pub(super) fn point(name: &str) -> Option<HookPoint> {
    whole(name, Stack::Blocks).filter(|point| point.expert().is_none() && point.spliced_at().is_none())
}

/// The fields of a JSON file.
pub(super) fn read_fields(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&text).map_err(|error| Error::malformed(path, error))
}

/// The rows of a decoder in a file.
#[derive(Debug)]
struct RowsOfFile {
    checkpoint: Arc<Checkpoint>,
    name: String,
    orientation: Orientation,
    layer: Option<i64>,
}

impl RowsOfFile {
    /// The matrix, as a view of the file, which must not outlive this value.
    fn view(&self) -> Result<Tensor> {
        let whole =
            self.checkpoint.tensor(&self.name)?.ok_or(Error::Internal("a decoder that is no longer in its file"))?;
        let whole = match self.layer {
            Some(layer) => whole.f_select(1, layer)?,
            None => whole,
        };
        Ok(if self.orientation == Orientation::ByColumn { whole.f_tr()? } else { whole })
    }
}

impl RowSource for RowsOfFile {
    fn size(&self) -> [i64; 2] {
        let mut size = self.checkpoint.shape(&self.name).unwrap_or_default();
        if self.layer.is_some() && size.len() == 3 {
            size.remove(1);
        }
        match (<[i64; 2]>::try_from(&size[..]), self.orientation) {
            (Ok([features, d_out]), Orientation::ByFeature) => [features, d_out],
            (Ok([d_out, features]), Orientation::ByColumn) => [features, d_out],
            (Err(_), _) => [0, 0],
        }
    }

    fn rows(&self, features: &Tensor) -> Result<Tensor> {
        Ok(self.view()?.f_index_select(0, features)?)
    }
}
