//! [`Table`]: texts in rows and columns, coloured by values.

use super::color_scale::ColorScale;
use super::heat_map::refuse_length;
use super::top_tokens::TopTokens;
use crate::Result;

/// Texts in rows and columns; coloured by values, and with a list behind each cell, where these are given.
///
/// ```
/// use tch_lens::view::{Draw, Table};
/// let cells = vec!["0".into(), "59 %".into()];
/// let table = Table::new("layer", ["3"], ["rank", "probability"], cells)?.values("probability", vec![f32::NAN, 0.59])?;
/// println!("{}", table.figure()?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// What the rows are.
    pub(super) corner: String,
    pub(super) rows: Vec<String>,
    pub(super) columns: Vec<String>,
    /// Row by row.
    pub(super) cells: Vec<String>,
    /// Row by row; empty for a table without values.
    pub(super) values: Vec<f32>,
    pub(super) value_name: String,
    pub(super) scale: ColorScale,
    pub(super) top: Option<TopTokens>,
}

impl Table {
    /// A table; the cells are row by row. `corner` says what the rows are.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`](crate::Error::Shape) for another number of cells.
    pub fn new(
        corner: impl Into<String>,
        rows: impl IntoIterator<Item = impl Into<String>>,
        columns: impl IntoIterator<Item = impl Into<String>>,
        cells: Vec<String>,
    ) -> Result<Self> {
        let rows: Vec<String> = rows.into_iter().map(Into::into).collect();
        let columns: Vec<String> = columns.into_iter().map(Into::into).collect();
        refuse_length("the cells of a table", cells.len(), rows.len() * columns.len())?;
        let scale = ColorScale::Sequential { low: 0.0, high: 1.0 };
        Ok(Table {
            corner: corner.into(),
            rows,
            columns,
            cells,
            values: Vec::new(),
            value_name: String::new(),
            scale,
            top: None,
        })
    }

    /// A value for each cell, row by row, by which it is coloured; NaN for none.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`](crate::Error::Shape) for another number of values.
    pub fn values(mut self, name: impl Into<String>, values: Vec<f32>) -> Result<Self> {
        refuse_length("the values of a table", values.len(), self.cells.len())?;
        self.scale = ColorScale::of(values.iter().copied());
        (self.value_name, self.values) = (name.into(), values);
        Ok(self)
    }

    /// From values to colours.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`](crate::Error::Setting) for a scale whose ends are the same or not finite.
    pub fn color_scale(mut self, scale: ColorScale) -> Result<Self> {
        self.scale = scale.checked()?;
        Ok(self)
    }

    /// A list of tokens for each cell, which a page shows under the pointer.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`](crate::Error::Shape) for another number of lists.
    pub fn top_tokens(mut self, top: TopTokens) -> Result<Self> {
        refuse_length("the lists of a table", top.len(), self.cells.len())?;
        self.top = Some(top);
        Ok(self)
    }

    pub(super) fn cell(&self, row: usize, column: usize) -> &str {
        &self.cells[row * self.columns.len() + column]
    }
}
