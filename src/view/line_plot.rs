//! [`LinePlot`]: values along an axis.

use super::heat_map::{refuse_length, HeatMapAxis};
use crate::Result;

/// Values along an axis of layers, positions or steps; a line for each series.
///
/// ```
/// use tch_lens::view::{Draw, LinePlot};
/// use tch_lens::{HookedTransformer, LensOptions};
/// let model = HookedTransformer::toy()?;
/// let (_, cache) = model.run_with_cache("When Mary and John went to the shop, John gave a bag to")?;
/// let lens = cache.logit_lens(LensOptions::new().pos(-1))?;
/// let mut plot = LinePlot::new("stream", lens.labels(), "probability");
/// for name in [" Mary", " John"] {
///     plot = plot.line(name, lens.rank_of(name)?.rows.iter().map(|(_, _, p)| *p as f32).collect())?;
/// }
/// println!("{}", plot.figure()?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LinePlot {
    pub(super) axis: HeatMapAxis,
    pub(super) value_name: String,
    pub(super) lines: Vec<(String, Vec<f32>)>,
}

impl LinePlot {
    /// A plot without lines: what its axis is, a label for each point of it, and what the values are.
    pub fn new(
        axis: impl Into<String>,
        labels: impl IntoIterator<Item = impl Into<String>>,
        value_name: impl Into<String>,
    ) -> Self {
        LinePlot { axis: HeatMapAxis::new(axis, labels), value_name: value_name.into(), lines: Vec::new() }
    }

    /// A further line, with a value for each point of the axis; NaN for none.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`](crate::Error::Shape) for another number of values.
    pub fn line(mut self, name: impl Into<String>, values: Vec<f32>) -> Result<Self> {
        refuse_length("the values of a line", values.len(), self.axis.len())?;
        self.lines.push((name.into(), values));
        Ok(self)
    }
}
