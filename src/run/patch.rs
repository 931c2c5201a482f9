//! [`Patch`]: known values for known entries of an activation.

use tch::{Kind, Tensor};

use super::kept::KeptPositions;
use super::part::Part;
use super::plan::Plan;
use super::run_values::RunValues;
use super::selected::{failed, Selected};
use crate::hook::{Extent, HookPart, HookPoint, PointSet, Selection};
use crate::tensor::scalar::Scalar;
use crate::tensor::slice::Slice;
use crate::tensor::span::Span;
use crate::tensor::split_mix::SplitMix64;
use crate::text::input::Tokens;
use crate::text::positions::Positions;
use crate::{Config, Result};

/// Known values for known entries of an activation: which entries, what happens to them, and with which value.
///
/// | constructor | what happens to the entries |
/// | --- | --- |
/// | [`zero`](Patch::zero) | zero ablation |
/// | [`set`](Patch::set) | they become a number, a tensor, or what they are in another run: `Patch::set(&cache)` |
/// | [`mean`](Patch::mean), [`mean_by_position`](Patch::mean_by_position) | mean ablation: they become their mean over another run |
/// | [`resample`](Patch::resample) | resample ablation: they become those of a random row of another run |
/// | [`noise`](Patch::noise) | Gaussian noise is added |
/// | [`add`](Patch::add), [`scale`](Patch::scale) | a number or a tensor, such as a direction, is added, or multiplies them |
/// | [`project_out`](Patch::project_out) | they lose their component along a direction |
///
/// Without a selection, every entry is meant. Each axis is selected at most once; the meant entries are those that all
/// selections contain. The selection stands at the patch or at the point: `Patch::zero().head(1)` at `hook::z(3)` is `Patch::zero()` at
/// `hook::z(3).head(1)`.
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
/// does not broadcast is an [`Error::Patch`](crate::Error::Patch).
#[derive(Clone, Debug)]
pub struct Patch {
    operation: Operation,
    pub(super) value: PatchValue,
    /// The part of no point in particular.
    pub(super) selection: Selection,
    /// Where the positions are some of those that the value is for: which of them, and of how many.
    pub(super) places: Option<(Vec<i64>, i64)>,
}

/// What happens to the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Set,
    Add,
    Scale,
    ProjectOut,
}

/// The value of a [`Patch`]: a number, a tensor that is broadcast to the selected part, or what another run kept.
#[derive(Debug)]
pub enum PatchValue {
    /// The same number for all entries.
    Number(f64),
    /// Broadcast to the selected part.
    Tensor(Tensor),
    /// The same entries of the activations of another run: made from a cache.
    Run(RunValues),
    /// Gaussian numbers, which depend on the seed and the point.
    Noise {
        /// The standard deviation.
        std: f64,
        /// The seed.
        seed: u64,
    },
}

impl Patch {
    /// Sets the entries to zero.
    pub fn zero() -> Self {
        Patch::set(0.0)
    }

    /// Sets the entries to a value: a number, a tensor, or with `&cache` what they are in another run.
    ///
    /// The other run has as many rows as this one, or one, and its cache holds the point at the positions that are set. At several
    /// points, each gets its own activation.
    ///
    /// ```
    /// use tch_lens::{hook, HookedTransformer, Hooks, Patch};
    /// let model = HookedTransformer::toy()?;
    /// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
    /// let hooks = Hooks::new().patch("z", Patch::set(&cache).head(1)); // head 1 of every layer, as in the other run
    /// model.run_with_hooks("When Mary and John went to the shop, Mary gave a bag to", hooks)?;
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
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

    /// Adds Gaussian noise of this standard deviation. The numbers depend on the seed and the point, not on libtorch's generator.
    pub fn noise(std: f64, seed: u64) -> Self {
        Patch::new(Operation::Add, PatchValue::Noise { std, seed })
    }

    /// Removes the component along a direction from the last axis: `x − (x · d) d / (d · d)`. The direction is `[d]`, or any shape that
    /// is broadcast to the selected part.
    ///
    /// ```
    /// use tch_lens::{hook, HookedTransformer, Hooks, Patch};
    /// let model = HookedTransformer::toy()?;
    /// let direction = model.tokens_to_residual_directions(" Mary")?; // [d_model]
    /// let hooks = Hooks::new().patch(hook::resid_post(-1), Patch::project_out(&direction));
    /// let (_, cache) = model.run_with_cache_of("When Mary and John went", hook::resid_post(-1))?;
    /// assert!(cache[hook::resid_post(-1)].matmul(&direction).abs().max().double_value(&[]) > 1.0);
    /// let run = tch_lens::RunOptions::new().hooks(hooks).cache(hook::resid_post(-1));
    /// let cache = model.run("When Mary and John went", run)?.cache;
    /// assert!(cache[hook::resid_post(-1)].matmul(&direction).abs().max().double_value(&[]) < 1e-3);
    /// # Ok::<(), tch_lens::Error>(())
    /// ```
    pub fn project_out(direction: impl Into<PatchValue>) -> Self {
        Patch::new(Operation::ProjectOut, direction.into())
    }

