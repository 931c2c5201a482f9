//! [`Window`]: the rows of the batch and the positions that an analysis looks at; [`View`], a cache through a window.

use tch::Tensor;

use crate::cache::ActivationCache;
use crate::component::Reach;
use crate::hook::HookPoint;
use crate::model::Transformer;
use crate::sae::SparseFeatures;
use crate::tensor::columns::Columns;
use crate::tensor::precision::widened;
use crate::tensor::slice::Slice;
use crate::text::positions::{PositionAxis, Positions};
use crate::{Error, Result};

/// The rows of the batch and the positions that an analysis is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct WindowOptions {
    pub(crate) batch: Slice,
    pub(crate) pos: Positions,
}

/// What has become of an axis that the values of an analysis have within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    /// The result has it.
    Kept,
    /// It has one entry, and the result does not have it.
    Dropped,
    /// It was averaged, and the result does not have it.
    Averaged,
}

/// The rows of the batch and the token columns that an analysis looks at.
///
/// Within an analysis every activation is `[batch, pos, …]`, with axes of length one where the cache or the slices have
/// none; [`Window::drop_axes`] takes these off at the end. So no method has to know which axes there are.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// Places on the batch axis of the cache.
    rows: Columns,
    columns: Columns,
    /// All positions that the run kept are meant, not some that were chosen.
    is_all: bool,
    batch: Axis,
    pos: Axis,
}

impl WindowOptions {
    /// The rows and columns of a cache that are meant.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`], [`Error::PaddingChosen`], [`Error::Shape`] for another number of positions than rows.
    pub(crate) fn of(&self, cache: &ActivationCache) -> Result<Window> {
        let (batch, is_all) = (&self.batch, self.pos.is_all());
        if !cache.has_batch_dim() && !matches!(batch, Slice::All) {
            return Err(Error::no_axis("batch", "the cache has no batch dimension to slice: it was removed"));
        }
        let rows = batch.indices(cache.batch_size(), "batch")?;
        let columns = match is_all {
            true => cache.positions().of_rows(&rows),
            false => self.pos.columns(&cache.columns_of_rows(rows.clone())?)?,
        };
        let axis = |dropped| if dropped { Axis::Dropped } else { Axis::Kept };
        Ok(Window {
            rows: Columns::list(rows),
            columns,
            is_all,
            batch: axis(!cache.has_batch_dim() || batch.drops_axis()),
            pos: axis(self.pos.drops_axis()),
        })
    }
}

impl Window {
    /// How many rows and positions there are.
    pub(crate) fn size(&self) -> (i64, i64) {
        (self.rows.len() as i64, self.columns.len() as i64)
    }

    /// The chosen rows of the batch, as places on the batch axis of the cache.
    pub(crate) fn rows(&self) -> &Columns {
        &self.rows
    }

    /// The token columns.
    pub(crate) fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Whether the result has a batch axis, and a position axis.
    pub(crate) fn axes(&self) -> (bool, bool) {
        (self.batch == Axis::Kept, self.pos == Axis::Kept)
    }

    /// Whether both windows are of the same rows of the run's batch and of the same positions, with the same axes.
    pub(crate) fn is_of_the_same(&self, other: &Window, caches: [&ActivationCache; 2]) -> bool {
        let rows = |window: &Window, cache: &ActivationCache| cache.rows_of_run(&window.rows);
        rows(self, caches[0]) == rows(other, caches[1])
            && (&self.columns, self.batch, self.pos) == (&other.columns, other.batch, other.pos)
    }

    /// `tensor` of `[row, batch, pos, …]`, without the axes that the result does not have.
    pub(crate) fn drop_axes(&self, tensor: &Tensor) -> Result<Tensor> {
        let (batch, pos) = self.axes();
        let tensor = if pos { tensor.shallow_clone() } else { tensor.f_squeeze_dim(2)? };
        Ok(if batch { tensor } else { tensor.f_squeeze_dim(1)? })
    }

    /// Some rows of the batch of the cache, and where these lie on the batch axis of the values.
    pub(crate) fn narrowed_batch(&self, slice: &Slice, cache: &ActivationCache) -> Result<(Window, Columns)> {
        if self.batch != Axis::Kept {
            return Err(Error::no_axis("batch", "there is no batch axis any more"));
        }
        let rows = Columns::list(slice.indices(cache.batch_size(), "batch")?);
        let places = self
            .rows
            .places(&rows)
            .map_err(|absent| Error::NoBatchRow { row: absent.column, held: self.rows.to_string() })?;
        let columns = self.columns.of_rows(&places.of_row(0));
        let batch = if slice.drops_axis() { Axis::Dropped } else { Axis::Kept };
        Ok((Window { rows, columns, batch, ..self.clone() }, places))
    }

    /// Some positions, as token columns, and where these lie on the position axis of the values.
    pub(crate) fn narrowed_pos(&self, positions: &Positions, cache: &ActivationCache) -> Result<(Window, Columns)> {
        if self.pos != Axis::Kept {
            return Err(Error::no_axis("position", "there is no position axis any more"));
        }
        if positions.is_all() {
            return Ok((self.clone(), Columns::range(0, self.columns.len() as i64)));
        }
        let columns = positions.columns(&cache.columns_of_rows(self.rows.of_row(0))?)?;
        let places = self.columns.places(&columns).map_err(|absent| Error::NoPosition {
            what: "the result".into(),
            position: absent.column,
            held: self.columns.to_string(),
            hint: String::new(),
        })?;
        if self.batch == Axis::Averaged && places.is_per_row() {
            return Err(Error::no_axis("batch", "after an average over the batch, a position is one for all rows"));
        }
        let pos = if positions.drops_axis() { Axis::Dropped } else { Axis::Kept };
        Ok((Window { columns, is_all: false, pos, ..self.clone() }, places))
    }

