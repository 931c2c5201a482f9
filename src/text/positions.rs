//! [`Positions`]: which positions of a batch are meant.

use std::fmt;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::input::Tokens;
use crate::tensor::columns::Columns;
use crate::tensor::slice::Slice;
use crate::{Error, Result};

/// Which positions are meant: token columns of the whole input, in a run and in an analysis alike.
///
/// Whatever makes a [`Slice`] makes positions that are the same for all rows; `-1` is the last column. Rows of different lengths are
/// padded, so their last tokens lie in different columns: [`Positions::LastToken`]. A column that is padding in one of the chosen
/// rows is an error, unless all positions are meant or [`with_padding`](Positions::with_padding) is said.
///
/// ```
/// use tch_lens::{HookedTransformer, PaddingSide, Positions, RunOptions};
/// let model = HookedTransformer::toy()?;
/// let texts = ["When Mary and John went to the shop, John gave a bag to", "When Mary and John"];
/// let run = RunOptions::new().cache("resid_post").padding_side(PaddingSide::Right);
/// let cache = model.run(texts, run.pos(Positions::LastToken))?.cache;
/// assert_eq!((cache.positions().of_row(0), cache.positions().of_row(1)), (vec![14], vec![4]));
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug)]
pub enum Positions {
    /// These columns of every row; [`Slice::All`] means all of them, padding included.
    Slice(Slice),
    /// The last token of each row that is not padding. In an analysis, the position axis goes.
    LastToken,
    /// One column for each row, negative ones counted from the end. In an analysis, these are the rows that it chooses, and the
    /// position axis goes.
    PerRow(Vec<i64>),
    /// The same, whether or not it is padding; of a row that is nothing but padding, [`Positions::LastToken`] is the last column.
    WithPadding(Box<Positions>),
}

impl Default for Positions {
    /// All positions.
    fn default() -> Self {
        Positions::Slice(Slice::All)
    }
}

impl<T: Into<Slice>> From<T> for Positions {
    fn from(slice: T) -> Self {
        Positions::Slice(slice.into())
    }
}

impl Positions {
    /// The same positions, even where they are padding.
    pub fn with_padding(self) -> Self {
        match self {
            Positions::WithPadding(_) => self,
            other => Positions::WithPadding(Box::new(other)),
        }
    }

    /// Whether all positions are meant.
    pub(crate) fn is_all(&self) -> bool {
        match self {
            Positions::Slice(slice) => matches!(slice, Slice::All),
            Positions::WithPadding(positions) => positions.is_all(),
            Positions::LastToken | Positions::PerRow(_) => false,
        }
    }

    /// Whether an analysis drops the position axis: there is one position for each row.
    pub(crate) fn drops_axis(&self) -> bool {
        match self {
            Positions::Slice(slice) => slice.drops_axis(),
            Positions::LastToken | Positions::PerRow(_) => true,
            Positions::WithPadding(positions) => positions.drops_axis(),
        }
    }

    /// The columns that are meant.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`], [`Error::PaddingChosen`]; [`Error::Shape`] for another number of columns than rows.
    pub(crate) fn columns(&self, axis: &PositionAxis) -> Result<Columns> {
        let (positions, with_padding) = match self {
            Positions::WithPadding(positions) => (positions.as_ref(), true),
            other => (other, false),
        };
        let columns = match positions {
            Positions::Slice(Slice::All) => return Ok(axis.all()),
            Positions::WithPadding(nested) => return nested.clone().with_padding().columns(axis),
            Positions::LastToken => return axis.last_tokens(with_padding),
            // The ends of a range are cut off.
            Positions::Slice(Slice::Range { start, end, step }) => axis.range(*start, *end, *step)?,
            Positions::Slice(slice) => {
                let columns = slice.indices(axis.span.end, "position")?;
                columns.iter().try_for_each(|column| axis.check(*column))?;
                Columns::list(columns)
            }
            Positions::PerRow(columns) => {
                if columns.len() != axis.count {
                    return Err(Error::Shape {
                        what: "the positions, one for each row,".into(),
                        found: vec![columns.len() as i64],
                        expected: format!("[{}]", axis.count),
                    });
                }
                let column = |column: &i64| {
                    let slice = Slice::Index(*column);
                    let index = slice.indices(axis.span.end, "position")?[0];
                    axis.check(index)?;
                    Ok(index)
                };
                Columns::per_row(columns.iter().map(column).collect::<Result<_>>()?)
            }
        };
        if !with_padding {
            axis.refuse_padding(&columns)?;
        }
        Ok(columns)
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Positions::Slice(slice) => slice.fmt(f),
            Positions::LastToken => f.write_str("the last token of each row"),
            Positions::PerRow(_) => f.write_str("one position for each row"),
            Positions::WithPadding(positions) => positions.fmt(f),
        }
    }
}

