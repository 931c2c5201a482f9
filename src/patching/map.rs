//! [`MetricMap`]: the metric of many runs, under named axes.

use std::fmt;

use tch::{Device, Kind, Tensor};

use super::axes::MapAxis;
use crate::{Error, Result};

/// The metric of each patch of a sweep, under named axes: the mean over the batch, and the value of each row.
///
/// It prints as a table.
#[derive(Debug)]
pub struct MetricMap {
    axes: Vec<MapAxis>,
    /// `[axes…, batch]`, or `[axes…, 1]` where the metric has one value for all rows.
    values: Tensor,
    /// The metric without a patch: `[batch]`, or `[1]`.
    baseline: Tensor,
    batch: i64,
}

/// What a sweep gives.
#[derive(Debug)]
pub(super) struct Swept {
    /// `[patch, batch or 1]`
    pub(super) values: Tensor,
    /// Without a patch: `[batch or 1]`.
    pub(super) baseline: Tensor,
    /// The rows of the batch.
    pub(super) batch: i64,
}

impl MetricMap {
    /// The map of a sweep whose patches run over the axes, the last one first.
    pub(super) fn new(axes: Vec<MapAxis>, swept: Swept) -> Result<Self> {
        let Swept { values, baseline, batch } = swept;
        let shape: Vec<i64> = axes.iter().map(MapAxis::len).chain([values.size()[1]]).collect();
        Ok(MetricMap { axes, values: values.f_view(shape.as_slice())?, baseline, batch })
    }

    /// The mean over the rows of the batch: `[axes…]`.
    pub fn tensor(&self) -> Tensor {
        // The mean over an axis that is there cannot fail.
        self.values.mean_dim([-1i64].as_slice(), false, None)
    }

    /// The value of each row of the batch: `[axes…, batch]`.
    ///
    /// # Errors
    ///
    /// [`Error::Metric`] where the metric is a function that returns one value for several rows.
    pub fn rows(&self) -> Result<Tensor> {
        match self.values.size().last() == Some(&self.batch) {
            true => Ok(self.values.shallow_clone()),
            false => Err(Error::metric(format!(
                "its function returns one value for all {} rows: let it return one for each row",
                self.batch
            ))),
        }
    }

    /// The metric of the run without a patch, the mean over the rows of the batch: no dimensions.
    pub fn baseline(&self) -> Tensor {
        self.baseline.mean(None)
    }

    /// The axes, in the order of the tensor's.
    pub fn axes(&self) -> &[MapAxis] {
        &self.axes
    }

    /// The mean of one patch, by its place along each axis.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`]; [`Error::Shape`] for another number of places than axes.
    pub fn value(&self, places: &[usize]) -> Result<f64> {
        if places.len() != self.axes.len() {
            let expected = format!("[{}], one for each axis", self.axes.len());
            return Err(Error::Shape { what: "the list of places".into(), found: vec![places.len() as i64], expected });
        }
        for (place, axis) in places.iter().zip(&self.axes) {
            if *place >= axis.labels.len() {
                let slice = format!("index {place}");
                return Err(Error::SliceOutOfRange { slice, axis: "map's", len: axis.len() });
            }
        }
        let places: Vec<i64> = places.iter().map(|place| *place as i64).collect();
        Ok(self.tensor().f_double_value(&places)?)
    }

    /// The patches whose metric differs most from the run without a patch, with labels such as `layer 2, head 1`; the largest
    /// difference first.
    ///
    /// # Errors
    ///
    /// Those of libtorch.
    pub fn top(&self, k: usize) -> Result<Vec<(String, f64)>> {
        let flat = self.numbers()?;
        let baseline = self.baseline().f_double_value(&[])?;
        let mut order: Vec<usize> = (0..flat.len()).collect();
        let moved = |i: usize| (flat[i] - baseline).abs();
        order.sort_by(|a, b| moved(*b).total_cmp(&moved(*a)));
        Ok(order.into_iter().take(k).map(|i| (self.label(i), flat[i])).collect())
    }

    /// The means on the CPU, in the order of the tensor's memory.
    fn numbers(&self) -> Result<Vec<f64>> {
        let flat = self.values.f_mean_dim([-1i64].as_slice(), false, None)?.f_reshape(-1)?;
        Ok(Vec::<f64>::try_from(flat.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?)?)
    }

    /// What the `i`th patch is.
    fn label(&self, mut i: usize) -> String {
        let mut labels = Vec::new();
        for axis in self.axes.iter().rev() {
            let (place, len) = (i % axis.labels.len(), axis.labels.len());
            labels.push(match axis.name.as_str() {
                "patch" => axis.labels[place].clone(),
                name => format!("{name} {}", axis.labels[place]),
            });
            i /= len;
        }
        labels.reverse();
        labels.join(", ")
    }
}

impl fmt::Display for MetricMap {
    /// A row for each entry of all axes but the last, a column for each entry of that.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = self.numbers().map_err(|_| fmt::Error)?;
        let Some((columns, rows)) = self.axes.split_last() else {
            return write!(f, "{:.3}", numbers.first().copied().unwrap_or(f64::NAN));
        };
        let title = rows.iter().map(|axis| axis.name.as_str()).collect::<Vec<_>>().join(", ");
        let row = |mut i: usize| {
            let mut labels = Vec::new();
            for axis in rows.iter().rev() {
                labels.push(axis.labels[i % axis.labels.len()].as_str());
                i /= axis.labels.len();
            }
            labels.reverse();
            labels.join(", ")
        };
        let n_rows = numbers.len() / columns.labels.len().max(1);
        let labels: Vec<String> = (0..n_rows).map(row).collect();
        let first = labels.iter().map(|label| label.chars().count()).chain([title.chars().count()]).max().unwrap_or(0);
        let cells: Vec<String> = numbers.iter().map(|number| format!("{number:.2}")).collect();
        let width = cells.iter().chain(&columns.labels).map(|cell| cell.chars().count()).max().unwrap_or(0);
        write!(f, "{title:>first$} |")?;
        for label in &columns.labels {
            write!(f, " {label:>width$}")?;
        }
        write!(f, "  ({})", columns.name)?;
        for (label, cells) in labels.iter().zip(cells.chunks(columns.labels.len().max(1))) {
            write!(f, "\n{label:>first$} |")?;
            for cell in cells {
                write!(f, " {cell:>width$}")?;
            }
        }
        Ok(())
    }
}
