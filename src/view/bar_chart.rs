//! [`BarChart`]: a bar for each value.

use super::heat_map::refuse_length;
use crate::Result;

/// A bar for each value, to the left or right of zero.
#[derive(Clone, Debug, PartialEq)]
pub struct BarChart {
    pub(super) value_name: String,
    pub(super) labels: Vec<String>,
    pub(super) values: Vec<f32>,
}

impl BarChart {
    /// Bars from top to bottom; `value_name` says what the values are.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`](crate::Error::Shape) for another number of values than labels.
    pub fn new(
        value_name: impl Into<String>,
        labels: impl IntoIterator<Item = impl Into<String>>,
        values: Vec<f32>,
    ) -> Result<Self> {
        let labels: Vec<String> = labels.into_iter().map(Into::into).collect();
        refuse_length("the values of a bar chart", values.len(), labels.len())?;
        Ok(BarChart { value_name: value_name.into(), labels, values })
    }
}
