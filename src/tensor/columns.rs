//! [`Columns`]: which positions of a batch a tensor holds, as numbers of token columns.

use std::fmt;

use tch::{Device, Tensor};

use crate::tensor::scalar::arange;
use crate::{Error, Result};

/// Token columns: the positions of a batch that an activation holds, counted from the first token of the input.
///
/// The columns are the same for all rows of the batch, or one for each row.
///
/// ```
/// use tch_lens::{HookedTransformer, Run};
/// let model = HookedTransformer::toy()?;
/// let run = Run::new().cache("resid_post").pos([4, 2]);
/// let cache = model.run("When Mary and John went to the shop", run)?.cache;
/// assert_eq!(cache.positions().of_row(0), [4, 2]);
/// assert_eq!(cache.positions().to_string(), "[4, 2]");
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns(Numbers);

/// A selection has one form only: a list with equal steps is a range, equal columns of all rows are a range of one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Numbers {
    Range { start: i64, step: i64, len: i64 },
    List(Vec<i64>),
    PerRow(Vec<i64>),
}

/// A column that was looked for and is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Absent {
    pub(crate) column: i64,
}

impl Columns {
    /// The columns `start..end`.
    pub(crate) fn range(start: i64, end: i64) -> Self {
        Columns::steps(start, end, 1)
    }

    /// Every `step`th of the columns `start..end`; `step` is at least 1.
    pub(crate) fn steps(start: i64, end: i64, step: i64) -> Self {
        match end.saturating_sub(start).max(0) {
            0 => Columns(Numbers::Range { start: 0, step: 1, len: 0 }),
            width if width <= step => Columns(Numbers::Range { start, step: 1, len: 1 }),
            width => Columns(Numbers::Range { start, step, len: (width - 1) / step + 1 }),
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
            false => Columns(Numbers::List(list)),
        }
    }

    /// One column for each row.
    pub(crate) fn per_row(columns: Vec<i64>) -> Self {
        match columns.first() {
            Some(first) if columns.iter().all(|column| column == first) => Columns::range(*first, first + 1),
            _ => Columns(Numbers::PerRow(columns)),
        }
    }

    /// How many columns there are for a row.
    pub fn len(&self) -> usize {
        match &self.0 {
            Numbers::Range { len, .. } => *len as usize,
            Numbers::List(list) => list.len(),
            Numbers::PerRow(_) => 1,
        }
    }

    /// Whether there are no columns.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether each row has a column of its own.
    pub fn is_per_row(&self) -> bool {
        matches!(self.0, Numbers::PerRow(_))
    }

    /// How many rows there are columns of; `None` where the columns are the same for any number of rows.
    pub(crate) fn row_count(&self) -> Option<usize> {
        match &self.0 {
            Numbers::PerRow(columns) => Some(columns.len()),
            Numbers::Range { .. } | Numbers::List(_) => None,
        }
    }

    /// The columns of a row of the batch, in the order in which the activation holds them. Empty for a row outside the batch where
    /// each row has a column of its own.
    pub fn of_row(&self, row: usize) -> Vec<i64> {
        match &self.0 {
            Numbers::Range { start, step, len } => (0..*len).map(|i| start + i * step).collect(),
            Numbers::List(list) => list.clone(),
            Numbers::PerRow(columns) => columns.get(row).copied().into_iter().collect(),
        }
    }

    /// The columns of some rows of the batch.
    pub(crate) fn of_rows(&self, rows: &[i64]) -> Self {
        match &self.0 {
            Numbers::PerRow(columns) => {
                Columns::per_row(rows.iter().filter_map(|row| columns.get(*row as usize).copied()).collect())
            }
            _ => self.clone(),
        }
    }

    /// Where `wanted` lies among these columns, as places on the axis that holds them; the first place of a repeated column.
    pub(crate) fn places(&self, wanted: &Columns) -> Result<Columns, Absent> {
        let place = |column: i64| self.place(column).ok_or(Absent { column });
        match (&self.0, &wanted.0) {
            _ if self == wanted => Ok(Columns::range(0, self.len() as i64)),
            (Numbers::PerRow(held), Numbers::PerRow(wanted)) => match held.iter().zip(wanted).find(|(h, w)| h != w) {
                Some((_, column)) => Err(Absent { column: *column }),
                None => Ok(Columns::range(0, 1)),
            },
            (Numbers::PerRow(held), _) => {
                for column in wanted.of_row(0) {
                    if held.iter().any(|held| *held != column) {
                        return Err(Absent { column });
                    }
                }
                Ok(Columns::list(vec![0; wanted.len()]))
            }
            (_, Numbers::PerRow(columns)) => {
                Ok(Columns::per_row(columns.iter().map(|column| place(*column)).collect::<Result<_, _>>()?))
            }
            _ => Ok(Columns::list(wanted.of_row(0).into_iter().map(place).collect::<Result<_, _>>()?)),
        }
    }

