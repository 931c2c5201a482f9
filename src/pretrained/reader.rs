//! [`PartReader`]: the parts of a checkpoint, checked against the configuration and laid out in the model's memory.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use super::checkpoint::Checkpoint;
use super::parts::{Entry, Part, View};
use crate::model::part::{Address, Location};
use crate::tensor::precision::at_least_float;
use crate::unchecked::threads::SharedTensor;
use crate::{CheckpointError, Config, Error, Result};

/// Reads the parts of one checkpoint, and remembers which tensors it used.
pub(crate) struct PartReader<'a> {
    pub(crate) config: &'a Config,
    pub(crate) checkpoint: &'a Checkpoint,
    /// Where each part lies.
    pub(crate) table: &'a [Entry],
    /// Of the model's memory.
    pub(crate) kind: Kind,
    pub(crate) device: Device,
    used: Mutex<BTreeSet<String>>,
}

impl<'a> PartReader<'a> {
    pub(crate) fn new(
        config: &'a Config,
        checkpoint: &'a Checkpoint,
        table: &'a [Entry],
        kind: Kind,
        device: Device,
    ) -> Self {
        PartReader { config, checkpoint, table, kind, device, used: Mutex::default() }
    }

    /// Where the part of this place lies; `None` where this checkpoint has no such part.
    pub(crate) fn entry(&self, part: Part, location: Location) -> Option<&Entry> {
        self.table.iter().find(|entry| entry.is_of(part, location))
    }

    /// Whether this checkpoint has such a part.
    pub(crate) fn has(&self, part: Part, location: Location) -> bool {
        self.entry(part, location).is_some()
    }

    /// The first layer that has the weights of this one: another layer where layers share their weights.
    pub(crate) fn first_with_weights_of(&self, layer: usize) -> usize {
        let name = |layer| Some(self.entry(Part::O, Location::block(layer))?.tensor_name(Location::block(layer), 0));
        match self.table.iter().any(|entry| entry.shared.is_some()) {
            true => (0..layer).find(|earlier| name(*earlier) == name(layer)).unwrap_or(layer),
            false => layer,
        }
    }

    /// A part in memory of its own: a matrix row by row, however the checkpoint has it, as oneDNN's product is up to a sixth
    /// slower the other way round.
    pub(crate) fn tensor(&self, part: Part, location: Location) -> Result<SharedTensor> {
        self.lay_out(&self.view(part, location)?)
    }

    /// [`PartReader::tensor`] of a part that only some models have.
    pub(crate) fn optional(&self, part: Part, location: Location) -> Result<Option<SharedTensor>> {
        self.has(part, location).then(|| self.tensor(part, location)).transpose()
    }

    /// A gain or bias of queries or keys, `[d]`, or one for each head, `[head, d_head]`.
    pub(crate) fn head_norm(&self, part: Part, location: Location, heads: usize) -> Result<Option<SharedTensor>> {
        let Some(entry) = self.entry(part, location) else { return Ok(None) };
        let shape = part.shape(self.config, location);
        if entry.is_per_head() {
            let head = |head| self.find(entry, location, head, &[&shape]);
            let heads = (0..heads).map(head).collect::<Result<Vec<_>>>()?;
            return self.lay_out(&Tensor::f_stack(&heads, 0)?).map(Some);
        }
        let per_head = [heads as i64, self.config.d_head_of(location.layer.unwrap_or(0)) as i64];
        self.lay_out(&self.find(entry, location, 0, &[&shape, &per_head])?).map(Some)
    }

    /// A part of one entry, in fp32: `[1]`. Checkpoints have these in any shape of one entry.
    pub(crate) fn constant(&self, part: Part, location: Location) -> Result<Tensor> {
        let entry = self.entry(part, location).ok_or_else(|| self.missing(part, location))?;
        let tensor = self.find(entry, location, 0, &[&[1], &[], &[1, 1]])?;
        Ok(tensor.f_reshape([1])?.f_to_device_(self.device, Kind::Float, false, true)?)
    }

    /// The bias of the choice of experts, in fp32 or better: `[num_experts]`, or `[1, num_experts]` in the checkpoint.
    pub(crate) fn choice_bias(&self, location: Location) -> Result<SharedTensor> {
        let part = Part::ChoiceB;
        let entry = self.entry(part, location).ok_or_else(|| self.missing(part, location))?;
        let shape = part.shape(self.config, location);
        let tensor = self.find(entry, location, 0, &[&shape, &[1, shape[0]]])?.f_reshape(-1)?;
        Ok(tensor.f_to_device_(self.device, at_least_float(self.kind), false, true)?.into())
    }