    fn new(operation: Operation, value: PatchValue) -> Self {
        Patch { operation, value, selection: Selection::default(), places: None }
    }

    fn select(self, select: impl FnOnce(HookPart) -> HookPart) -> Self {
        // The point is not read.
        let part = HookPart { point: crate::hook::embed(), selection: self.selection };
        Patch { selection: select(part).selection, ..self }
    }

    /// Selects rows of the batch.
    pub fn rows(self, rows: impl Into<Slice>) -> Self {
        self.select(|part| part.rows(rows))
    }

    /// Selects positions, as token columns of the input. A column that is padding in one of the selected rows is an error; see
    /// [`Positions`].
    pub fn pos(self, positions: impl Into<Positions>) -> Self {
        self.select(|part| part.pos(positions))
    }

    /// Selects heads: key-value heads of keys, values and what they read, query heads of everything else.
    pub fn head(self, heads: impl Into<Slice>) -> Self {
        self.select(|part| part.head(heads))
    }

    /// Selects the keys' positions of scores and patterns.
    pub fn key(self, keys: impl Into<Slice>) -> Self {
        self.select(|part| part.key(keys))
    }

    /// Selects neurons of an MLP.
    pub fn neuron(self, neurons: impl Into<Slice>) -> Self {
        self.select(|part| part.neuron(neurons))
    }

    /// Selects entries of the last axis, whatever it is.
    pub fn entries(self, entries: impl Into<Slice>) -> Self {
        self.select(|part| part.entries(entries))
    }

    /// Whether its value is a number.
    pub(crate) fn is_number(&self) -> bool {
        matches!(self.value, PatchValue::Number(_))
    }

    /// The part that it selects by itself.
    pub(crate) fn selection(&self) -> &Selection {
        &self.selection
    }

