//! How probes are drawn.

use super::color_scale::ColorScale;
use super::figure::{Draw, Figure};
use super::line_plot::LinePlot;
use super::table::Table;
use crate::probe::{ProbeResult, ProbeSweep};
use crate::Result;

impl Draw for ProbeResult {
    /// The accuracies, and the selectivity.
    fn figure(&self) -> Result<Figure> {
        let (names, values): (Vec<&str>, Vec<f64>) = self.rows().into_iter().unzip();
        let cells = values.iter().map(|value| format!("{:.1} %", 100.0 * value)).collect();
        let table = Table::new("", names, ["accuracy"], cells)?
            .values("accuracy", values.iter().map(|value| *value as f32).collect())?
            .color_scale(ColorScale::Sequential { low: 0.0, high: 1.0 })?;
        let caption = format!("{} examples for training, {} for the test.", self.n_train, self.n_test);
        Ok(Figure::new("Linear probe", table).with_caption(caption))
    }
}

impl Draw for ProbeSweep {
    /// Accuracies on the test at each point: of the probe, of its control and of the most frequent class.
    fn figure(&self) -> Result<Figure> {
        let of = |value: fn(&ProbeResult) -> f64| self.rows.iter().map(|(_, result)| value(result) as f32).collect();
        let plot = LinePlot::new("point", self.rows.iter().map(|(point, _)| point.to_string()), "accuracy")
            .line("probe", of(|result| result.test_accuracy))?
            .line("control: random labels", of(|result| result.control_accuracy))?
            .line("most frequent class", of(|result| result.majority_accuracy))?;
        Ok(Figure::new("Linear probes", plot)
            .with_caption("The accuracy on examples that the probes were not fitted on."))
    }
}
