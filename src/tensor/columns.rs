//! [`Columns`]: the positions of a batch that a tensor holds, as token columns.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::tensor::scalar::arange;
use crate::{Error, Result};

/// The token columns that an activation holds: positions of the batch, counted from the first token of the input.
///
/// All rows of the batch have the same columns, or each row has one column.
///
/// ```
/// use tch_lens::{HookedTransformer, RunOptions};
/// let model = HookedTransformer::toy()?;
/// let run = RunOptions::new().cache("resid_post").pos([4, 2]);
/// let cache = model.run("When Mary and John went to the shop", run)?.cache;
/// assert_eq!(cache.positions().of_row(0), [4, 2]);
/// assert_eq!(cache.positions().to_string(), "[4, 2]");
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns(Selection);

/// The columns. Each selection has exactly one representation, so that `==` compares selections: a list with equal steps is a range,
/// and equal columns of all rows are a range of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Selection {
    Range { start: i64, step: i64, len: i64 },
    List(Vec<i64>),
    PerRow(Vec<i64>),
}

/// A column that was requested but is not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Absent {
    pub(crate) column: i64,
}

impl Columns {
    /// The columns `start..end`.
    pub(crate) fn range(start: i64, end: i64) -> Self {
        Columns::steps(start, end, 1)
    }

    /// Every `step`th column of `start..end`; `step` is at least 1.
    pub(crate) fn steps(start: i64, end: i64, step: i64) -> Self {
        match end.saturating_sub(start).max(0) {
            0 => Columns(Selection::Range { start: 0, step: 1, len: 0 }),
            width if width <= step => Columns(Selection::Range { start, step: 1, len: 1 }),
            width => Columns(Selection::Range { start, step, len: (width - 1) / step + 1 }),
        }
    }

    /// The same columns for all rows, in this order.
    pub(crate) fn list(list: Vec<i64>) -> Self {
        let step = match list.as_slice() {
            [] => return Columns::range(0, 0),
            [_] => 1,
            [first, second, ..] => second - first,
        };
        let even = step >= 1 && list.windows(2).all(|pair| pair[1] - pair[0] == step);
        match even {
            true => Columns::steps(list[0], list[list.len() - 1] + 1, step),
            false => Columns(Selection::List(list)),
        }
    }

    /// One column for each row.
    pub(crate) fn per_row(columns: Vec<i64>) -> Self {
        match columns.first() {
            Some(first) if columns.iter().all(|column| column == first) => Columns::range(*first, first + 1),
            _ => Columns(Selection::PerRow(columns)),
        }
    }

    /// What a file says of columns that lie in `span`, of so many rows, if that can be.
    pub(crate) fn checked(self, span: Range<i64>, rows: usize) -> Option<Self> {
        match self.0 {
            Selection::Range { start, step, len } => {
                let last = (len - 1).max(0).checked_mul(step).and_then(|width| start.checked_add(width))?;
                let empty = len == 0;
                let fits = empty || (step >= 1 && len >= 1 && span.contains(&start) && span.contains(&last));
                let end = if empty { start } else { last.checked_add(1)? };
                fits.then(|| Columns::steps(start, end, step.max(1)))
            }
            Selection::List(list) => list.iter().all(|column| span.contains(column)).then(|| Columns::list(list)),
            Selection::PerRow(columns) => {
                let fits = columns.len() == rows && columns.iter().all(|column| span.contains(column));
                fits.then(|| Columns::per_row(columns))
            }
        }
    }

    /// The number of columns of a row.
    pub fn len(&self) -> usize {
        match &self.0 {
            Selection::Range { len, .. } => *len as usize,
            Selection::List(list) => list.len(),
            Selection::PerRow(_) => 1,
        }
    }

    /// Whether there are no columns.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether each row has one column, and the columns differ between rows.
    pub fn is_per_row(&self) -> bool {
        matches!(self.0, Selection::PerRow(_))
    }

    /// The number of rows if each row has one column; `None` if all rows have the same columns.
    pub(crate) fn row_count(&self) -> Option<usize> {
        match &self.0 {
            Selection::PerRow(columns) => Some(columns.len()),
            Selection::Range { .. } | Selection::List(_) => None,
        }
    }

    /// The columns of a batch row, in the order in which the activation holds them.
    ///
    /// Empty if each row has one column and `row` is outside the batch.
    pub fn of_row(&self, row: usize) -> Vec<i64> {
        match &self.0 {
            Selection::Range { start, step, len } => (0..*len).map(|i| start + i * step).collect(),
            Selection::List(list) => list.clone(),
            Selection::PerRow(columns) => columns.get(row).copied().into_iter().collect(),
        }
    }

    /// The columns of some batch rows.
    pub(crate) fn of_rows(&self, rows: &[i64]) -> Self {
        match &self.0 {
            Selection::PerRow(columns) => {
                Columns::per_row(rows.iter().filter_map(|row| columns.get(*row as usize).copied()).collect())
            }
            _ => self.clone(),
        }
    }