    fn place(&self, column: i64) -> Option<i64> {
        match &self.0 {
            Numbers::Range { start, step, len } => {
                let place = (column - start).checked_div(*step)?;
                let inside = (column - start).checked_rem(*step) == Some(0) && (0..*len).contains(&place);
                inside.then_some(place)
            }
            Numbers::List(list) => list.iter().position(|held| *held == column).map(|place| place as i64),
            Numbers::PerRow(_) => None,
        }
    }

    /// Those of these columns that are among `others`, in the order of these; `None` where there are none, or where some rows would
    /// have one and others would not.
    pub(crate) fn shared_with(&self, others: &Columns) -> Option<Columns> {
        let common = match (&self.0, &others.0) {
            (Numbers::PerRow(_), _) => others.places(self).ok().map(|_| self.clone()),
            (_, Numbers::PerRow(_)) => self.places(others).ok().map(|_| others.clone()),
            // Not column by column: the lengths of a plan may be any.
            (Numbers::Range { start, step, len }, Numbers::Range { start: first, step: 1, len: count }) => {
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

    /// The entries of `tensor` at these columns, taken as places along `axis`; the batch is the first dimension. A view where they are a
    /// range, a copy otherwise.
    pub(crate) fn select(&self, tensor: &Tensor, axis: i64) -> Result<Tensor> {
        match &self.0 {
            Numbers::Range { start: 0, step: 1, len } if tensor.size().get(axis as usize) == Some(len) => {
                Ok(tensor.shallow_clone())
            }
            Numbers::Range { start, step, len } => {
                Ok(tensor.f_slice(axis, Some(*start), Some(start + len * step), *step)?.f_narrow(axis, 0, *len)?)
            }
            Numbers::List(list) => {
                Ok(tensor.f_index_select(axis, &Tensor::f_from_slice(list)?.f_to_device(tensor.device())?)?)
            }
            Numbers::PerRow(columns) => {
                // Dimensions between the batch and the axis are kept: the rows come first, and the axis goes.
                let [rows, places] = row_and_place(columns, tensor.device())?;
                Ok(tensor.f_index(&row_index(&rows, &places, axis))?.f_unsqueeze(axis)?)
            }
        }
    }

    /// A copy of `tensor` with `part` at these columns, which is what [`Columns::select`] took from there.
    ///
    /// # Errors
    ///
    /// Where a column is there twice.
    pub(crate) fn replace(&self, tensor: &Tensor, axis: i64, part: &Tensor) -> Result<Tensor> {
        let places = match &self.0 {
            Numbers::PerRow(columns) => {
                let [rows, places] = row_and_place(columns, tensor.device())?;
                let part = part.f_squeeze_dim(axis)?;
                return Ok(tensor.f_index_put(&row_index(&rows, &places, axis), &part, false)?);
            }
            Numbers::Range { .. } => self.of_row(0),
            Numbers::List(list) => list.clone(),
        };
        let mut sorted = places.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            let sentence =
                format!("position {} is kept twice, so what is kept has no one gradient: name it once", pair[0]);
            return Err(Error::setting("pos", sentence));
        }
        let places = Tensor::f_from_slice(&places)?.f_to_device(tensor.device())?;
        Ok(tensor.f_index_copy(axis, &places, part)?)
    }
}

/// The numbers of the rows of the batch, and the place in each of them.
fn row_and_place(places: &[i64], device: Device) -> Result<[Tensor; 2]> {
    Ok([arange(0..places.len() as i64, device)?, Tensor::f_from_slice(places)?.f_to_device(device)?])
}

/// The index of one place along `axis` for each row of the batch.
fn row_index<'t>(rows: &'t Tensor, places: &'t Tensor, axis: i64) -> Vec<Option<&'t Tensor>> {
    let mut index = vec![Some(rows)];
    index.resize(axis as usize, None);
    index.push(Some(places));
    index
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Numbers::Range { len: 0, .. } => write!(f, "none"),
            Numbers::Range { start, len: 1, .. } => write!(f, "{start}"),
            Numbers::Range { start, step: 1, len } => write!(f, "{start} to {}", start + len - 1),
            Numbers::Range { start, step, len } => {
                write!(f, "{start} to {} in steps of {step}", start + (len - 1) * step)
            }
            Numbers::List(list) => write_list(f, list),
            Numbers::PerRow(columns) => {
                write!(f, "one for each row, ")?;
                write_list(f, columns)
            }
        }
    }
}

/// A list, cut after the first sixteen.
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

        /// Selecting `wanted` from what holds `held` is selecting `wanted` from everything, on either axis.
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
    fn a_selection_has_one_form() {
        assert_eq!(Columns::list(vec![2, 3, 4]), Columns::range(2, 5));
        assert_eq!(Columns::per_row(vec![4, 4]), Columns::list(vec![4]));
        assert_eq!(Columns::list(vec![0, 3, 6]).to_string(), "0 to 6 in steps of 3");
        assert_eq!(Columns::per_row(vec![4, 2]).to_string(), "one for each row, [4, 2]");
        let whole = Tensor::from_slice(&[1i64, 2, 3]).view([1, 3]);
        let part = Columns::range(1, 3).select(&whole, 1).unwrap();
        assert!(part.data_ptr() as usize > whole.data_ptr() as usize); // a view
    }
}