    /// The window once its batch axis is averaged.
    ///
    /// # Errors
    ///
    /// [`Error::PaddingChosen`] where padding would count.
    pub(crate) fn averaged_batch(&self, cache: &ActivationCache) -> Result<Window> {
        if self.batch != Axis::Kept {
            return Err(Error::no_axis("batch", "there is no batch axis any more"));
        }
        self.refuse_padding(cache)?;
        Ok(Window { batch: Axis::Averaged, ..self.clone() })
    }

    /// The window once its position axis is averaged.
    ///
    /// # Errors
    ///
    /// [`Error::PaddingChosen`] where padding would count.
    pub(crate) fn averaged_pos(&self, cache: &ActivationCache) -> Result<Window> {
        if self.pos != Axis::Kept {
            return Err(Error::no_axis("position", "there is no position axis any more"));
        }
        self.refuse_padding(cache)?;
        Ok(Window { pos: Axis::Averaged, ..self.clone() })
    }

    /// An error where an axis was averaged.
    pub(crate) fn refuse_average(&self, what: &str) -> Result<()> {
        match [self.batch, self.pos].contains(&Axis::Averaged) {
            true => Err(Error::wrong_input(format!(
                "{what} comes before an average: each row and position has a scale of its own"
            ))),
            false => Ok(()),
        }
    }

    fn refuse_padding(&self, cache: &ActivationCache) -> Result<()> {
        cache.columns_of_rows(self.rows.of_row(0))?.refuse_padding(&self.columns)
    }

    /// Values `[batch, pos]` of all rows and positions, averaged over the axes that the window averages.
    pub(crate) fn average(&self, values: Tensor) -> Result<Tensor> {
        let values = match self.batch {
            Axis::Averaged => values.f_mean_dim([0i64].as_slice(), true, None)?,
            Axis::Kept | Axis::Dropped => values,
        };
        match self.pos {
            Axis::Averaged => Ok(values.f_mean_dim([1i64].as_slice(), true, None)?),
            Axis::Kept | Axis::Dropped => Ok(values),
        }
    }

    /// The rows and positions that values are of, for a table: absent where the axis was averaged.
    pub(crate) fn labels(&self) -> (Option<Vec<i64>>, Option<&Columns>) {
        let rows = (self.batch != Axis::Averaged).then(|| self.rows.of_row(0));
        (rows, (self.pos != Axis::Averaged).then_some(&self.columns))
    }
}

/// A cache as an analysis sees it: some rows of the batch, some positions.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) cache: &'a ActivationCache,
    pub(crate) window: &'a Window,
}

impl<'a> View<'a> {
    pub(crate) fn new(cache: &'a ActivationCache, window: &'a Window) -> Self {
        View { cache, window }
    }

    /// The model that ran.
    pub(crate) fn model(&self) -> &'a Transformer {
        self.cache.model()
    }

    /// An activation as `[batch, pos, …]`, in fp32 or better.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`]; [`Error::NoPosition`] where the entry does not hold one of the positions.
    pub(crate) fn get(&self, point: HookPoint) -> Result<Tensor> {
        widened(&self.get_as_kept(point)?)
    }

    /// An activation as `[batch, pos, …]`, in the kind of the cache.
    pub(crate) fn get_as_kept(&self, point: HookPoint) -> Result<Tensor> {
        let tensor = self.cache.get(point)?;
        let tensor = match self.cache.has_batch_dim() {
            true => self.window.rows.select(tensor, 0)?,
            false => tensor.f_unsqueeze(0)?,
        };
        self.places(point)?.select(&tensor, 1)
    }

    /// The features of a dictionary that are active, as sparse rows of `[batch, pos]`.
    ///
    /// # Errors
    ///
    /// Those of [`View::get`].
    pub(crate) fn sparse(&self, point: HookPoint) -> Result<SparseFeatures> {
        let active = self.cache.sparse(point)?;
        let numbers = active.numbers()?;
        let numbers = match self.cache.has_batch_dim() {
            true => self.window.rows.select(&numbers, 0)?,
            false => numbers.f_unsqueeze(0)?,
        };
        active.at(&self.places(point)?.select(&numbers, 1)?)
    }

    /// Where the window's columns lie on the position axis of an entry.
    pub(crate) fn places(&self, point: HookPoint) -> Result<Columns> {
        let held = self.cache.positions_of(point)?.of_rows(&self.window.rows.of_row(0));
        held.places(&self.window.columns).map_err(|absent| Error::NoPosition {
            what: format!("`{point}`"),
            position: absent.column,
            held: held.to_string(),
            hint: match self.window.is_all {
                true => {
                    ", but all positions that the run kept are asked for: narrow with pos(…), or leave out `logits_at`"
                }
                false => " in this cache: choose with pos(…) among these, or keep more in the run",
            }
            .into(),
        })
    }

    /// Whether the cache has an activation at all positions of the window.
    pub(crate) fn holds(&self, point: HookPoint) -> bool {
        self.cache.contains(point) && self.places(point).is_ok()
    }

    /// The stream at the target: `[1, batch, pos, d_model]`.
    pub(crate) fn stream(&self, reach: &Reach) -> Result<Tensor> {
        Ok(self.get(reach.stream(self.model().config()))?.f_unsqueeze(0)?)
    }
}

impl ActivationCache {
    /// How many rows the batch has.
    pub(crate) fn batch_size(&self) -> i64 {
        self.tokens().ids.size().first().copied().unwrap_or(0)
    }

    /// The token columns that positions of some rows of the batch are chosen from.
    pub(crate) fn columns_of_rows(&self, rows: Vec<i64>) -> Result<PositionAxis> {
        PositionAxis::new(self.tokens(), self.past(), rows)
    }
}