/// The columns that positions are chosen from, and which of them are padding.
pub(crate) struct PositionAxis {
    /// The columns that the run computes.
    span: Range<i64>,
    /// How many rows are chosen.
    count: usize,
    /// The rows chosen, by their numbers in the batch; absent where no tokens are known.
    rows: Vec<i64>,
    /// Which tokens of the chosen rows are real: `[row, column - span.start]`; absent where all are.
    mask: Option<Tensor>,
}

impl PositionAxis {
    /// Rows of tokens without padding.
    pub(crate) fn unpadded(rows: usize, span: Range<i64>) -> Self {
        PositionAxis { span, count: rows, rows: Vec::new(), mask: None }
    }

    /// The rows `rows` of tokens whose first column is `past`.
    pub(crate) fn new(tokens: &Tokens, past: i64, rows: Vec<i64>) -> Result<Self> {
        let size = tokens.ids.size();
        let mask = match &tokens.mask {
            Some(mask) => {
                let index = Tensor::f_from_slice(&rows)?;
                Some(mask.f_to_device(Device::Cpu)?.f_index_select(0, &index)?)
            }
            None => None,
        };
        Ok(PositionAxis { span: past..past + size.get(1).copied().unwrap_or(0), count: rows.len(), rows, mask })
    }

    /// All columns.
    pub(crate) fn all(&self) -> Columns {
        Columns::range(self.span.start, self.span.end)
    }

    /// The columns from `start` to before `end`, every `step`th, as far as the run computes them.
    fn range(&self, start: Option<i64>, end: Option<i64>, step: i64) -> Result<Columns> {
        if step < 1 {
            return Err(Error::wrong_input(format!("the step of a slice must be at least 1, but is {step}")));
        }
        let len = self.span.end;
        let bound = |index: i64| if index < 0 { index.saturating_add(len).max(0) } else { index.min(len) };
        let mut start = bound(start.unwrap_or(0));
        if start < self.span.start {
            let steps = (self.span.start - start - 1) / step + 1;
            start = start.saturating_add(steps.saturating_mul(step));
        }
        Ok(Columns::steps(start, bound(end.unwrap_or(len)), step))
    }

    /// That the run computes a column.
    fn check(&self, column: i64) -> Result<()> {
        match self.span.contains(&column) {
            true => Ok(()),
            false => Err(Error::NoPosition {
                what: "the run".into(),
                position: column,
                held: self.all().to_string(),
                hint: String::new(),
            }),
        }
    }

    fn last_tokens(&self, with_padding: bool) -> Result<Columns> {
        let Some(mask) = &self.mask else { return Ok(Columns::range(self.span.end - 1, self.span.end)) };
        let last = |(i, row): (usize, &i64)| {
            let real = Vec::<bool>::try_from(mask.f_select(0, i as i64)?)?;
            match real.iter().rposition(|real| *real) {
                Some(place) => Ok(self.span.start + place as i64),
                None if with_padding => Ok(self.span.end - 1),
                None => Err(Error::PaddingChosen { row: *row, position: self.span.end - 1 }),
            }
        };
        Ok(Columns::per_row(self.rows.iter().enumerate().map(last).collect::<Result<_>>()?))
    }

