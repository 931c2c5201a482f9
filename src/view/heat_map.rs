//! [`HeatMap`]: values as colours in rows and columns.

use tch::Tensor;

use super::color_scale::ColorScale;
use super::results::floats;
use crate::{Error, Result};

/// Values as colours in rows and columns, in one panel or several.
///
/// ```
/// use tch_lens::view::{Draw, HeatMap, HeatMapAxis};
/// use tch_lens::{Composition, HookedTransformer};
/// let model = HookedTransformer::toy()?;
/// let scores = model.all_composition_scores(Composition::K)?.select(0, 0).select(1, 1); // of layer 0 with layer 1: [head, head]
/// let axis = |layer: usize| HeatMapAxis::new("head", (0..4).map(|head| format!("L{layer}H{head}")));
/// let map = HeatMap::from_tensor(axis(0), axis(1), &scores)?.value_name("K-composition");
/// println!("{}", map.figure()?);
/// # Ok::<(), tch_lens::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct HeatMap {
    pub(super) panels: HeatMapAxis,
    pub(super) rows: HeatMapAxis,
    pub(super) columns: HeatMapAxis,
    /// Panel by panel, row by row.
    pub(super) values: Vec<f32>,
    pub(super) scale: ColorScale,
    pub(super) value_name: String,
}

/// What the rows, columns or panels of a [`HeatMap`] are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeatMapAxis {
    pub(super) name: String,
    pub(super) labels: Vec<String>,
}

impl HeatMapAxis {
    /// An axis with a label for each of its entries.
    pub fn new(name: impl Into<String>, labels: impl IntoIterator<Item = impl Into<String>>) -> Self {
        HeatMapAxis { name: name.into(), labels: labels.into_iter().map(Into::into).collect() }
    }

    pub(super) fn len(&self) -> usize {
        self.labels.len()
    }
}

impl HeatMap {
    /// A map of one panel; the values are row by row. NaN stands for no value.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for another number of values.
    pub fn new(rows: HeatMapAxis, columns: HeatMapAxis, values: Vec<f32>) -> Result<Self> {
        HeatMap::with_panels(HeatMapAxis::new("", [""]), rows, columns, values)
    }

    /// A map of one panel, of a tensor of shape `[row, column]`.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for another shape.
    pub fn from_tensor(rows: HeatMapAxis, columns: HeatMapAxis, values: &Tensor) -> Result<Self> {
        let expected = [rows.len() as i64, columns.len() as i64];
        if values.size() != expected {
            return Err(Error::Shape {
                what: "the tensor of a heat map".into(),
                found: values.size(),
                expected: format!("{expected:?}, a row and a column for each label"),
            });
        }
        HeatMap::new(rows, columns, floats(values)?)
    }

    /// A map of heads, of a tensor of shape `[layer, head]`: scores of [`heads`](crate::heads), for example.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for another number of dimensions.
    pub fn by_head(values: &Tensor) -> Result<Self> {
        let size = values.size();
        let [layers, heads] = size.as_slice() else {
            let expected = "[layer, head]".into();
            return Err(Error::Shape { what: "the tensor of a map of heads".into(), found: size, expected });
        };
        let axis = |name: &str, n: i64| HeatMapAxis::new(name, (0..n).map(|i| i.to_string()));
        HeatMap::from_tensor(axis("layer", *layers), axis("head", *heads), values)
    }

    /// A map of several panels with the same rows and columns; the values are panel by panel, row by row.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for another number of values.
    pub fn with_panels(panels: HeatMapAxis, rows: HeatMapAxis, columns: HeatMapAxis, values: Vec<f32>) -> Result<Self> {
        let expected = panels.len() * rows.len() * columns.len();
        refuse_length("the values of a heat map", values.len(), expected)?;
        let scale = ColorScale::of(values.iter().copied());
        Ok(HeatMap { panels, rows, columns, values, scale, value_name: "value".into() })
    }

    /// From values to colours; by default as far as the values go, from zero up or around zero.
    ///
    /// # Errors
    ///
    /// [`Error::Setting`] for a scale whose ends are the same or not finite.
    pub fn color_scale(mut self, scale: ColorScale) -> Result<Self> {
        self.scale = scale.checked()?;
        Ok(self)
    }

    /// What the values are, such as `logit difference`.
    pub fn value_name(mut self, name: impl Into<String>) -> Self {
        self.value_name = name.into();
        self
    }

    /// The values of a panel.
    pub(super) fn panel(&self, panel: usize) -> &[f32] {
        let len = self.rows.len() * self.columns.len();
        &self.values[panel * len..(panel + 1) * len]
    }
}

/// An error where a list is not as long as it must be.
pub(super) fn refuse_length(what: &str, found: usize, expected: usize) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(Error::Shape { what: what.into(), found: vec![found as i64], expected: format!("[{expected}]") }),
    }
}
