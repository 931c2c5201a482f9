//! [`Patch`]: known values for known entries of an activation.

use tch::{Kind, Tensor};

use super::kept::KeptPositions;
use super::part::{Part, Pick};
use crate::hook::{Extent, HookPoint, PointSet};
use crate::tensor::columns::Columns;
use crate::tensor::slice::Slice;
use crate::tensor::span::Span;
use crate::text::input::Tokens;
use crate::text::positions::{PositionAxis, Positions};
use crate::{Config, Error, Result};

/// Known values for known entries of an activation: which entries, what happens to them, and with which value.
///
/// Without a selection, every entry is meant. Each axis is selected at most once; the meant entries are those that all
/// selections contain.
///
/// | method | selects |
/// | --- | --- |
/// | [`rows`](Patch::rows) | rows of the batch |
/// | [`pos`](Patch::pos) | positions, as token columns; of scores and patterns, the query's |
/// | [`head`](Patch::head) | heads: key-value heads of keys, values and what they read, query heads of everything else |
/// | [`key`](Patch::key) | positions of the key, of scores and patterns |
/// | [`neuron`](Patch::neuron) | neurons of an MLP |
/// | [`entries`](Patch::entries) | entries of the last axis, whatever it is |
///
/// An index drops its axis and everything else keeps it, so a tensor as value is broadcast to what Python's
/// `z[rows, pos, head]` is, with lists along several axes combined as their product.
///
/// ```
/// use tch_lens::{hook, Hooks, HookedTransformer, Patch};
/// let model = HookedTransformer::toy()?;
/// let (clean, corrupted) = ("When Mary and John went to the shop", "When John and Mary went to the shop");
/// let (_, cache) = model.run_with_cache(clean)?;
/// // Head 2 of layer 1, as in the clean run; then the stream at one position; then a neuron's mean ablation.
/// let z = cache.get(hook::z(1))?.select(2, 2); // [batch, pos, d_head]
/// let resid = cache.get(hook::resid_pre(2))?.select(1, 1); // [batch, d_model]
/// let hooks = Hooks::new()
///     .patch(hook::z(1), Patch::set(z).head(2))
///     .patch(hook::resid_pre(2), Patch::set(resid).pos(1))
///     .patch(hook::post(3), Patch::set(0.1).neuron(7));
/// model.run_with_hooks(corrupted, hooks)?;
/// # Ok::<(), tch_lens::Error>(())
/// ```
///
/// What a patch selects is checked before the run: an axis that the point does not have, an index out of range, a value that
/// does not broadcast is an [`Error::Patch`].
#[derive(Clone, Debug)]
pub struct Patch {
    operation: Operation,
    value: PatchValue,
    rows: Option<Slice>,
    positions: Option<Positions>,
    head: Option<Slice>,
    last: Option<(LastAxis, Slice)>,
}

/// What happens to the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Set,
    Add,
    Scale,
}

/// The value of a [`Patch`]: a number, or a tensor that is broadcast to the selected part.
#[derive(Debug)]
pub enum PatchValue {
    /// The same number for all entries.
    Number(f64),
    /// Broadcast to the selected part.
    Tensor(Tensor),
}

/// As what the last axis was selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LastAxis {
    Key,
    Neuron,
    Any,
}

impl Patch {
    /// Sets the entries to zero.
    pub fn zero() -> Self {
        Patch::set(0.0)
    }

    /// Sets the entries to a value.
    pub fn set(value: impl Into<PatchValue>) -> Self {
        Patch::new(Operation::Set, value.into())
    }

    /// Adds a value to the entries.
    pub fn add(value: impl Into<PatchValue>) -> Self {
        Patch::new(Operation::Add, value.into())
    }

    /// Multiplies the entries by a value.
    pub fn scale(value: impl Into<PatchValue>) -> Self {
        Patch::new(Operation::Scale, value.into())
    }

    fn new(operation: Operation, value: PatchValue) -> Self {
        Patch { operation, value, rows: None, positions: None, head: None, last: None }
    }

    /// Selects rows of the batch.
    pub fn rows(mut self, rows: impl Into<Slice>) -> Self {
        self.rows = Some(rows.into());
        self
    }

    /// Selects positions, as token columns of the input. A column that is padding in one of the selected rows is an error; see
    /// [`Positions`].
    pub fn pos(mut self, positions: impl Into<Positions>) -> Self {
        self.positions = Some(positions.into());
        self
    }

    /// Selects heads: key-value heads of keys, values and what they read, query heads of everything else.
    pub fn head(mut self, heads: impl Into<Slice>) -> Self {
        self.head = Some(heads.into());
        self
    }

    /// Selects the keys' positions of scores and patterns.
    pub fn key(self, keys: impl Into<Slice>) -> Self {
        self.select_last(LastAxis::Key, keys.into())
    }

    /// Selects neurons of an MLP.
    pub fn neuron(self, neurons: impl Into<Slice>) -> Self {
        self.select_last(LastAxis::Neuron, neurons.into())
    }