    /// An error where one of the columns is padding in one of the rows.
    pub(crate) fn refuse_padding(&self, columns: &Columns) -> Result<()> {
        let Some(mask) = &self.mask else { return Ok(()) };
        if mask.f_all()?.f_int64_value(&[])? == 1 {
            return Ok(());
        }
        let mask = mask.f_to_kind(Kind::Bool)?;
        for (i, row) in self.rows.iter().enumerate() {
            let real = Vec::<bool>::try_from(mask.f_select(0, i as i64)?)?;
            for position in columns.of_row(i) {
                if !real.get((position - self.span.start) as usize).copied().unwrap_or(true) {
                    return Err(Error::PaddingChosen { row: *row, position });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::tokenizer::PaddingSide;

    fn axis(side: PaddingSide) -> PositionAxis {
        let rows = [vec![1, 2, 3, 4], vec![5, 6]];
        PositionAxis::new(&Tokens::padded(&rows, 0, side).unwrap(), 0, vec![0, 1]).unwrap()
    }

    fn sentence(positions: impl Into<Positions>, axis: &PositionAxis) -> String {
        positions.into().columns(axis).unwrap_err().to_string()
    }

    #[test]
    fn the_last_token_is_each_row_s_own() {
        let of = |side| Positions::LastToken.columns(&axis(side)).unwrap();
        assert_eq!(of(PaddingSide::Right), Columns::per_row(vec![3, 1]));
        assert_eq!(of(PaddingSide::Left), Columns::range(3, 4));
        let unpadded = PositionAxis::unpadded(2, 0..4);
        assert_eq!(Positions::LastToken.columns(&unpadded).unwrap(), Columns::range(3, 4));
    }

    #[test]
    fn padding_is_refused_unless_it_is_meant() {
        let right = axis(PaddingSide::Right);
        let said = "position 3 of batch row 1 is padding";
        assert!(
            sentence(-1, &right).starts_with(said) && sentence(Positions::PerRow(vec![0, 3]), &right).starts_with(said)
        );
        assert!(sentence(1..3, &right).starts_with("position 2 of batch row 1 is padding"));
        assert_eq!(Positions::from(..).columns(&right).unwrap(), Columns::range(0, 4));
        assert_eq!(Positions::from(-1).with_padding().columns(&right).unwrap(), Columns::range(3, 4));
        assert_eq!(Positions::from([1, 0]).columns(&right).unwrap(), Columns::list(vec![1, 0]));
        assert_eq!(Positions::PerRow(vec![-1, 1]).columns(&right).unwrap(), Columns::per_row(vec![3, 1]));
        assert!(sentence(0, &axis(PaddingSide::Left)).starts_with("position 0 of batch row 1 is padding"));
        // Only the rows that are chosen count.
        let tokens = Tokens::padded(&[vec![1, 2, 3, 4], vec![5, 6]], 0, PaddingSide::Right).unwrap();
        let first = PositionAxis::new(&tokens, 0, vec![0]).unwrap();
        assert_eq!(Positions::from(-1).columns(&first).unwrap(), Columns::range(3, 4));
    }

    #[test]
    fn columns_are_absolute_after_a_past() {
        let axis = PositionAxis::unpadded(1, 5..8);
        assert_eq!(Positions::from(-1).columns(&axis).unwrap(), Columns::range(7, 8));
        assert_eq!(Positions::from(..).columns(&axis).unwrap(), Columns::range(5, 8));
        assert_eq!(Positions::from(-6..).columns(&axis).unwrap(), Columns::range(5, 8));
        assert_eq!(sentence(4, &axis), "the run has no position 4, only 5 to 7");
    }
}
