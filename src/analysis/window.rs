//! [`Window`]: the rows of the batch and the positions that an analysis looks at.

use tch::Tensor;

use crate::cache::ActivationCache;
use crate::hook::HookPoint;
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

/// The rows of the batch and the token columns that an analysis looks at.
///
/// Within an analysis every activation is `[batch, pos, …]`, with axes of length one where the cache or the slices have
/// none; [`Window::drop_axes`] takes these off at the end. So no method has to know which axes there are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Window {
    rows: Columns,
    columns: Columns,
    /// All positions that the run kept are meant, not some that were chosen.
    is_all: bool,
    has_batch_axis: bool,
    has_position_axis: bool,
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
            return Err(Error::invalid("the cache has no batch dimension to slice: it was removed"));
        }
        let rows = batch.indices(cache.tokens().ids.size()[0], "batch")?;
        let columns = match is_all {
            true => cache.positions().of_rows(&rows),
            false => self.pos.columns(&PositionAxis::new(cache.tokens(), 0, rows.clone())?)?,
        };
        Ok(Window {
            rows: Columns::list(rows),
            columns,
            is_all,
            has_batch_axis: cache.has_batch_dim() && !batch.drops_axis(),
            has_position_axis: !self.pos.drops_axis(),
        })
    }
}

impl Window {
    /// An activation as `[batch, pos, …]`, in fp32 or better.
    ///
    /// # Errors
    ///
    /// [`Error::NoEntry`]; [`Error::NoPosition`] where the entry does not hold one of the positions.
    pub(crate) fn of(&self, cache: &ActivationCache, point: HookPoint) -> Result<Tensor> {
        widened(&self.select(cache, point)?)
    }

    /// An activation as `[batch, pos, …]`, in the kind of the cache.
    pub(crate) fn select(&self, cache: &ActivationCache, point: HookPoint) -> Result<Tensor> {
        let tensor = self.rows_of(cache, cache.get(point)?)?;
        self.places(cache, point)?.select(&tensor, 1)
    }

    /// The rows of `tensor`, `[batch, …]` or, of a cache without its batch dimension, `[…]`: `[batch, …]`.
    fn rows_of(&self, cache: &ActivationCache, tensor: &Tensor) -> Result<Tensor> {
        match cache.has_batch_dim() {
            true => self.rows.select(tensor, 0),
            false => Ok(tensor.f_unsqueeze(0)?),
        }
    }

    /// Where the window's columns lie on the position axis of an entry.
    pub(crate) fn places(&self, cache: &ActivationCache, point: HookPoint) -> Result<Columns> {
        let held = cache.positions_of(point)?.of_rows(&self.rows.of_row(0));
        held.places(&self.columns).map_err(|absent| Error::NoPosition {
            what: format!("`{point}`"),
            position: absent.column,
            held: held.to_string(),
            hint: match self.is_all {
                true => {
                    ", but all positions that the run kept are asked for: narrow with pos(…), or leave out `logits_at`"
                }
                false => " in this cache: choose with pos(…) among these, or keep more in the run",
            }
            .into(),
        })
    }

    /// The chosen rows of the batch, as places on the batch axis.
    pub(crate) fn rows(&self) -> &Columns {
        &self.rows
    }

    /// How many rows and positions there are.
    pub(crate) fn size(&self) -> (i64, i64) {
        (self.rows.len() as i64, self.columns.len() as i64)
    }

    /// Which of the axes are left in the end: batch, position.
    pub(crate) fn axes(&self) -> (bool, bool) {
        (self.has_batch_axis, self.has_position_axis)
    }

    /// `tensor` of `[row, batch, pos, …]`, without the axes that are not left.
    pub(crate) fn drop_axes(&self, tensor: &Tensor) -> Result<Tensor> {
        let (batch, pos) = self.axes();
        let tensor = if pos { tensor.shallow_clone() } else { tensor.f_squeeze_dim(2)? };
        Ok(if batch { tensor } else { tensor.f_squeeze_dim(1)? })
    }
}