    /// Selects entries of the last axis, whatever it is.
    pub fn entries(self, entries: impl Into<Slice>) -> Self {
        self.select_last(LastAxis::Any, entries.into())
    }

    fn select_last(mut self, axis: LastAxis, slice: Slice) -> Self {
        self.last = Some((axis, slice));
        self
    }

    /// That the patch can act at a point, as far as that is known without the input.
    pub(crate) fn check(&self, point: HookPoint, config: &Config, weights: Kind) -> Result<()> {
        let extents = point.extents(config);
        let axis = |wanted: &[Extent]| extents.iter().position(|extent| wanted.contains(extent));
        let lacks = |selection: &str, axis: &str| {
            let axes: Vec<&str> = extents.iter().map(|extent| extent.name()).collect();
            Err(failed(
                point,
                format!("it selects {selection}, but the point has no {axis}: it is [{}]", axes.join(", ")),
            ))
        };
        if self.rows.is_some() && axis(&[Extent::Batch]).is_none() {
            return lacks("rows of the batch", "batch axis");
        }
        if self.positions.is_some() && axis(&[Extent::Pos]).is_none() {
            return lacks("positions", "position axis");
        }
        match (&self.head, axis(&[Extent::Head, Extent::KvHead])) {
            (Some(_), None) => return lacks("heads", "head axis"),
            (Some(heads), Some(axis)) => {
                selected(heads, extents[axis].size(config, 1, Span::whole(1)), "head", point)?;
            }
            (None, _) => {}
        }
        let last = extents.last().copied().unwrap_or(Extent::One);
        match &self.last {
            Some((LastAxis::Key, _)) if last != Extent::Key => return lacks("keys", "key axis"),
            Some((LastAxis::Neuron, _)) if last != Extent::DMlp => return lacks("neurons", "neuron axis"),
            // What the sizes of the input decide is known later.
            Some((_, slice)) if !matches!(last, Extent::Key | Extent::Pos) => {
                selected(slice, last.size(config, 1, Span::whole(1)), last.name(), point)?;
            }
            _ => {}
        }
        self.check_kind(point, point.kind(weights))
    }

    /// That the value can be of the activation's kind.
    fn check_kind(&self, point: HookPoint, kind: Kind) -> Result<()> {
        let integers = matches!(kind, Kind::Int64);
        let largest = match kind {
            Kind::Half => 65504.0,
            Kind::Float | Kind::BFloat16 => f64::from(f32::MAX),
            _ => f64::MAX,
        };
        match &self.value {
            PatchValue::Number(number) if integers && number.fract() != 0.0 => {
                Err(failed(point, format!("its value is {number}, but the point holds whole numbers")))
            }
            PatchValue::Number(number) if number.is_finite() && number.abs() > largest => {
                Err(failed(point, format!("its value is {number}, but {kind:?} ends at {largest}")))
            }
            PatchValue::Tensor(tensor) if !tensor.defined() => {
                Err(failed(point, "its value is an undefined tensor".into()))
            }
            PatchValue::Tensor(tensor) if integers && tensor.f_kind()? != Kind::Int64 => {
                let found = tensor.f_kind()?;
                Err(failed(point, format!("its value is a tensor of {found:?}, but the point holds whole numbers")))
            }
            _ => Ok(()),
        }
    }

    /// The patch for an input: which rows and columns are meant. All that it does at `points` is known then, and checked.
    pub(crate) fn prepare(
        &self,
        points: &PointSet,
        config: &Config,
        positions: &KeptPositions,
        (tokens, past): (&Tokens, i64),
    ) -> Result<Prepared> {
        let size = tokens.ids.size();
        let (count, pos) = (size.first().copied().unwrap_or(0), size.get(1).copied().unwrap_or(0));
        let all = Slice::All;
        let rows = self.rows.as_ref().unwrap_or(&all).indices(count, "batch")?;
        let columns = match &self.positions {
            Some(positions) => Some(positions.columns(&PositionAxis::new(tokens, past, rows.clone())?)?),
            None => None,
        };
        let prepared = Prepared { rows, columns };
        // How many rows an expert gets is known only once tokens are routed.
        for point in points.iter(config).filter(|point| point.expert().is_none()) {
            let mut shape = point.shape(config, count as usize, Span { past: past as usize, new: pos as usize });
            if let Some(axis) = point.axes().position {
                shape[axis] = positions.computed(point).len() as i64;
            }
            self.check_value(point, &self.part(&prepared, point, config, positions, &shape)?)?;
        }
        Ok(prepared)
    }

    /// The activation with the patch in it: a tensor of its own.
    pub(crate) fn apply(
        &self,
        prepared: &Prepared,
        point: HookPoint,
        config: &Config,
        positions: &KeptPositions,
        tensor: &Tensor,
    ) -> Result<Tensor> {
        let part = self.part(prepared, point, config, positions, &tensor.size())?;
        self.check_value(point, &part)?;
        let value = self.broadcast(&part, tensor)?;
        let result = tensor.f_alias_copy()?;
        match self.operation {
            Operation::Set => part.write(&result, |_| Ok(value.shallow_clone()))?,
            Operation::Add => part.write(&result, |found| Ok(found.f_add(&value)?))?,
            Operation::Scale => part.write(&result, |found| Ok(found.f_mul(&value)?))?,
        }
        Ok(result)
    }