    /// Parts below each other in one tensor: `[rows of all, …]`. Those that the checkpoint lacks are zero.
    pub(crate) fn joined(&self, parts: &[Part], location: Location) -> Result<SharedTensor> {
        let shapes: Vec<Vec<i64>> = parts.iter().map(|part| part.shape(self.config, location)).collect();
        let mut shape = shapes[0].clone();
        shape[0] = shapes.iter().map(|shape| shape[0]).sum();
        let options = (self.kind, self.device);
        let all = parts.iter().all(|part| self.has(*part, location));
        let mut joined = if all { Tensor::f_empty(&shape, options)? } else { Tensor::f_zeros(&shape, options)? };
        let views = parts.iter().map(|part| self.entry(*part, location).map(|entry| entry.view));
        let transposed = views.eq([0, 1, 2].map(|third| Some(View::QkvBlockTransposed(third))));
        let mut start = 0;
        for (part, rows) in parts.iter().zip(shapes.iter().map(|shape| shape[0])) {
            if let Some(entry) = self.entry(*part, location) {
                let view = self.view(*part, location)?;
                if transposed {
                    // At once: libtorch transposes a whole matrix in half the time of its parts.
                    if let Some(whole) = self.checkpoint.tensor(&entry.tensor_name(location, 0))? {
                        joined.f_copy_(&whole.f_tr()?)?; // from [d_model, q k v]
                        break;
                    }
                }
                joined.f_narrow(0, start, rows)?.f_copy_(&view)?;
            }
            start += rows;
        }
        Ok(joined.into())
    }

    /// Whether the checkpoint has the tensor that a part of this location lies in.
    pub(crate) fn stores(&self, part: Part, location: Location) -> bool {
        self.entry(part, location).is_some_and(|entry| self.checkpoint.has(&entry.tensor_name(location, 0)))
    }

    /// A copy in the model's kind and on its device, row by row.
    fn lay_out(&self, view: &Tensor) -> Result<SharedTensor> {
        let mut tensor = Tensor::f_empty(view.size(), (self.kind, self.device))?;
        tensor.f_copy_(view)?;
        Ok(tensor.into())
    }

    /// A part as a view of the checkpoint, of the shape that the configuration implies.
    fn view(&self, part: Part, location: Location) -> Result<Tensor> {
        let entry = self.entry(part, location).ok_or_else(|| self.missing(part, location))?;
        self.find(entry, location, 0, &[&part.shape(self.config, location)])
    }

    /// The view of an entry, in the first of these shapes that fits. Only tensors that are all of a part may have another than
    /// the first.
    fn find(&self, entry: &Entry, location: Location, head: usize, shapes: &[&[i64]]) -> Result<Tensor> {
        let name = entry.tensor_name(location, head);
        let expected = entry.view.checkpoint_shape(shapes[0], self.config, location);
        let Some(found) = self.checkpoint.shape(&name) else {
            return Err(CheckpointError::MissingTensor { name, expected }.into());
        };
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        let fits = match entry.view {
            View::AsIs => shapes.contains(&found.as_slice()),
            _ => found == expected,
        };
        if !fits {
            return Err(CheckpointError::TensorShape { name, found, expected }.into());
        }
        let expert = location.expert.unwrap_or(0);
        // Of a quantised tensor of all experts, only one is made.
        if entry.view.is_of_expert()
            && let Some(one) = self.checkpoint.expert(&name, expert)?
        {
            return entry.view.read(&one, self.config, Location { expert: None, ..location }, self.kind);
        }
        let Some(stored) = self.checkpoint.tensor(&name)? else {
            return Err(CheckpointError::MissingTensor { name, expected }.into());
        };
        entry.view.read(&stored, self.config, location, self.kind)
    }

    fn missing(&self, part: Part, location: Location) -> Error {
        CheckpointError::MissingTensor {
            name: Address { location, part }.to_string(),
            expected: part.shape(self.config, location),
        }
        .into()
    }

    /// Checks that every tensor of the checkpoint was used, but for those whose names end so.
    pub(crate) fn check_all_used(&self, ignored: &[&str]) -> Result<()> {
        let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ignored = |name: &str| ignored.iter().any(|end| name.ends_with(end));
        let unused: Vec<_> =
            self.checkpoint.names().filter(|name| !used.contains(*name) && !is_ignored(name)).collect();
        if unused.is_empty() {
            return Ok(());
        }
        let shape = |name: &&str| format!("`{name}` {:?}", self.checkpoint.shape(name).unwrap_or_default());
        let mut names: Vec<String> = unused.iter().take(5).map(shape).collect();
        if unused.len() > names.len() {
            names.push("…".into());
        }
        Err(CheckpointError::ExtraTensors { count: unused.len(), names: names.join(", ") }.into())
    }
}