    /// The indices of the columns `wanted` on the axis that holds these columns. A repeated column has its first index.
    ///
    /// # Errors
    ///
    /// [`Absent`], with the first column that is not held.
    pub(crate) fn places(&self, wanted: &Columns) -> Result<Columns, Absent> {
        let place = |column: i64| self.place(column).ok_or(Absent { column });
        match (&self.0, &wanted.0) {
            _ if self == wanted => Ok(Columns::range(0, self.len() as i64)),
            (Selection::PerRow(held), Selection::PerRow(wanted)) => match held.iter().zip(wanted).find(|(h, w)| h != w)
            {
                Some((_, column)) => Err(Absent { column: *column }),
                None => Ok(Columns::range(0, 1)),
            },
            (Selection::PerRow(held), _) => {
                for column in wanted.of_row(0) {
                    if held.iter().any(|held| *held != column) {
                        return Err(Absent { column });
                    }
                }
                Ok(Columns::list(vec![0; wanted.len()]))
            }
            (_, Selection::PerRow(columns)) => {
                Ok(Columns::per_row(columns.iter().map(|column| place(*column)).collect::<Result<_, _>>()?))
            }
            _ => Ok(Columns::list(wanted.of_row(0).into_iter().map(place).collect::<Result<_, _>>()?)),
        }
    }

    fn place(&self, column: i64) -> Option<i64> {
        match &self.0 {
            Selection::Range { start, step, len } => {
                let place = (column - start).checked_div(*step)?;
                let inside = (column - start).checked_rem(*step) == Some(0) && (0..*len).contains(&place);
                inside.then_some(place)
            }
            Selection::List(list) => list.iter().position(|held| *held == column).map(|place| place as i64),
            Selection::PerRow(_) => None,
        }
    }

    /// The columns that are in `others` too, in the order of `self`; `None` if there are none, or if only some rows have a common column.
    pub(crate) fn shared_with(&self, others: &Columns) -> Option<Columns> {
        let common = match (&self.0, &others.0) {
            (Selection::PerRow(_), _) => others.places(self).ok().map(|_| self.clone()),
            (_, Selection::PerRow(_)) => self.places(others).ok().map(|_| others.clone()),
            // Computed from the bounds, because a plan may be made for any length.
            (Selection::Range { start, step, len }, Selection::Range { start: first, step: 1, len: count }) => {
                let gap = first.saturating_sub(*start).max(0);
                let before = gap / step + i64::from(gap % step != 0);
                let end = first.saturating_add(*count).min(start.saturating_add(len.saturating_mul(*step)));
                Some(Columns::steps(start.saturating_add(before.saturating_mul(*step)), end, *step))
            }
            _ => {
                let kept = self.of_row(0).into_iter().filter(|column| others.place(*column).is_some());
                Some(Columns::list(kept.collect()))
            }
        };
        common.filter(|columns| !columns.is_empty())
    }

    /// The entries of `tensor` at these columns, which are indices along `axis`. The first dimension of `tensor` is the batch.
    ///
    /// A view of `tensor` for a range, otherwise a copy.
    pub(crate) fn select(&self, tensor: &Tensor, axis: i64) -> Result<Tensor> {
        match &self.0 {
            Selection::Range { start: 0, step: 1, len } if tensor.size().get(axis as usize) == Some(len) => {
                Ok(tensor.shallow_clone())
            }
            Selection::Range { start, step, len } => {
                Ok(tensor.f_slice(axis, Some(*start), Some(start + len * step), *step)?.f_narrow(axis, 0, *len)?)
            }
            Selection::List(list) => {
                Ok(tensor.f_index_select(axis, &Tensor::f_from_slice(list)?.f_to_device(tensor.device())?)?)
            }
            Selection::PerRow(columns) => {
                // Indexing moves the indexed dimensions to the front and merges them, so the axis is inserted again.
                let [rows, places] = row_and_place(columns, tensor.device())?;
                Ok(tensor.f_index(&row_index(&rows, &places, axis))?.f_unsqueeze(axis)?)
            }
        }
    }

    /// A copy of `tensor` in which `part` replaces the entries at these columns: the inverse of [`Columns::select`].
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] if a column is selected twice.
    pub(crate) fn replace(&self, tensor: &Tensor, axis: i64, part: &Tensor) -> Result<Tensor> {
        let places = match &self.0 {
            Selection::PerRow(columns) => {
                let [rows, places] = row_and_place(columns, tensor.device())?;
                let part = part.f_squeeze_dim(axis)?;
                return Ok(tensor.f_index_put(&row_index(&rows, &places, axis), &part, false)?);
            }
            Selection::Range { .. } => self.of_row(0),
            Selection::List(list) => list.clone(),
        };
        let mut sorted = places.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            let sentence =
                format!("position {} is selected twice, so its gradient is ambiguous: select it once", pair[0]);
            return Err(Error::setting("pos", sentence));
        }
        let places = Tensor::f_from_slice(&places)?.f_to_device(tensor.device())?;
        Ok(tensor.f_index_copy(axis, &places, part)?)
    }
}