    /// The entries that are meant of an activation of this size.
    fn part(
        &self,
        prepared: &Prepared,
        point: HookPoint,
        config: &Config,
        positions: &KeptPositions,
        size: &[i64],
    ) -> Result<Part> {
        let extents = point.extents(config);
        if extents.len() != size.len() {
            // Where heads read different streams, their norm has one more axis.
            let sentence = format!("the activation has shape {size:?} in this run, which a patch cannot select from");
            return Err(failed(point, sentence));
        }
        let last = extents.len().saturating_sub(1);
        let mut picks = Vec::with_capacity(size.len());
        for (axis, extent) in extents.iter().enumerate() {
            let len = size[axis];
            let slice = match extent {
                Extent::Batch => self.rows.as_ref(),
                Extent::Head | Extent::KvHead => self.head.as_ref(),
                _ => None,
            };
            let slice = slice.or(self.last.as_ref().filter(|_| axis == last).map(|(_, slice)| slice));
            picks.push(match (extent, &prepared.columns, slice) {
                (Extent::Pos, Some(columns), _) => {
                    let held = positions.computed(point).of_rows(&prepared.rows);
                    let places = held.places(columns).map_err(|absent| {
                        let column = absent.column;
                        failed(point, format!("it selects position {column}, of which this run forms no logits"))
                    })?;
                    let dropped = self.positions.as_ref().is_some_and(Positions::drops_axis);
                    match places.is_per_row() {
                        true => {
                            let rows = 0..prepared.rows.len();
                            Pick::per_row(rows.flat_map(|row| places.of_row(row)).collect(), dropped)
                        }
                        false => Pick::list(places.of_row(0), dropped),
                    }
                }
                (_, _, Some(slice)) => {
                    Pick::list(selected(slice, len as usize, extent.name(), point)?, slice.drops_axis())
                }
                _ => Pick::all(len),
            });
        }
        let part = Part::new(picks);
        match part.is_empty() {
            true => Err(failed(point, "its selection is empty".into())),
            false => Ok(part),
        }
    }

    /// That the value broadcasts to the part.
    fn check_value(&self, point: HookPoint, part: &Part) -> Result<()> {
        let PatchValue::Tensor(value) = &self.value else { return Ok(()) };
        let (found, shape) = (value.size(), part.shape());
        let mut trailing = found.iter().rev().zip(shape.iter().rev());
        if found.len() > shape.len() || trailing.any(|(found, wanted)| found != wanted && *found != 1) {
            let sentence = format!("its value has shape {found:?}, which does not broadcast to the selected {shape:?}");
            return Err(failed(point, sentence));
        }
        Ok(())
    }

    /// The value in the kind and on the device of the activation, with as many entries as the part.
    fn broadcast(&self, part: &Part, tensor: &Tensor) -> Result<Tensor> {
        let value = match &self.value {
            PatchValue::Number(number) => Tensor::f_from_slice(&[*number])?.f_view([0i64; 0])?,
            PatchValue::Tensor(value) => value.shallow_clone(),
        };
        let value = value.f_to_device(tensor.device())?.f_to_kind(tensor.f_kind()?)?;
        Ok(value.f_expand(part.shape(), false)?.f_reshape(part.lens())?)
    }
}

/// A patch for one input.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// The rows of the batch that are meant.
    rows: Vec<i64>,
    /// The token columns that are meant, of those rows; absent where all are.
    columns: Option<Columns>,
}

/// The indices of a slice, as a patch's own error.
fn selected(slice: &Slice, len: usize, axis: &'static str, point: HookPoint) -> Result<Vec<i64>> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    slice.indices(len, axis).map_err(|error| failed(point, error.to_string()))
}

fn failed(point: HookPoint, what: String) -> Error {
    Error::Patch { name: point.to_string(), what }
}

impl Clone for PatchValue {
    /// Another handle on the same tensor.
    fn clone(&self) -> Self {
        match self {
            PatchValue::Number(number) => PatchValue::Number(*number),
            PatchValue::Tensor(tensor) => PatchValue::Tensor(tensor.shallow_clone()),
        }
    }
}

impl From<f64> for PatchValue {
    fn from(number: f64) -> Self {
        PatchValue::Number(number)
    }
}

impl From<Tensor> for PatchValue {
    fn from(tensor: Tensor) -> Self {
        PatchValue::Tensor(tensor)
    }
}

impl From<&Tensor> for PatchValue {
    /// Another handle on the same tensor.
    fn from(tensor: &Tensor) -> Self {
        PatchValue::Tensor(tensor.shallow_clone())
    }
}
