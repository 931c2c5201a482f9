//! [`Selected`]: what a selection means in one input.

use super::kept::KeptPositions;
use super::part::{Part, Pick};
use crate::hook::{indices, Extent, HookPoint, Selection};
use crate::tensor::columns::Columns;
use crate::tensor::slice::Slice;
use crate::text::input::Tokens;
use crate::text::positions::{PositionAxis, Positions};
use crate::{Config, Error, Result};

/// A selection for one input: its rows and columns are known.
#[derive(Clone, Debug)]
pub(crate) struct Selected<'s> {
    selection: &'s Selection,
    /// The rows of the batch that are meant.
    rows: Vec<i64>,
    /// The token columns that are meant, of those rows; absent where all are.
    columns: Option<Columns>,
}

impl<'s> Selected<'s> {
    /// The selection in tokens that come behind `past` positions.
    pub(crate) fn new(selection: &'s Selection, tokens: &Tokens, past: i64) -> Result<Self> {
        let count = tokens.ids.size().first().copied().unwrap_or(0);
        let rows = selection.rows.as_ref().unwrap_or(&Slice::All).indices(count, "batch")?;
        let columns = match &selection.positions {
            Some(positions) => Some(positions.columns(&PositionAxis::new(tokens, past, rows.clone())?)?),
            None => None,
        };
        Ok(Selected { selection, rows, columns })
    }

    /// The rows of the batch that are meant.
    pub(crate) fn rows(&self) -> &[i64] {
        &self.rows
    }

    /// The token columns that are meant; absent where all are.
    pub(crate) fn columns(&self) -> Option<&Columns> {
        self.columns.as_ref()
    }

    /// The same entries, as far as they are at these columns; absent where none are.
    pub(crate) fn within(&self, columns: &Columns) -> Option<Self> {
        match &self.columns {
            None => Some(self.clone()),
            Some(own) => Some(Selected { columns: Some(own.shared_with(columns)?), ..self.clone() }),
        }
    }

    /// Whether all positions are meant.
    pub(crate) fn all_positions(&self) -> bool {
        self.columns.is_none()
    }

    /// The entries that are meant of an activation of this size.
    pub(crate) fn part(
        &self,
        point: HookPoint,
        config: &Config,
        positions: &KeptPositions,
        size: &[i64],
    ) -> Result<Part> {
        let held = positions.computed(point).of_rows(&self.rows);
        self.part_of(point, config, &held, size)
    }

    /// The entries that are meant of an activation of this size, which holds the columns `held` of the rows that are meant.
    pub(crate) fn part_of(&self, point: HookPoint, config: &Config, held: &Columns, size: &[i64]) -> Result<Part> {
        let extents = point.extents(config);
        if extents.len() != size.len() {
            // Where heads read different streams, their norm has one more axis.
            let sentence = format!("the activation has shape {size:?} in this run, which a patch cannot select from");
            return Err(failed(point, sentence));
        }
        let Selection { rows, positions, head, last } = self.selection;
        let last_axis = extents.len().saturating_sub(1);
        let mut picks = Vec::with_capacity(size.len());
        for (axis, extent) in extents.iter().enumerate() {
            let len = size[axis];
            let slice = match extent {
                Extent::Batch => rows.as_ref(),
                Extent::Head | Extent::KvHead => head.as_ref(),
                _ => None,
            };
            let slice = slice.or(last.as_ref().filter(|_| axis == last_axis).map(|(_, slice)| slice));
            picks.push(match (extent, &self.columns, slice) {
                (Extent::Pos, Some(columns), _) => {
                    let places = held.places(columns).map_err(|absent| {
                        let column = absent.column;
                        failed(point, format!("it selects position {column}, of which this run forms no logits"))
                    })?;
                    let dropped = positions.as_ref().is_some_and(Positions::drops_axis);
                    match places.is_per_row() {
                        true => {
                            let rows = 0..self.rows.len();
                            Pick::per_row(rows.flat_map(|row| places.of_row(row)).collect(), dropped)
                        }
                        false => Pick::list(places.of_row(0), dropped),
                    }
                }
                (_, _, Some(slice)) => {
                    let places = indices(slice, len as usize, extent.name()).map_err(|what| failed(point, what))?;
                    Pick::list(places, slice.drops_axis())
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
}

pub(super) fn failed(point: HookPoint, what: String) -> Error {
    Error::Patch { name: point.to_string(), what }
}