/// The index tensors that address one place in each batch row: the row numbers and the places.
fn row_and_place(places: &[i64], device: Device) -> Result<[Tensor; 2]> {
    Ok([arange(0..places.len() as i64, device)?, Tensor::f_from_slice(places)?.f_to_device(device)?])
}

/// The index, as `f_index` takes it, of one place along `axis` in each batch row.
fn row_index<'t>(rows: &'t Tensor, places: &'t Tensor, axis: i64) -> Vec<Option<&'t Tensor>> {
    let mut index = vec![Some(rows)];
    index.resize(axis as usize, None);
    index.push(Some(places));
    index
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Selection::Range { len: 0, .. } => write!(f, "none"),
            Selection::Range { start, len: 1, .. } => write!(f, "{start}"),
            Selection::Range { start, step: 1, len } => write!(f, "{start} to {}", start + len - 1),
            Selection::Range { start, step, len } => {
                write!(f, "{start} to {} in steps of {step}", start + (len - 1) * step)
            }
            Selection::List(list) => write_list(f, list),
            Selection::PerRow(columns) => {
                write!(f, "one for each row, ")?;
                write_list(f, columns)
            }
        }
    }
}

/// Writes the first sixteen numbers of a list.
fn write_list(f: &mut fmt::Formatter<'_>, list: &[i64]) -> fmt::Result {
    write!(f, "[")?;
    for (i, number) in list.iter().take(16).enumerate() {
        write!(f, "{}{number}", if i == 0 { "" } else { ", " })?;
    }
    write!(f, "{}]", if list.len() > 16 { ", …" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn columns(rows: usize) -> impl Strategy<Value = Columns> {
        prop_oneof![
            (0i64..7, 0i64..8).prop_map(|(start, end)| Columns::range(start, end)),
            prop::collection::vec(0i64..7, 0..5).prop_map(Columns::list),
            prop::collection::vec(0i64..7, rows).prop_map(Columns::per_row),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        /// Selecting `wanted` from a tensor that holds `held` gives the same as selecting `wanted` from the whole tensor.
        #[test]
        fn a_selection_of_a_selection_is_the_selection(held in columns(3), wanted in columns(3), axis in 1i64..3) {
            let size = if axis == 1 { [3, 7, 2] } else { [3, 2, 7] };
            let all = arange(0..42, Device::Cpu).unwrap().view(size);
            let entry = held.select(&all, axis).unwrap();
            let has = |row: usize, column: i64| held.of_row(row).contains(&column);
            let held_everywhere = (0..3).all(|row| wanted.of_row(row).into_iter().all(|column| has(row, column)));
            match held.places(&wanted) {
                Ok(places) => {
                    prop_assert_eq!(places.select(&entry, axis).unwrap(), wanted.select(&all, axis).unwrap());
                    for row in 0..3 {
                        let ours = Vec::<i64>::try_from(wanted.select(&all, axis).unwrap().select(0, row as i64)
                            .select(2 - axis, 0).reshape(-1)).unwrap();
                        let base = row as i64 * 14;
                        let by_hand: Vec<i64> = wanted.of_row(row).into_iter()
                            .map(|column| base + if axis == 1 { column * 2 } else { column }).collect();
                        prop_assert_eq!(ours, by_hand);
                    }
                    prop_assert!(held_everywhere);
                }
                Err(Absent { column }) => {
                    prop_assert!(!held_everywhere);
                    prop_assert!((0..3).any(|row| wanted.of_row(row).contains(&column) && !has(row, column)));
                }
            }
            if let Some(common) = held.shared_with(&wanted) {
                prop_assert!(held.places(&common).is_ok() && wanted.places(&common).is_ok());
            }
        }
    }

    #[test]
    fn a_selection_has_one_representation() {
        assert_eq!(Columns::list(vec![2, 3, 4]), Columns::range(2, 5));
        assert_eq!(Columns::per_row(vec![4, 4]), Columns::list(vec![4]));
        assert_eq!(Columns::list(vec![0, 3, 6]).to_string(), "0 to 6 in steps of 3");
        assert_eq!(Columns::per_row(vec![4, 2]).to_string(), "one for each row, [4, 2]");
        let whole = Tensor::from_slice(&[1i64, 2, 3]).view([1, 3]);
        let part = Columns::range(1, 3).select(&whole, 1).unwrap();
        assert!(part.data_ptr() as usize > whole.data_ptr() as usize); // part is a view of whole
    }
}
