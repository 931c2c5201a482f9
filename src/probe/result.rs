//! [`LinearProbe`] and [`ProbeResult`]: a fitted probe, and how it did.

use std::fmt;

use tch::{Kind, Tensor};

use crate::unchecked::threads::SharedTensor;
use crate::{Error, Result};

/// A linear map from activations to a score of each class, in fp64.
#[derive(Clone, Debug)]
pub struct LinearProbe {
    /// `[class, d]`
    pub(super) weights: SharedTensor,
    /// `[class]`
    pub(super) bias: SharedTensor,
}

impl LinearProbe {
    /// The weights: `[class, d]`.
    pub fn weights(&self) -> Tensor {
        self.weights.shallow_clone()
    }

    /// The bias: `[class]`.
    pub fn bias(&self) -> Tensor {
        self.bias.shallow_clone()
    }

    /// The score of each class: `[…, d]` to `[…, class]`. Of a logistic probe, the softmax is the probabilities.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for another last axis.
    pub fn scores(&self, x: &Tensor) -> Result<Tensor> {
        let d = self.weights.size()[1];
        if x.size().last() != Some(&d) {
            return Err(Error::Shape {
                what: "the tensor of activations".into(),
                found: x.size(),
                expected: format!("[…, {d}]"),
            });
        }
        let x = x.f_to_device(self.weights.device())?.f_to_kind(Kind::Double)?;
        Ok(x.f_matmul(&self.weights.f_tr()?)?.f_add(&self.bias)?)
    }

    /// The class with the highest score: `[…, d]` to `[…]`, int64.
    ///
    /// # Errors
    ///
    /// Those of [`LinearProbe::scores`].
    pub fn predict(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.scores(x)?.f_argmax(-1, false)?)
    }

    /// The direction from one class to another: `[d]`. Along it the difference of their scores grows; it can be added as a
    /// [`SteeringVector`](crate::steering::SteeringVector), which tells whether the model uses what the probe reads.
    ///
    /// # Errors
    ///
    /// [`Error::SliceOutOfRange`] for a class that does not exist.
    pub fn direction(&self, from: usize, to: usize) -> Result<Tensor> {
        let len = self.weights.size()[0];
        for class in [from, to] {
            if class as i64 >= len {
                return Err(Error::SliceOutOfRange { slice: format!("index {class}"), axis: "class", len });
            }
        }
        Ok(self.weights.f_select(0, to as i64)?.f_sub(&self.weights.f_select(0, from as i64)?)?)
    }

    /// The share of the examples whose class is predicted.
    pub(super) fn accuracy(&self, x: &Tensor, labels: &[i64]) -> Result<f64> {
        let hits = self.predict(x)?.f_eq_tensor(&Tensor::f_from_slice(labels)?)?;
        Ok(hits.f_to_kind(Kind::Double)?.f_mean(Kind::Double)?.f_double_value(&[])?)
    }
}

/// How a probe did, and its control. Prints as a table.
#[derive(Clone, Debug)]
pub struct ProbeResult {
    /// The probe.
    pub probe: LinearProbe,
    /// The accuracy on the examples of the fit.
    pub train_accuracy: f64,
    /// The accuracy on the other examples.
    pub test_accuracy: f64,
    /// The accuracy of the same probe on random labels, on the other examples.
    pub control_accuracy: f64,
    /// The accuracy of always giving the most frequent class.
    pub majority_accuracy: f64,
    /// How many examples the probe was fitted on.
    pub n_train: usize,
    /// How many examples it was judged on.
    pub n_test: usize,
}

impl ProbeResult {
    /// By how much the probe does better than its control, on the examples that it was not fitted on (Hewitt and Liang 2019).
    pub fn selectivity(&self) -> f64 {
        self.test_accuracy - self.control_accuracy
    }

    /// What the numbers are, and the numbers.
    pub(crate) fn rows(&self) -> [(&'static str, f64); 5] {
        [
            ("training", self.train_accuracy),
            ("test", self.test_accuracy),
            ("control: random labels", self.control_accuracy),
            ("the most frequent class", self.majority_accuracy),
            ("selectivity", self.selectivity()),
        ]
    }
}

impl fmt::Display for ProbeResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.rows() {
            writeln!(f, "{name:<24} {:>6.1} %", 100.0 * value)?;
        }
        write!(f, "{} examples for training, {} for the test", self.n_train, self.n_test)
    }
}
