//! [`FaithfulnessCurve`]: how faithful circuits of growing size are, and the benchmark's summaries of it.

use std::fmt;

use super::scores::EdgeScores;
use super::task::CircuitTask;
use crate::{Error, Result};

/// The settings of [`CircuitTask::faithfulness_curve`].
#[derive(Clone, Debug, PartialEq)]
pub struct CurveOptions {
    fractions: Vec<f64>,
    greedy: bool,
}

impl Default for CurveOptions {
    fn default() -> Self {
        CurveOptions { fractions: vec![0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0], greedy: false }
    }
}

impl CurveOptions {
    /// The benchmark's: circuits of the most important 0.1 %, 0.2 %, 0.5 %, 1 %, … of all edges.
    pub fn new() -> Self {
        CurveOptions::default()
    }

    /// The fractions of edges, each larger than the one before.
    pub fn fractions(mut self, fractions: impl Into<Vec<f64>>) -> Self {
        self.fractions = fractions.into();
        self
    }

    /// Whether circuits grow from the logits ([`EdgeScores::greedy`]) rather than take the most important edges ([`EdgeScores::top_n`]).
    pub fn greedy(mut self, greedy: bool) -> Self {
        self.greedy = greedy;
        self
    }
}

/// A circuit of a [`FaithfulnessCurve`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FaithfulnessPoint {
    /// The fraction of all edges that was allowed.
    pub fraction: f64,
    /// How many edges are left once what is not connected is gone.
    pub n_edges: usize,
    /// The metric of the circuit.
    pub metric: f64,
    /// Its faithfulness.
    pub faithfulness: f64,
}

/// How faithful circuits of growing size are. Prints as a table.
///
/// Made by [`CircuitTask::faithfulness_curve`].
#[derive(Clone, Debug, PartialEq)]
pub struct FaithfulnessCurve {
    points: Vec<FaithfulnessPoint>,
}

impl FaithfulnessCurve {
    /// The circuits, from the smallest to the largest.
    pub fn points(&self) -> &[FaithfulnessPoint] {
        &self.points
    }

    /// The integrated circuit performance ratio (CPR) of the MIB benchmark (Mueller et al. 2025): the area under faithfulness over the
    /// fraction of edges, by trapezoids. Larger is better; scores for it are usually [signed](EdgeScores::signed).
    pub fn cpr(&self) -> f64 {
        self.area(|faithfulness| faithfulness)
    }

    /// The integrated circuit-model distance (CMD) of the MIB benchmark: the area between faithfulness and 1. 0 is best.
    pub fn cmd(&self) -> f64 {
        self.area(|faithfulness| (1.0 - faithfulness).abs())
    }

    fn area(&self, height: impl Fn(f64) -> f64) -> f64 {
        let trapezoid = |pair: &[FaithfulnessPoint]| {
            (pair[1].fraction - pair[0].fraction) * (height(pair[0].faithfulness) + height(pair[1].faithfulness)) / 2.0
        };
        self.points.windows(2).map(trapezoid).sum()
    }
}

impl fmt::Display for FaithfulnessCurve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9}  {:>7}  {:>9}  {:>12}", "of edges", "edges", "metric", "faithfulness")?;
        for point in &self.points {
            let FaithfulnessPoint { fraction, n_edges, metric, faithfulness } = point;
            write!(f, "\n{:>7.1} %  {n_edges:>7}  {metric:>9.3}  {faithfulness:>12.3}", 100.0 * fraction)?;
        }
        Ok(())
    }
}

impl CircuitTask<'_, '_> {
    /// The faithfulness of the circuits that scores give at several sizes: one forward pass for each.
    ///
    /// # Errors
    ///
    /// Those of [`CircuitTask::faithfulness`]; [`Error::Setting`] for fractions that are not increasing, or not between 0 and 1.
    pub fn faithfulness_curve(&self, scores: &EdgeScores, options: CurveOptions) -> Result<FaithfulnessCurve> {
        let fractions = &options.fractions;
        let within = fractions.iter().all(|fraction| (0.0..=1.0).contains(fraction));
        if !within || fractions.windows(2).any(|pair| pair[0] >= pair[1]) {
            let rule = "each must be larger than the one before, and between 0 and 1";
            return Err(Error::option_value("fractions", format!("{fractions:?}"), rule));
        }
        let points = fractions.iter().map(|fraction| {
            let n = (fraction * self.graph.n_edges() as f64) as usize;
            let circuit = if options.greedy { scores.greedy(n)? } else { scores.top_n(n)? };
            let metric = self.metric_of(&circuit)?;
            let faithfulness = self.share(metric)?;
            Ok(FaithfulnessPoint { fraction: *fraction, n_edges: circuit.n_edges(), metric, faithfulness })
        });
        Ok(FaithfulnessCurve { points: points.collect::<Result<_>>()? })
    }
}