    /// That the value can be of the activation at a point.
    pub(crate) fn check(&self, point: HookPoint, weights: Kind) -> Result<()> {
        let kind = point.kind(weights);
        let integers = matches!(kind, Kind::Int64);
        let largest = match kind {
            Kind::Half => 65504.0,
            Kind::Float | Kind::BFloat16 => f64::from(f32::MAX),
            _ => f64::MAX,
        };
        match &self.value {
            PatchValue::Number(number) if number.is_nan() => Err(failed(point, "its value is NaN".into())),
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
            PatchValue::Noise { .. } if integers => {
                Err(failed(point, "its value is noise, but the point holds whole numbers".into()))
            }
            PatchValue::Noise { std, .. } if !(std.is_finite() && *std >= 0.0) => Err(failed(
                point,
                format!("its noise has the standard deviation {std}, but needs a number of at least 0"),
            )),
            PatchValue::Run(values) => values.check(point, integers),
            _ if integers && self.operation == Operation::ProjectOut => {
                Err(failed(point, "it removes a direction, but the point holds whole numbers".into()))
            }
            PatchValue::Tensor(direction) if self.operation == Operation::ProjectOut => {
                match direction.f_count_nonzero(None)?.f_int64_value(&[])? {
                    0 => Err(failed(point, "its direction is zero".into())),
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// That the patch fits an input: all that it does at `points` is known then.
    pub(crate) fn check_input(
        &self,
        selected: &Selected,
        points: &PointSet,
        plan: &Plan,
        positions: &KeptPositions,
        (tokens, past): (&Tokens, i64),
    ) -> Result<()> {
        let config = plan.config();
        let size = tokens.ids.size();
        let (count, pos) = (size.first().copied().unwrap_or(0), size.get(1).copied().unwrap_or(0));
        // How many rows an expert gets is known only once tokens are routed.
        for point in points.iter(config).filter(|point| point.expert().is_none()) {
            let span = Span { past: past as usize, new: pos as usize };
            let mut shape = point.shape_beside(config, count as usize, span, plan.encoder_positions);
            if let Some(axis) = point.axes().position {
                shape[axis] = positions.computed(point).len() as i64;
            }
            let part = selected.part(point, config, positions, &shape)?;
            match &self.value {
                PatchValue::Run(values) => {
                    let _value = values.value(point, selected, config, positions.computed(point), &shape)?;
                }
                _ => check_shape(point, &self.value_at(point, config, &part)?, &part)?,
            }
        }
        Ok(())
    }

    /// The activation with the patch in it, a tensor of its own, and the values that were put there.
    pub(crate) fn apply(
        &self,
        selected: &Selected,
        point: HookPoint,
        config: &Config,
        positions: &KeptPositions,
        tensor: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let part = selected.part(point, config, positions, &tensor.size())?;
        let value = self.value_at(point, config, &part)?;
        check_shape(point, &value, &part)?;
        let value = match &value {
            PatchValue::Number(number) => Tensor::f_from_slice(&[*number])?.f_view([0i64; 0])?,
            PatchValue::Tensor(value) => value.shallow_clone(),
            PatchValue::Run(values) => {
                values.value(point, selected, config, positions.computed(point), &tensor.size())?
            }
            PatchValue::Noise { std, seed } => noise(point, &part, *std, *seed)?,
        };
        // In the kind and on the device of the activation, with as many entries as the part.
        let value = value.f_to_device(tensor.device())?.f_to_kind(tensor.f_kind()?)?;
        let value = value.f_expand(part.shape(), false)?.f_reshape(part.lens())?;
        let result = tensor.f_alias_copy()?;
        match self.operation {
            Operation::Set => part.write(&result, |_| Ok(value.shallow_clone()))?,
            Operation::Add => part.write(&result, |found| Ok(found.f_add(&value)?))?,
            Operation::Scale => part.write(&result, |found| Ok(found.f_mul(&value)?))?,
            Operation::ProjectOut => part.write(&result, |found| {
                let along = |x: &Tensor| x.f_mul(&value)?.f_sum_dim_intlist([-1i64].as_slice(), true, None);
                let component = along(found)?.f_div(&along(&value)?)?; // [..., 1]
                Ok(found.f_sub(&component.f_mul(&value)?)?)
            })?,
        }
        Ok((result, value))
    }

    /// The value, at the positions that are chosen of those that it is for.
    fn value_at(&self, point: HookPoint, config: &Config, part: &Part) -> Result<PatchValue> {
        let axis = point.extents(config).iter().position(|extent| *extent == Extent::Pos);
        let (PatchValue::Tensor(value), Some((places, all)), Some(axis)) = (&self.value, &self.places, axis) else {
            return Ok(self.value.clone());
        };
        let behind = part.kept_behind(axis);
        match value.size().iter().rev().nth(behind) {
            Some(len) if len == all => {
                let places = Tensor::f_from_slice(places)?.f_to_device(value.device())?;
                Ok(PatchValue::Tensor(value.f_index_select(-1 - behind as i64, &places)?))
            }
            _ => Ok(self.value.clone()),
        }
    }
}

/// That the value broadcasts to the part.
fn check_shape(point: HookPoint, value: &PatchValue, part: &Part) -> Result<()> {
    let PatchValue::Tensor(value) = value else { return Ok(()) };
    let (found, shape) = (value.size(), part.shape());
    let mut trailing = found.iter().rev().zip(shape.iter().rev());
    if found.len() > shape.len() || trailing.any(|(found, wanted)| found != wanted && *found != 1) {
        let sentence = format!("its value has shape {found:?}, which does not broadcast to the selected {shape:?}");
        return Err(failed(point, sentence));
    }
    Ok(())
}

/// Gaussian numbers of the shape of a part.
fn noise(point: HookPoint, part: &Part, std: f64, seed: u64) -> Result<Tensor> {
    let shape = part.shape();
    let count = shape.iter().product::<i64>().max(0) as usize;
    let name = point.to_string().bytes().fold(0u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let mut generator = SplitMix64::new([seed, name]);
    // From 53 bits each, in (0, 1).
    let mut uniform = || ((generator.next_bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    // Box and Muller 1958.
    let numbers: Vec<f64> =
        (0..count).map(|_| (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()).collect();
    Tensor::f_from_slice(&numbers)?.f_view(shape.as_slice())?.mul_number(std)
}

impl Clone for PatchValue {
    /// Another handle on the same tensors.
    fn clone(&self) -> Self {
        match self {
            PatchValue::Number(number) => PatchValue::Number(*number),
            PatchValue::Tensor(tensor) => PatchValue::Tensor(tensor.shallow_clone()),
            PatchValue::Run(values) => PatchValue::Run(values.clone()),
            PatchValue::Noise { std, seed } => PatchValue::Noise { std: *std, seed: *seed },
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
